package crd

import (
	"encoding/json"
	"testing"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"proa.dev/kind"
	"proa.dev/kind/validate"
)

func fuzzed(schema string, columns ...string) *apiextensionsv1.CustomResourceDefinition {
	d := &apiextensionsv1.CustomResourceDefinition{ObjectMeta: metav1.ObjectMeta{Name: "xs.example.com", UID: "1"}}
	d.Spec = apiextensionsv1.CustomResourceDefinitionSpec{Group: "example.com", Scope: apiextensionsv1.ClusterScoped,
		Names: apiextensionsv1.CustomResourceDefinitionNames{Plural: "xs", Singular: "x", Kind: "X", ListKind: "XList"}}
	v := apiextensionsv1.CustomResourceDefinitionVersion{Name: "v1", Served: true, Storage: true, Schema: &apiextensionsv1.CustomResourceValidation{}}
	if yaml.UnmarshalStrict([]byte(schema), &v.Schema.OpenAPIV3Schema) != nil || v.Schema.OpenAPIV3Schema == nil {
		return nil
	}
	for _, c := range columns {
		v.AdditionalPrinterColumns = append(v.AdditionalPrinterColumns, apiextensionsv1.CustomResourceColumnDefinition{Name: "C", Type: "string", JSONPath: c})
	}
	d.Spec.Versions = []apiextensionsv1.CustomResourceDefinitionVersion{v}
	kind.CustomResourceDefinition.Default(d)
	d.Status.StoredVersions = []string{"v1"}
	d.Status.AcceptedNames = d.Spec.Names
	d.Status.Conditions = []apiextensionsv1.CustomResourceDefinitionCondition{{Type: apiextensionsv1.Established, Status: apiextensionsv1.ConditionTrue}}
	return d
}

// FuzzSchema: what a definition may say is decided without a crash, also of its
// rules, and an object of any that may be is judged, pruned and defaulted within
// the cost limits of upstream; doing so twice changes nothing more.
func FuzzSchema(f *testing.F) {
	object := `{"apiVersion":"example.com/v1","kind":"X","metadata":{"name":"a"},"spec":{"a":[1,2,{"b":null}],"s":"x","n":-1.5,"deep":{"deep":{}}}}`
	for _, s := range []string{
		`{type: object, properties: {spec: {type: object, properties: {s: {type: string, pattern: "^(a+)+$", default: q}, n: {type: number, minimum: -2}}}}}`,
		`{type: object, x-kubernetes-preserve-unknown-fields: true, x-kubernetes-validations: [{rule: "self.spec.a.all(x, self.spec.a.all(y, self.spec.a.all(z, x == y || y == z)))"}]}`,
		`{type: object, properties: {spec: {type: object, x-kubernetes-embedded-resource: true, x-kubernetes-preserve-unknown-fields: true}}}`,
		`{type: object, properties: {spec: {type: object, properties: {a: {type: array, maxItems: 3, x-kubernetes-list-type: set, items: {type: integer}}}, x-kubernetes-validations: [{rule: "self.a.exists(x, x > 1)", messageExpression: "'a' + string(self.a[5])"}]}}}`,
		`{type: object, properties: {spec: {type: object, additionalProperties: {x-kubernetes-int-or-string: true, anyOf: [{type: integer}, {type: string}]}, not: {required: [z]}}}}`,
		`{type: object, properties: {spec: {type: object, properties: {s: {type: string, x-kubernetes-validations: [{rule: "self.matches('(((((((((x{1000}){10})*)*)*)*)*)*)*)')"}]}}}}}`,
	} {
		f.Add(s, object)
	}
	f.Fuzz(func(t *testing.T, schema, object string) {
		d := fuzzed(schema)
		if d == nil || len(validate.CustomResourceDefinition(d)) > 0 {
			return
		}
		validate.CustomResourceDefinitionWarnings(d, nil)
		r := New(Config{UID: func() types.UID { return "u" }})
		shape := r.All(kind.All, []kind.Object{d})
		_ = shape
		def := r.define(d, nil)
		v := def.version("example.com/v1")
		if v == nil {
			t.Fatal("the version is not there")
		}
		v.OpenAPI(false)
		v.OpenAPI(true)
		u := new(unstructured.Unstructured)
		if json.Unmarshal([]byte(object), &u.Object) != nil || u.Object == nil {
			return
		}
		u.SetGroupVersionKind(v.row.GVK())
		row := v.row
		if row.Coerce != nil {
			if _, err := row.Coerce(u, true); err != nil {
				return
			}
		}
		row.Default(u)
		once, err := json.Marshal(u.Object)
		if err != nil {
			t.Fatalf("what was completed is no JSON: %v", err)
		}
		row.Validate(u)
		row.ValidateUpdate(u, u.DeepCopy())
		row.Cells(u, time.Unix(0, 0))
		again := u.DeepCopy()
		row.Default(again)
		if twice, _ := json.Marshal(again.Object); string(twice) != string(once) {
			t.Fatalf("completed once: %s\ntwice: %s", once, twice)
		}
	})
}

// FuzzColumns: any path of a column prints something of any object, the same each
// time, and leaves the object alone.
func FuzzColumns(f *testing.F) {
	object := `{"metadata":{"name":"a"},"spec":{"a":[{"b":1},{"b":"x"}],"m":{"k":[1,2,3]}},"status":{"at":"2026-01-01T00:00:00Z"}}`
	for _, p := range []string{".spec.a[*].b", ".spec.a[?(@.b==1)].b", ".spec.m.k[-1:0:2]", "..b", ".spec.a[0:99999999999]", ".x}{range .spec.a[*]}{.b}{end", ".spec}{end", ".metadata['name']", ".spec.a[?(@.b =~ 'x')]", ".", ".spec.m.*", ".status.at"} {
		f.Add(p, "string", object)
		f.Add(p, "date", object)
	}
	f.Add(".spec.m.k[0]", "integer", object)
	f.Add(".spec.m", "boolean", object)
	f.Fuzz(func(t *testing.T, text, typ, object string) {
		if len(text) > 256 || len(object) > 4096 {
			return // a path of many recursions is as long as its answer
		}
		var content map[string]any
		if json.Unmarshal([]byte(object), &content) != nil {
			return
		}
		p := path("C", text)
		if p == nil {
			return
		}
		before, _ := json.Marshal(content)
		now := time.Unix(0, 0)
		first, _ := json.Marshal(cell(p, content, typ, now))
		second, _ := json.Marshal(cell(p, content, typ, now))
		if string(first) != string(second) {
			t.Fatalf("%q prints %s, then %s", text, first, second)
		}
		if after, _ := json.Marshal(content); string(after) != string(before) {
			t.Fatalf("%q changed the object to %s", text, after)
		}
	})
}

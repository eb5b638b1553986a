package openapi

import (
	"encoding/json"
	"fmt"
	"sort"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/version"

	"proa.dev/client/wire"
	"proa.dev/kind"
)

var mediaTypes = []string{wire.JSONType, wire.YAMLType, wire.ProtobufType}

var patchTypes = []string{string(types.ApplyYAMLPatchType), string(types.JSONPatchType), string(types.MergePatchType), string(types.StrategicMergePatchType)}

// V2 is the Swagger 2.0 document of all groups.
func V2(t *kind.Table, v string) ([]byte, error) {
	b := newBuilder(false)
	paths := object{}
	for _, gv := range Versions(t) {
		b.group(t, gv, paths)
	}
	b.shared(t)
	paths["/version/"] = object{"get": object{"description": "get the version information for this server", "operationId": "getCodeVersion",
		"consumes": []string{wire.JSONType}, "produces": []string{wire.JSONType}, "schemes": []string{"https"}, "tags": []string{"version"},
		"responses": object{"200": object{"description": "OK", "schema": b.add(&version.Info{})}, "401": object{"description": "Unauthorized"}}}}
	b.finish()
	return json.Marshal(object{"swagger": "2.0", "info": object{"title": "Kubernetes", "version": v}, "paths": paths, "definitions": b.defs,
		"securityDefinitions": object{"BearerToken": object{"type": "apiKey", "name": "authorization", "in": "header", "description": "Bearer Token authentication"}},
		"security":            []any{object{"BearerToken": []string{}}}})
}

// V3 is the OpenAPI 3.0 document of one group version; nil when it is not served.
func V3(t *kind.Table, gv schema.GroupVersion, v string) ([]byte, error) {
	b := newBuilder(true)
	paths := object{}
	b.group(t, gv, paths)
	if len(paths) == 0 {
		return nil, nil
	}
	b.sharedFor([]schema.GroupVersion{gv})
	b.finish()
	return json.Marshal(object{"openapi": "3.0.0", "info": object{"title": "Kubernetes", "version": v}, "paths": paths,
		"components": object{"schemas": b.defs,
			"securitySchemes": object{"BearerToken": object{"type": "apiKey", "name": "authorization", "in": "header", "description": "Bearer Token authentication"}}}})
}

// Versions are the group versions of the table, in its order.
func Versions(t *kind.Table) []schema.GroupVersion {
	var out []schema.GroupVersion
	seen := map[schema.GroupVersion]bool{}
	for _, k := range t.Rows() {
		gv := k.GVK().GroupVersion()
		if !seen[gv] {
			seen[gv] = true
			out = append(out, gv)
		}
	}
	return out
}

// Path of a group version below /openapi/v3/ and the root: "api/v1".
func Path(gv schema.GroupVersion) string {
	if gv.Group == "" {
		return "api/" + gv.Version
	}
	return "apis/" + gv.Group + "/" + gv.Version
}

// shared adds the kinds that belong to every group.
func (b *builder) shared(t *kind.Table) { b.sharedFor(Versions(t)) }

func (b *builder) sharedFor(gvs []schema.GroupVersion) {
	b.add(&metav1.Status{}, schema.GroupVersionKind{Version: "v1", Kind: "Status"})
	gvs = append([]schema.GroupVersion{{Version: "v1"}}, gvs...)
	for _, gv := range gvs {
		b.add(&metav1.DeleteOptions{}, gv.WithKind("DeleteOptions"))
		b.add(&metav1.WatchEvent{}, gv.WithKind("WatchEvent"))
	}
}

// group adds schemas and paths of one group version.
func (b *builder) group(t *kind.Table, gv schema.GroupVersion, paths object) {
	for _, k := range t.GroupVersion(gv.Group, gv.Version) {
		b.row(k, paths)
	}
}

// exchanged are the Go types of subresources that exchange another kind.
var exchanged = map[string]func() any{
	"Scale":        func() any { return &autoscalingv1.Scale{} },
	"Binding":      func() any { return &corev1.Binding{} },
	"Eviction":     func() any { return &policyv1.Eviction{} },
	"TokenRequest": func() any { return &authenticationv1.TokenRequest{} },
}

func (b *builder) row(k *kind.Kind, paths object) {
	gvk := k.GVK()
	var self, list object
	if k.Custom {
		self, list = b.custom(k)
	} else {
		self = b.add(k.New(), gvk)
	}
	if k.NewList != nil && !k.Custom {
		lgvk := gvk
		lgvk.Kind += "List"
		list = b.add(k.NewList(), lgvk)
	}
	has := func(verb string) bool {
		if len(k.Verbs) == 0 {
			return true
		}
		for _, v := range k.Verbs {
			if v == verb {
				return true
			}
		}
		return false
	}
	base := "/" + Path(gvk.GroupVersion())
	namespaced := k.Scope == kind.Namespaced
	collection, scope := base+"/"+k.Plural, ""
	if namespaced {
		if has("list") {
			paths[base+"/"+k.Plural] = object{"get": b.op(k, gvk, "list", "list", "ForAllNamespaces", "", nil, list, listParameters), "parameters": b.params(prettyParameter)}
		}
		collection, scope = base+"/namespaces/{namespace}/"+k.Plural, "Namespaced"
	}
	c := object{"parameters": b.params(pathParameters(namespaced, "", k.Kind)...)}
	if has("list") {
		c["get"] = b.op(k, gvk, "list", "list", scope, "", nil, list, listParameters)
	}
	if has("create") {
		c["post"] = b.op(k, gvk, "create", "post", scope, "", self, self, writeParameters)
	}
	if has("deletecollection") {
		c["delete"] = b.op(k, gvk, "deleteCollection", "deletecollection", scope, "", b.add(&metav1.DeleteOptions{}), b.add(&metav1.Status{}), listParameters)
	}
	paths[collection] = c
	if k.Virtual && k.Computed == nil {
		return
	}
	item := object{"parameters": b.params(pathParameters(namespaced, "{name}", k.Kind)...)}
	if has("get") {
		item["get"] = b.op(k, gvk, "read", "get", scope, "", nil, self, nil)
	}
	if has("update") {
		item["put"] = b.op(k, gvk, "replace", "put", scope, "", self, self, writeParameters)
	}
	if has("patch") {
		item["patch"] = b.op(k, gvk, "patch", "patch", scope, "", b.add(&metav1.Patch{}), self, patchParameters)
	}
	if has("delete") {
		item["delete"] = b.op(k, gvk, "delete", "delete", scope, "", b.add(&metav1.DeleteOptions{}), b.add(&metav1.Status{}), deleteParameters)
	}
	paths[collection+"/{name}"] = item
	door := func(name string, gvk schema.GroupVersionKind, body object, verbs ...string) {
		p := object{"parameters": b.params(pathParameters(namespaced, "{name}", k.Kind)...)}
		for _, v := range verbs {
			switch v {
			case "get":
				p["get"] = b.op(k, gvk, "read", "get", scope, name, nil, body, nil)
			case "update":
				p["put"] = b.op(k, gvk, "replace", "put", scope, name, body, body, writeParameters)
			case "patch":
				p["patch"] = b.op(k, gvk, "patch", "patch", scope, name, b.add(&metav1.Patch{}), body, patchParameters)
			case "create":
				p["post"] = b.op(k, gvk, "create", "post", scope, name, body, body, writeParameters)
			}
		}
		paths[collection+"/{name}/"+name] = p
	}
	if k.Status != nil {
		door("status", gvk, self, "get", "update", "patch")
	}
	if k.Scale != nil {
		sgvk := schema.GroupVersionKind{Group: "autoscaling", Version: "v1", Kind: "Scale"}
		door("scale", sgvk, b.add(exchanged["Scale"](), sgvk), "get", "update", "patch")
	}
	for _, s := range k.Subresources {
		sgvk := schema.GroupVersionKind{Group: s.Group, Version: s.Version, Kind: s.Kind}
		if s.Version == "" {
			sgvk.Group, sgvk.Version = k.Group, k.Version
		}
		if s.Kind == k.Kind && s.Name != "log" {
			door(s.Name, sgvk, self, s.Verbs...)
			continue
		}
		if f := exchanged[s.Kind]; f != nil {
			door(s.Name, sgvk, b.add(f(), sgvk), s.Verbs...)
			continue
		}
		// Streams and proxies answer with what is behind them.
		p := object{"parameters": b.params(pathParameters(namespaced, "{name}", k.Kind)...)}
		for _, v := range s.Verbs {
			method := map[string]string{"get": "get", "create": "post", "update": "put", "patch": "patch", "delete": "delete"}[v]
			if method != "" {
				o := b.op(k, sgvk, "connect"+title(method), "connect", scope, s.Name, nil, object{"type": "string"}, nil)
				p[method] = o
			}
		}
		paths[collection+"/{name}/"+s.Name] = p
	}
}

// parameter of a request.
type parameter struct {
	name, in, typ, doc string
	required           bool
}

var (
	prettyParameter = parameter{"pretty", "query", "string", "If 'true', then the output is pretty printed. Defaults to 'false' unless the user-agent indicates a browser or command-line HTTP tool (curl and wget).", false}
	listParameters  = optionParameters(metav1.ListOptions{}.SwaggerDoc(), "allowWatchBookmarks:boolean", "continue:string", "fieldSelector:string", "labelSelector:string",
		"limit:integer", "resourceVersion:string", "resourceVersionMatch:string", "sendInitialEvents:boolean", "timeoutSeconds:integer", "watch:boolean")
	writeParameters  = optionParameters(metav1.CreateOptions{}.SwaggerDoc(), "dryRun:string", "fieldManager:string", "fieldValidation:string")
	patchParameters  = optionParameters(metav1.PatchOptions{}.SwaggerDoc(), "dryRun:string", "fieldManager:string", "fieldValidation:string", "force:boolean")
	deleteParameters = optionParameters(metav1.DeleteOptions{}.SwaggerDoc(), "dryRun:string", "gracePeriodSeconds:integer", "orphanDependents:boolean", "propagationPolicy:string")
)

func optionParameters(docs map[string]string, specs ...string) []parameter {
	var out []parameter
	for _, s := range specs {
		n, typ, _ := strings.Cut(s, ":")
		out = append(out, parameter{name: n, in: "query", typ: typ, doc: docs[n]})
	}
	return out
}

func pathParameters(namespaced bool, item, kindName string) []parameter {
	var out []parameter
	if item != "" {
		out = append(out, parameter{"name", "path", "string", "name of the " + kindName, true})
	}
	if namespaced {
		out = append(out, parameter{"namespace", "path", "string", "object name and auth scope, such as for teams and projects", true})
	}
	return append(out, prettyParameter)
}

func (b *builder) params(list ...parameter) []any {
	sort.SliceStable(list, func(i, j int) bool { return list[i].name < list[j].name })
	out := make([]any, 0, len(list))
	for _, p := range list {
		o := object{"name": p.name, "in": p.in, "description": p.doc}
		if p.required {
			o["required"] = true
		}
		if b.v3 {
			o["schema"] = object{"type": p.typ, "uniqueItems": true}
		} else {
			o["type"], o["uniqueItems"] = p.typ, true
		}
		out = append(out, o)
	}
	return out
}

func title(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

// op is one operation.
func (b *builder) op(k *kind.Kind, gvk schema.GroupVersionKind, deed, action, scope, sub string, body, answer object, params []parameter) object {
	group := k.Group
	if group == "" {
		group = "core"
	}
	group, _, _ = strings.Cut(group, ".")
	id := deed + title(group) + title(k.Version)
	all := ""
	if scope == "ForAllNamespaces" {
		all = scope
	} else {
		id += scope
	}
	id += k.Kind + title(sub) + all
	tag := group + "_" + k.Version
	o := object{"operationId": id, "tags": []string{tag}, "description": fmt.Sprintf("%s the specified %s", deed, k.Kind),
		"x-kubernetes-action": action, "x-kubernetes-group-version-kind": gvkObject(gvk)}
	if sub != "" {
		o["description"] = fmt.Sprintf("%s %s of the specified %s", deed, sub, k.Kind)
	}
	accepts, mediaTypes := mediaTypes, mediaTypes
	if k.Custom && gvk.Group == k.Group {
		mediaTypes = mediaTypes[:2]
		accepts = mediaTypes
	}
	if action == "patch" {
		if accepts = patchTypes; k.Custom {
			accepts = patchTypes[:3] // no strategic merge
		}
	}
	ps := b.params(append([]parameter(nil), params...)...)
	codes := object{"401": object{"description": "Unauthorized"}}
	ok := func(code, text string) {
		if b.v3 {
			content := object{}
			for _, m := range mediaTypes {
				content[m] = object{"schema": answer}
			}
			codes[code] = object{"description": text, "content": content}
		} else {
			codes[code] = object{"description": text, "schema": answer}
		}
	}
	ok("200", "OK")
	switch action {
	case "post":
		ok("201", "Created")
		ok("202", "Accepted")
	case "put", "patch":
		ok("201", "Created")
	case "delete":
		ok("202", "Accepted")
	}
	o["responses"] = codes
	switch {
	case body != nil && b.v3:
		content := object{}
		if action == "patch" {
			for _, m := range accepts {
				content[m] = object{"schema": body}
			}
		} else {
			content["*/*"] = object{"schema": body}
		}
		rb := object{"content": content}
		if !strings.HasPrefix(action, "delete") {
			rb["required"] = true
		}
		o["requestBody"] = rb
	case body != nil:
		p := object{"name": "body", "in": "body", "schema": body}
		if !strings.HasPrefix(action, "delete") {
			p["required"] = true
		}
		ps = append([]any{p}, ps...)
	}
	if len(ps) > 0 {
		o["parameters"] = ps
	}
	if !b.v3 {
		o["consumes"], o["produces"], o["schemes"] = []string{"*/*"}, mediaTypes, []string{"https"}
		if action == "patch" {
			o["consumes"] = accepts
		}
	}
	return o
}

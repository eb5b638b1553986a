package crd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"proa.dev/apiserver/extend/hook"
	"proa.dev/kind"
)

// conversionTimeout of one call of a conversion webhook: upstream's 30 seconds.
const conversionTimeout = 30 * time.Second

// maxBatch bounds how many objects one conversion review carries, so that a large
// list does not become a body that webhooks refuse.
const maxBatch = 500

// fromStored gives a stored object in this version, pruned and defaulted. It is the
// object itself when nothing has to be changed.
func (v *Version) fromStored(o kind.Object) (kind.Object, error) {
	out, err := v.fromStoredList([]kind.Object{o})
	if err != nil {
		return nil, err
	}
	return out[0], nil
}

func (v *Version) fromStoredList(objects []kind.Object) ([]kind.Object, error) {
	c, err := v.schema()
	if err != nil {
		return nil, err
	}
	want := v.def.apiVersion(v.spec.Name)
	out := objects
	var convert []*unstructured.Unstructured
	var at []int
	for i, o := range objects {
		u := object(o)
		from := u.GetAPIVersion()
		if from == want && o.GetGeneration() > 0 && (c.preserve || isComplete(u.Object, c.structural, true)) {
			continue
		}
		if len(convert) == 0 && sameSlice(out, objects) {
			out = append([]kind.Object(nil), objects...)
		}
		u = u.DeepCopy()
		if from != want {
			old := v.def.version(from)
			if old == nil {
				return nil, fmt.Errorf("request to convert CR from an invalid group/version: %s", from)
			}
			if _, err := old.coerce(u, false, true); err != nil {
				return nil, err
			}
			old.complete(u)
			convert, at = append(convert, u), append(at, i)
			continue
		}
		if _, err := v.coerce(u, false, true); err != nil {
			return nil, err
		}
		v.complete(u)
		out[i] = u
	}
	if len(convert) == 0 {
		return out, nil
	}
	converted, err := v.def.convert(convert, v)
	if err != nil {
		return nil, err
	}
	for n, u := range converted {
		if _, err := v.coerce(u, false, true); err != nil {
			return nil, err
		}
		v.complete(u)
		out[at[n]] = u
	}
	return out, nil
}

func sameSlice(a, b []kind.Object) bool { return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0]) }

// toStored gives an object in the storage version: the object itself when that is
// its own.
func (v *Version) toStored(o kind.Object) (kind.Object, error) {
	u := object(o)
	storage := v.def.storage()
	if storage == nil {
		return nil, fmt.Errorf("store %s %q: the definition has no storage version", v.def.crd.Name, o.GetName())
	}
	from := u.GetAPIVersion()
	if from == v.def.apiVersion(storage.spec.Name) {
		return o, nil
	}
	if v.def.version(from) == nil {
		return nil, fmt.Errorf("request to convert CR from an invalid group/version: %s", from)
	}
	out, err := v.def.convert([]*unstructured.Unstructured{u.DeepCopy()}, storage)
	if err != nil {
		return nil, err
	}
	if _, err := storage.coerce(out[0], false, false); err != nil {
		return nil, err
	}
	return out[0], nil
}

// convert turns objects, which are the caller's to give away, into version to.
// They may be in different versions.
func (d *definition) convert(objects []*unstructured.Unstructured, to *Version) ([]*unstructured.Unstructured, error) {
	want := d.apiVersion(to.spec.Name)
	c := d.crd.Spec.Conversion
	if c == nil || c.Strategy == apiextensionsv1.NoneConverter || c.Strategy == "" {
		for _, u := range objects {
			u.SetAPIVersion(want)
		}
		return objects, nil
	}
	if c.Webhook == nil || c.Webhook.ClientConfig == nil {
		return nil, fmt.Errorf("conversion of %s: the definition names no webhook", d.crd.Name)
	}
	for i := 0; i < len(objects); i += maxBatch {
		part := objects[i:min(i+maxBatch, len(objects))]
		converted, err := d.callWebhook(part, want)
		if err != nil {
			return nil, err
		}
		copy(part, converted)
	}
	return objects, nil
}

// review is a ConversionReview in v1, whose form v1beta1 shares.
type review struct {
	metav1.TypeMeta `json:",inline"`
	Request         *request  `json:"request,omitempty"`
	Response        *response `json:"response,omitempty"`
}

type request struct {
	UID               types.UID        `json:"uid"`
	DesiredAPIVersion string           `json:"desiredAPIVersion"`
	Objects           []map[string]any `json:"objects"`
}

type response struct {
	UID              types.UID         `json:"uid"`
	ConvertedObjects []json.RawMessage `json:"convertedObjects"`
	Result           metav1.Status     `json:"result"`
}

func (d *definition) callWebhook(objects []*unstructured.Unstructured, want string) ([]*unstructured.Unstructured, error) {
	w := d.crd.Spec.Conversion.Webhook
	gvk := objects[0].GroupVersionKind()
	failed := func(err error) error { return fmt.Errorf("conversion webhook for %v failed: %w", gvk, err) }
	reviewVersion := ""
	for _, v := range w.ConversionReviewVersions {
		if v == "v1" || v == "v1beta1" {
			reviewVersion = "apiextensions.k8s.io/" + v
			break
		}
	}
	if reviewVersion == "" {
		return nil, failed(errors.New("no supported conversion review versions"))
	}
	if d.reg.cfg.Caller == nil {
		return nil, failed(errors.New("this server calls no webhooks"))
	}
	r := review{TypeMeta: metav1.TypeMeta{APIVersion: reviewVersion, Kind: "ConversionReview"}, Request: &request{DesiredAPIVersion: want}}
	if d.reg.cfg.UID != nil {
		r.Request.UID = d.reg.cfg.UID()
	}
	for _, u := range objects {
		r.Request.Objects = append(r.Request.Objects, u.Object)
	}
	body, err := json.Marshal(r)
	if err != nil {
		return nil, failed(err)
	}
	t := hook.Target{CABundle: w.ClientConfig.CABundle}
	if w.ClientConfig.URL != nil {
		t.URL = *w.ClientConfig.URL
	}
	if s := w.ClientConfig.Service; s != nil {
		t.Service = &hook.Service{Namespace: s.Namespace, Name: s.Name}
		if s.Path != nil {
			t.Service.Path = *s.Path
		}
		if s.Port != nil {
			t.Service.Port = *s.Port
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), conversionTimeout)
	defer cancel()
	data, err := d.reg.cfg.Caller.Post(ctx, t, body)
	if err != nil {
		return nil, failed(err)
	}
	var answer review
	if err := utiljson.Unmarshal(data, &answer); err != nil {
		return nil, failed(err)
	}
	switch {
	case answer.APIVersion != reviewVersion || answer.Kind != "ConversionReview":
		return nil, failed(fmt.Errorf("expected webhook response of %v, got %v", r.GroupVersionKind(), answer.GroupVersionKind()))
	case answer.Response == nil:
		return nil, failed(errors.New("no response provided"))
	case reviewVersion == "apiextensions.k8s.io/v1" && answer.Response.UID != r.Request.UID:
		return nil, failed(fmt.Errorf("expected response.uid=%q, got %q", r.Request.UID, answer.Response.UID))
	case answer.Response.Result.Status != metav1.StatusSuccess && answer.Response.Result.Message != "":
		return nil, failed(errors.New(answer.Response.Result.Message))
	case answer.Response.Result.Status != metav1.StatusSuccess:
		return nil, failed(fmt.Errorf("response.result.status was '%s', not 'Success'", answer.Response.Result.Status))
	case len(answer.Response.ConvertedObjects) != len(objects):
		return nil, fmt.Errorf("conversion webhook for %v returned %d objects, expected %d", gvk, len(answer.Response.ConvertedObjects), len(objects))
	}
	out := make([]*unstructured.Unstructured, len(objects))
	for i, raw := range answer.Response.ConvertedObjects {
		if out[i], err = accept(objects[i], raw, want); err != nil {
			return nil, fmt.Errorf("conversion webhook for %v returned invalid %w", gvk, at(err, i, len(objects)))
		}
	}
	return out, nil
}

func at(err error, i, n int) error {
	if n == 1 {
		return fmt.Errorf("object: %w", err)
	}
	return fmt.Errorf("converted object at index %v: %w", i, err)
}

// accept checks what a webhook made of an object: identity and metadata but labels
// and annotations stay as they were.
func accept(in *unstructured.Unstructured, raw []byte, want string) (*unstructured.Unstructured, error) {
	out := new(unstructured.Unstructured)
	if err := utiljson.Unmarshal(raw, &out.Object); err != nil {
		return nil, err
	}
	switch {
	case out.GetAPIVersion() != want:
		return nil, fmt.Errorf("invalid groupVersion (expected %v, received %v)", want, out.GetAPIVersion())
	case out.GetKind() != in.GetKind():
		return nil, fmt.Errorf("invalid kind (expected %v, received %v)", in.GetKind(), out.GetKind())
	case out.GetName() != in.GetName():
		return nil, fmt.Errorf("must have the same name: %v != %v", in.GetName(), out.GetName())
	case out.GetNamespace() != in.GetNamespace():
		return nil, fmt.Errorf("must have the same namespace: %v != %v", in.GetNamespace(), out.GetNamespace())
	case out.GetUID() != in.GetUID():
		return nil, fmt.Errorf("must have the same UID: %v != %v", in.GetUID(), out.GetUID())
	}
	x, ok := out.Object["metadata"]
	if !ok {
		return nil, errors.New("missing metadata in converted object")
	}
	given, ok := x.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("invalid metadata of type %T in converted object", x)
	}
	kept, _ := in.Object["metadata"].(map[string]any)
	meta, _ := runtime.DeepCopyJSONValue(kept).(map[string]any)
	if meta == nil {
		meta = map[string]any{}
	}
	for _, name := range []string{"labels", "annotations"} {
		f, ok := given[name]
		if !ok || f == nil {
			delete(meta, name)
			continue
		}
		m, ok := f.(map[string]any)
		if !ok {
			return nil, fmt.Errorf("invalid metadata.%s of type %T in converted object", name, f)
		}
		texts := make(map[string]string, len(m))
		for k, e := range m {
			s, ok := e.(string)
			if !ok {
				return nil, fmt.Errorf("metadata.%s[%s] must be a string, but is %T in converted object", name, k, e)
			}
			texts[k] = s
		}
		if old, _ := meta[name].(map[string]any); !maps.EqualFunc(old, m, func(a, b any) bool { return a == b }) {
			var errs field.ErrorList
			if name == "labels" {
				errs = metav1validation.ValidateLabels(texts, field.NewPath("metadata", "labels"))
			} else {
				errs = apivalidation.ValidateAnnotations(texts, field.NewPath("metadata", "annotation"))
			}
			if len(errs) > 0 {
				return nil, errs.ToAggregate()
			}
		}
		meta[name] = m
	}
	out.Object["metadata"] = meta
	return out, nil
}

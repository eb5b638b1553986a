package envtest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/yaml"
	sigyaml "sigs.k8s.io/yaml"

	"proa.dev/kind"
)

var definition = schema.GroupKind{Group: "apiextensions.k8s.io", Kind: "CustomResourceDefinition"}

// install creates what the options name, and waits for the kinds of definitions.
func (cp *ControlPlane) install(ctx context.Context, o *options) error {
	crds, err := read(o.crds, func(gk schema.GroupKind) bool { return gk == definition })
	if err != nil {
		return err
	}
	others, err := read(o.manifests, func(schema.GroupKind) bool { return true })
	if err != nil {
		return err
	}
	var objects []document
	for _, obj := range o.objects {
		d, err := typed(obj)
		if err != nil {
			return err
		}
		objects = append(objects, d)
	}
	for _, d := range crds {
		if err := cp.create(ctx, d); err != nil {
			return err
		}
	}
	if err := cp.established(ctx, crds); err != nil {
		return err
	}
	for _, d := range slices.Concat(others, objects) {
		if err := cp.create(ctx, d); err != nil {
			return err
		}
		if d.gvk.GroupKind() == definition {
			if err := cp.established(ctx, []document{d}); err != nil {
				return err
			}
		}
	}
	return nil
}

// document is one object that is to be made.
type document struct {
	from string // for errors
	gvk  schema.GroupVersionKind
	data []byte // YAML or JSON
}

func (cp *ControlPlane) create(ctx context.Context, d document) error {
	k := cp.server.View.Table().ByKind(d.gvk)
	if k == nil {
		return fmt.Errorf("create the %s of %s: the control plane does not serve this kind; install its CustomResourceDefinition with CRDs", d.gvk, d.from)
	}
	o := k.New()
	if err := sigyaml.Unmarshal(d.data, o); err != nil {
		return fmt.Errorf("read the %s of %s: %w", d.gvk.Kind, d.from, err)
	}
	if k.Scope == kind.Namespaced && o.GetNamespace() == "" {
		o.SetNamespace(metav1.NamespaceDefault)
	}
	if _, err := cp.server.Admin().Create(ctx, k, o, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("create the %s %q of %s: %w", d.gvk.Kind, o.GetName(), d.from, err)
	}
	return nil
}

// established waits until all served versions of definitions are served.
func (cp *ControlPlane) established(ctx context.Context, crds []document) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for _, d := range crds {
		var def struct {
			Metadata metav1.ObjectMeta
			Spec     struct {
				Group    string
				Names    struct{ Kind string }
				Versions []struct {
					Name   string
					Served bool
				}
			}
		}
		if err := sigyaml.Unmarshal(d.data, &def); err != nil {
			return fmt.Errorf("read the definition of %s: %w", d.from, err)
		}
		for _, v := range def.Spec.Versions {
			for v.Served {
				_, moved := cp.server.View.Moved()
				if cp.server.View.Table().ByKind(schema.GroupVersionKind{Group: def.Spec.Group, Version: v.Name, Kind: def.Spec.Names.Kind}) != nil {
					break
				}
				select {
				case <-moved:
				case <-cp.ended:
					return errors.New("the control plane has ended")
				case <-ctx.Done():
					return fmt.Errorf("wait until %s/%s %s of the definition %q is served: %w; its status says why it is not", def.Spec.Group, v.Name, def.Spec.Names.Kind, def.Metadata.Name, ctx.Err())
				}
			}
		}
	}
	return nil
}

// typed turns an object of a Go type into a document.
func typed(obj any) (document, error) {
	data, err := json.Marshal(obj)
	if err != nil {
		return document{}, fmt.Errorf("encode %T of Objects: %w", obj, err)
	}
	d := document{from: fmt.Sprintf("Objects (%T)", obj), data: data}
	ro, ok := obj.(runtime.Object)
	if !ok {
		return d, fmt.Errorf("create %T of Objects: it is no Kubernetes object; pass pointers to typed objects", obj)
	}
	d.gvk = ro.GetObjectKind().GroupVersionKind()
	if d.gvk.Kind == "" {
		for _, k := range kind.All.Rows() {
			if same(k.New(), ro) {
				d.gvk = k.GVK()
				break
			}
		}
	}
	if d.gvk.Kind == "" {
		return d, fmt.Errorf("create %T of Objects: apiVersion and kind are not set, and the type is not a built-in one", obj)
	}
	return d, nil
}

func same(a, b any) bool { return reflect.TypeOf(a) == reflect.TypeOf(b) }

// read takes the objects that count out of files and directories, in the order of
// names.
func read(paths []string, counts func(schema.GroupKind) bool) ([]document, error) {
	var out []document
	for _, p := range paths {
		files, err := filesOf(p)
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			data, err := os.ReadFile(f)
			if err != nil {
				return nil, err
			}
			docs, err := split(f, data)
			if err != nil {
				return nil, err
			}
			for _, d := range docs {
				if counts(d.gvk.GroupKind()) {
					out = append(out, d)
				}
			}
		}
	}
	return out, nil
}

func filesOf(path string) ([]string, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("find manifests: %w", err)
	}
	if !st.IsDir() {
		return []string{path}, nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, fmt.Errorf("find manifests: %w", err)
	}
	var out []string
	for _, e := range entries {
		if ext := strings.ToLower(filepath.Ext(e.Name())); !e.IsDir() && (ext == ".yaml" || ext == ".yml" || ext == ".json") {
			out = append(out, filepath.Join(path, e.Name()))
		}
	}
	return out, nil
}

// split takes a file apart: documents, and lists in them.
func split(from string, data []byte) ([]document, error) {
	var out []document
	r := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
	for {
		doc, err := r.Read()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read %q: %w", from, err)
		}
		var u unstructured.Unstructured
		if err := sigyaml.Unmarshal(doc, &u.Object); err != nil {
			return nil, fmt.Errorf("read %q: %w", from, err)
		}
		switch {
		case len(u.Object) == 0:
			continue // comments only
		case u.GetKind() == "" || u.GetAPIVersion() == "":
			// A kustomization, or values for something else.
			continue
		case u.IsList() && u.GetKind() == "List":
			list, err := u.ToList()
			if err != nil {
				return nil, fmt.Errorf("read %q: %w", from, err)
			}
			for _, item := range list.Items {
				data, err := item.MarshalJSON()
				if err != nil {
					return nil, fmt.Errorf("read %q: %w", from, err)
				}
				out = append(out, document{from, item.GroupVersionKind(), data})
			}
		default:
			out = append(out, document{from, u.GroupVersionKind(), doc})
		}
	}
}

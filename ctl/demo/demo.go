// Package demo brings an application of Deployments and Services up from its
// manifests, shows how it comes, and says what is wrong when it does not.
//
// Deploy creates what is missing and patches what is there (strategic merge), so
// that running it again is harmless and brings back what was changed by hand.
//
// Bounds: Deploy gives up after 60 seconds in which nothing changed, or 10 minutes;
// Delete after two minutes.
package demo

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"strconv"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"proa.dev/client"
	"proa.dev/kind"
)

// manager owns the fields, as managedFields show it.
const manager = "proa-demo"

// times of one run; tests take shorter ones.
type times struct {
	poll     time.Duration // between two looks
	silence  time.Duration // without a change until the reason is shown
	patience time.Duration // without a change until Deploy gives up
	whole    time.Duration
}

var usual = times{100 * time.Millisecond, 8 * time.Second, time.Minute, 10 * time.Minute}

// item is one object of the manifests.
type item struct {
	file string
	kind *kind.Kind
	obj  kind.Object
	json []byte // as written, for patches
}

func (i item) String() string { return i.kind.Singular + " " + i.obj.GetName() }

// Deploy applies the *.yaml files of manifests in the order of their names, waits
// until all Deployments are available, and returns the address of the first
// LoadBalancer Service ("http://192.0.2.2:8080/"), or nothing if there is none.
func Deploy(ctx context.Context, c client.Client, manifests fs.FS, out io.Writer) (address string, err error) {
	return deploy(ctx, c, manifests, out, usual)
}

func deploy(ctx context.Context, c client.Client, manifests fs.FS, out io.Writer, t times) (string, error) {
	items, err := read(manifests)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, t.whole, fmt.Errorf("not done after %s", t.whole))
	defer cancel()
	for _, i := range items {
		did, err := apply(ctx, c, i, t)
		if err != nil {
			return "", err
		}
		if did != "" {
			fmt.Fprintf(out, "  %s %s\n", i, did)
		}
	}
	w := &watcher{client: c, out: out, times: t, shown: map[string]string{}}
	for _, i := range items {
		if d, ok := i.obj.(*appsv1.Deployment); ok {
			w.deployments = append(w.deployments, d)
		}
	}
	if err := w.wait(ctx); err != nil {
		return "", err
	}
	for _, i := range items {
		if s, ok := i.obj.(*corev1.Service); ok && s.Spec.Type == corev1.ServiceTypeLoadBalancer {
			return serviceAddress(ctx, c, s, t)
		}
	}
	return "", nil
}

// read decodes all documents; unknown kinds and fields are errors.
func read(manifests fs.FS) ([]item, error) {
	files, err := fs.Glob(manifests, "*.yaml")
	if err != nil {
		return nil, err
	}
	var items []item
	for _, file := range files {
		data, err := fs.ReadFile(manifests, file)
		if err != nil {
			return nil, fmt.Errorf("read manifest: %w", err)
		}
		docs := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
		for {
			doc, err := docs.Read()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return nil, fmt.Errorf("read manifest %q: %w", file, err)
			}
			i, err := decode(doc)
			if err != nil {
				return nil, fmt.Errorf("read manifest %q: %w", file, err)
			}
			if i.kind != nil {
				i.file = file
				items = append(items, i)
			}
		}
	}
	if len(items) == 0 {
		return nil, errors.New("read manifests: there is no object in them")
	}
	return items, nil
}

// decode gives an item without kind for an empty document.
func decode(doc []byte) (item, error) {
	raw, err := yaml.YAMLToJSONStrict(doc)
	if err != nil {
		return item{}, err
	}
	if string(raw) == "null" {
		return item{}, nil
	}
	var t metav1.TypeMeta
	if err := json.Unmarshal(raw, &t); err != nil {
		return item{}, err
	}
	gvk := schema.FromAPIVersionAndKind(t.APIVersion, t.Kind)
	k := kind.All.ByKind(gvk)
	if k == nil {
		return item{}, fmt.Errorf("no kind %q in version %q", t.Kind, t.APIVersion)
	}
	obj := k.New()
	if err := yaml.UnmarshalStrict(doc, obj); err != nil {
		return item{}, fmt.Errorf("%s: %w", k.Singular, err)
	}
	if obj.GetName() == "" {
		return item{}, fmt.Errorf("%s without a name", k.Singular)
	}
	if k.Scope == kind.Namespaced && obj.GetNamespace() == "" {
		return item{}, fmt.Errorf("%s %q without a namespace", k.Singular, obj.GetName())
	}
	return item{kind: k, obj: obj, json: raw}, nil
}

// apply says what it did: "created", "changed", or nothing.
func apply(ctx context.Context, c client.Client, i item, t times) (string, error) {
	began := time.Now()
	for {
		did, err := applyOnce(ctx, c, i)
		// A namespace on its way out is gone soon.
		if err == nil || !terminating(err) || time.Since(began) > t.patience {
			return did, err
		}
		if err := pause(ctx, t.poll); err != nil {
			return "", fmt.Errorf("wait for the old namespace %q to go: %w", i.obj.GetNamespace(), err)
		}
	}
}

func applyOnce(ctx context.Context, c client.Client, i item) (string, error) {
	ns, name := i.obj.GetNamespace(), i.obj.GetName()
	before, err := c.Get(ctx, i.kind, ns, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		_, err = c.Create(ctx, i.kind, i.obj, metav1.CreateOptions{FieldManager: manager, FieldValidation: metav1.FieldValidationStrict})
		if err == nil {
			return "created", nil
		}
		if !apierrors.IsAlreadyExists(err) {
			return "", fmt.Errorf("create %s: %w", i, err)
		}
		before, err = c.Get(ctx, i.kind, ns, name, metav1.GetOptions{})
	}
	if err != nil {
		return "", fmt.Errorf("look for %s: %w", i, err)
	}
	if before.GetDeletionTimestamp() != nil {
		return "", fmt.Errorf("apply %s: %w", i, errTerminating)
	}
	after, err := c.Patch(ctx, i.kind, ns, name, types.StrategicMergePatchType, i.json, "", metav1.PatchOptions{FieldManager: manager})
	if err != nil {
		return "", fmt.Errorf("change %s: %w", i, err)
	}
	if after.GetResourceVersion() == before.GetResourceVersion() {
		return "", nil
	}
	return "changed", nil
}

var errTerminating = errors.New("it is being deleted; try again in a moment")

func terminating(err error) bool {
	return errors.Is(err, errTerminating) || apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause)
}

// serviceAddress waits until the load balancer has given an address.
func serviceAddress(ctx context.Context, c client.Client, want *corev1.Service, t times) (string, error) {
	began := time.Now()
	for {
		obj, err := c.Get(ctx, kind.Service, want.Namespace, want.Name, metav1.GetOptions{})
		if err != nil {
			return "", fmt.Errorf("look for service %q: %w", want.Name, err)
		}
		s := obj.(*corev1.Service)
		for _, in := range s.Status.LoadBalancer.Ingress {
			if host := in.IP + in.Hostname; host != "" && len(s.Spec.Ports) > 0 {
				return "http://" + net.JoinHostPort(host, strconv.Itoa(int(s.Spec.Ports[0].Port))) + "/", nil
			}
		}
		if time.Since(began) > t.patience {
			return "", fmt.Errorf("service %q: it has no address after %s; is there a node with an address? see `kubectl -n %s describe service %s`", s.Name, t.patience, s.Namespace, s.Name)
		}
		if err := pause(ctx, t.poll); err != nil {
			return "", fmt.Errorf("wait for the address of service %q: %w", s.Name, err)
		}
	}
}

// Delete removes the namespaces in the manifests with everything in them, and the
// objects that are in no namespace of the manifests, and waits until they are gone.
func Delete(ctx context.Context, c client.Client, manifests fs.FS, out io.Writer) error {
	return remove(ctx, c, manifests, out, usual.poll, 2*time.Minute)
}

func remove(ctx context.Context, c client.Client, manifests fs.FS, out io.Writer, poll, bound time.Duration) error {
	items, err := read(manifests)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, bound, fmt.Errorf("not gone after %s", bound))
	defer cancel()
	own := map[string]bool{}
	for _, i := range items {
		if i.kind == kind.Namespace {
			own[i.obj.GetName()] = true
		}
	}
	var waits []item
	for n := len(items) - 1; n >= 0; n-- {
		i := items[n]
		if own[i.obj.GetNamespace()] {
			continue
		}
		policy := metav1.DeletePropagationBackground
		err := c.Delete(ctx, i.kind, i.obj.GetNamespace(), i.obj.GetName(), metav1.DeleteOptions{PropagationPolicy: &policy})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil && !apierrors.IsConflict(err) { // a conflict: it is on its way
			return fmt.Errorf("delete %s: %w", i, err)
		}
		waits = append(waits, i)
	}
	if len(waits) == 0 {
		fmt.Fprintln(out, "  there was nothing to delete")
	}
	for _, i := range waits {
		for {
			_, err := c.Get(ctx, i.kind, i.obj.GetNamespace(), i.obj.GetName(), metav1.GetOptions{})
			if apierrors.IsNotFound(err) {
				fmt.Fprintf(out, "  %s deleted\n", i)
				break
			}
			if err == nil {
				err = pause(ctx, poll)
			}
			if err != nil {
				if ctx.Err() != nil {
					err = context.Cause(ctx)
				}
				return fmt.Errorf("wait for %s to go: %w%s", i, err, left(c, i))
			}
		}
	}
	return nil
}

// left says what keeps a namespace.
func left(c client.Client, i item) string {
	if i.kind != kind.Namespace {
		return ""
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	pods, err := c.List(ctx, kind.Pod, i.obj.GetName(), metav1.ListOptions{})
	if err != nil {
		return ""
	}
	return fmt.Sprintf("; %d pods are left in it: see `kubectl -n %s get all`", len(pods.Items), i.obj.GetName())
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Images returns the images that the manifests name, each once.
func Images(manifests fs.FS) ([]string, error) {
	items, err := read(manifests)
	if err != nil {
		return nil, err
	}
	var images []string
	seen := map[string]bool{}
	for _, i := range items {
		d, ok := i.obj.(*appsv1.Deployment)
		if !ok {
			continue
		}
		spec := &d.Spec.Template.Spec
		for _, ct := range append(spec.InitContainers[:len(spec.InitContainers):len(spec.InitContainers)], spec.Containers...) {
			if !seen[ct.Image] {
				seen[ct.Image] = true
				images = append(images, ct.Image)
			}
		}
	}
	return images, nil
}

package apiserver

import (
	"context"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"unicode"

	authenticationv1 "k8s.io/api/authentication/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"proa.dev/client/wire"
	"proa.dev/kind"
)

func invalidInclude(p metav1.IncludeObjectPolicy) error {
	return apierrors.NewBadRequest(field.NotSupported(field.NewPath("includeObject"), p, []string{
		string(metav1.IncludeMetadata), string(metav1.IncludeNone), string(metav1.IncludeObject)}).Error())
}

// serveResource carries out one request on a resource that is served.
func (q *request) serveResource(ctx context.Context) error {
	c := q.call()
	switch c.sub {
	case "":
		return q.serveMain(ctx, c)
	case "log", "exec", "attach", "portforward", "proxy":
		return q.serveConnect(ctx, c)
	case "scale":
		return q.serveScale(ctx, c)
	}
	if err := q.negotiate(q.route.verb == "get"); err != nil {
		return err
	}
	switch q.route.verb {
	case "get":
		return q.serveGet(ctx, c)
	case "update":
		return q.serveUpdate(ctx, c)
	case "patch":
		return q.servePatch(ctx, c)
	case "create":
		return q.servePost(ctx, c)
	}
	return errMethod
}

func (q *request) serveMain(ctx context.Context, c *call) error {
	if q.route.verb == "watch" {
		return q.serveWatch(ctx, c)
	}
	if err := q.negotiate(true); err != nil {
		return err
	}
	switch q.route.verb {
	case "get":
		return q.serveGet(ctx, c)
	case "list":
		c.name = ""
		o, err := q.listOptions()
		if err != nil {
			return err
		}
		l, err := q.s.list(ctx, c, o)
		if err != nil {
			return err
		}
		return q.sendList(http.StatusOK, c.kind, l)
	case "create":
		return q.serveCreate(ctx, c)
	case "update":
		return q.serveUpdate(ctx, c)
	case "patch":
		return q.servePatch(ctx, c)
	case "delete":
		return q.serveDelete(ctx, c)
	case "deletecollection":
		c.name = ""
		lo, err := q.listOptions()
		if err != nil {
			return err
		}
		o, err := q.deleteOptions()
		if err != nil {
			return err
		}
		l, err := q.s.deleteCollection(ctx, c, o, lo)
		if err != nil {
			return err
		}
		return q.sendList(http.StatusOK, c.kind, l)
	}
	return errMethod
}

// manager is who changes fields: as named, or the first word of the client's name.
func (q *request) manager() string {
	if m := q.query.Get("fieldManager"); m != "" || strings.HasPrefix(q.r.Header.Get("Content-Type"), string(types.ApplyYAMLPatchType)) {
		return m
	}
	name, _, _ := strings.Cut(q.r.UserAgent(), "/")
	name = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return -1
	}, name)
	return name[:min(len(name), metav1validation.FieldManagerMaxLength)]
}

func (q *request) serveGet(ctx context.Context, c *call) error {
	obj, err := q.s.get(ctx, c, metav1.GetOptions{ResourceVersion: q.query.Get("resourceVersion")})
	if err != nil {
		return err
	}
	return q.sendObject(http.StatusOK, c.kind, obj)
}

// decode reads the body into obj, which is expected to be gvk. Unknown and
// duplicate fields are warned about, refused or ignored as fieldValidation says.
func (q *request) decode(obj runtime.Object, gvk schema.GroupVersionKind, validation string) error {
	f, err := q.bodyFormat()
	if err != nil {
		return err
	}
	if _, ok := obj.(wire.Proto); !ok && f == wire.Protobuf {
		return unsupportedBody(wire.JSONType + ", " + wire.YAMLType)
	}
	data, done, err := q.body()
	if err != nil {
		return err
	}
	defer done()
	d, err := wire.Decode(f, data, obj, validation != metav1.FieldValidationIgnore)
	if err != nil {
		if d.GVK.Kind != "" {
			return apierrors.NewBadRequest(fmt.Sprintf("%s in version %q cannot be handled as a %s: %v", d.GVK.Kind, d.GVK.Version, gvk.Kind, err))
		}
		return apierrors.NewBadRequest(fmt.Sprintf("the object provided is unrecognized (must be of type %s): %v (%s)", gvk.Kind, err, summary(data)))
	}
	got := d.GVK
	if got.Kind == "" {
		got.Kind = gvk.Kind
	}
	if got.Version == "" {
		got.Group, got.Version = gvk.Group, gvk.Version
	}
	switch {
	case got.GroupVersion() != gvk.GroupVersion():
		return apierrors.NewBadRequest(fmt.Sprintf("the API version in the data (%s) does not match the expected API version (%s)", got.GroupVersion(), gvk.GroupVersion()))
	case got.Kind != gvk.Kind:
		return apierrors.NewBadRequest(fmt.Sprintf("%s in version %q cannot be handled as a %s: converting (%s) to (%s): unknown conversion", got.Kind, got.Version, gvk.Kind, got.Kind, gvk.Kind))
	}
	obj.GetObjectKind().SetGroupVersionKind(gvk)
	if k := q.route.kind; k != nil && k.Coerce != nil && gvk == k.GVK() {
		if custom, ok := obj.(kind.Object); ok {
			more, err := coerce(k, custom, validation != metav1.FieldValidationIgnore)
			if err != nil {
				return err
			}
			d.Strict = append(d.Strict, more...)
		}
	}
	q.entry.Object(obj)
	if len(d.Strict) > 0 {
		if validation == metav1.FieldValidationStrict {
			return apierrors.NewBadRequest(fmt.Sprintf("%s in version %q cannot be handled as a %s: %v", gvk.Kind, gvk.Version, gvk.Kind, runtime.NewStrictDecodingError(d.Strict)))
		}
		for _, e := range d.Strict {
			q.warn(e.Error())
		}
	}
	return nil
}

// summary shows the beginning of a body in an error.
func summary(data []byte) string {
	const limit = 30
	switch {
	case len(data) == 0:
		return "<empty>"
	case data[0] == '{':
		if len(data) > limit {
			return string(data[:limit]) + " ..."
		}
		return string(data)
	case len(data) > limit:
		return fmt.Sprintf("%x ...", data[:limit])
	}
	return fmt.Sprintf("%x", data)
}

func (q *request) serveCreate(ctx context.Context, c *call) error {
	o := metav1.CreateOptions{DryRun: q.query["dryRun"], FieldManager: q.manager(), FieldValidation: q.query.Get("fieldValidation")}
	if err := checkCreate(o); err != nil {
		return err
	}
	if c.kind.Root() == kind.Binding {
		return q.serveBindings(ctx, c)
	}
	obj := c.kind.New()
	if err := q.decode(obj, c.kind.GVK(), o.FieldValidation); err != nil {
		return err
	}
	var out kind.Object
	var err error
	if c.kind.Virtual {
		if err := checkNamespace(c, obj); err != nil {
			return err
		}
		out, err = q.s.answer(ctx, c, obj)
	} else {
		out, err = q.s.create(ctx, c, obj, o)
	}
	if err != nil {
		return err
	}
	return q.sendObject(http.StatusCreated, c.kind, out)
}

// serveBindings is the old way to bind: create in the bindings resource.
func (q *request) serveBindings(ctx context.Context, c *call) error {
	b := new(corev1.Binding)
	if err := q.decode(b, c.kind.GVK(), q.query.Get("fieldValidation")); err != nil {
		return err
	}
	if err := checkNamespace(c, b); err != nil {
		return err
	}
	through := *c
	through.name = b.Name
	out, err := q.s.bind(ctx, &through, b, q.query["dryRun"])
	if err != nil {
		return err
	}
	return q.send(http.StatusCreated, out, statusGVK)
}

func (q *request) serveUpdate(ctx context.Context, c *call) error {
	o := metav1.UpdateOptions{DryRun: q.query["dryRun"], FieldManager: q.manager(), FieldValidation: q.query.Get("fieldValidation")}
	if err := checkUpdate(o); err != nil {
		return err
	}
	obj := c.kind.New()
	if err := q.decode(obj, c.kind.GVK(), o.FieldValidation); err != nil {
		return err
	}
	out, created, err := q.s.update(ctx, c, obj, o)
	if err != nil {
		return err
	}
	return q.sendObject(madeCode(created), c.kind, out)
}

func madeCode(created bool) int {
	if created {
		return http.StatusCreated
	}
	return http.StatusOK
}

func (q *request) patchBody() (t types.PatchType, data []byte, o metav1.PatchOptions, done func(), err error) {
	o = metav1.PatchOptions{DryRun: q.query["dryRun"], FieldManager: q.manager(), FieldValidation: q.query.Get("fieldValidation")}
	if v, ok := boolParam(q.query, "force"); ok {
		o.Force = &v
	}
	media, _, err := mime.ParseMediaType(q.r.Header.Get("Content-Type"))
	if err != nil {
		media = q.r.Header.Get("Content-Type")
	}
	t = types.PatchType(media)
	data, done, err = q.body()
	q.entry.Patch(data)
	return t, data, o, done, err
}

func (q *request) servePatch(ctx context.Context, c *call) error {
	t, data, o, done, err := q.patchBody()
	if err != nil {
		return err
	}
	defer done()
	out, created, err := q.s.patch(ctx, c, t, data, o)
	if err != nil {
		return err
	}
	return q.sendObject(madeCode(created), c.kind, out)
}

func (q *request) serveScale(ctx context.Context, c *call) error {
	if err := q.negotiate(false); err != nil {
		return err
	}
	var sc *autoscalingv1.Scale
	var err error
	switch q.route.verb {
	case "get":
		obj, e := q.s.get(ctx, c, metav1.GetOptions{ResourceVersion: q.query.Get("resourceVersion")})
		if e != nil {
			return e
		}
		if c.kind.Scale.Check != nil {
			if err := c.kind.Scale.Check(obj); err != nil {
				return err
			}
		}
		sc = scaleOf(c.kind, obj)
	case "update":
		sent := new(autoscalingv1.Scale)
		if err := q.decode(sent, scaleGVK, q.query.Get("fieldValidation")); err != nil {
			return err
		}
		c.manager = q.manager()
		sc, err = q.s.setScale(ctx, c, func(*autoscalingv1.Scale) (*autoscalingv1.Scale, error) { return sent, nil }, q.query["dryRun"])
	case "patch":
		t, data, o, done, e := q.patchBody()
		if e != nil {
			return e
		}
		defer done()
		sc, err = q.s.patchScale(ctx, c, t, data, o)
	default:
		return errMethod
	}
	if err != nil {
		return err
	}
	return q.send(http.StatusOK, sc, scaleGVK)
}

// servePost is a create below an object.
func (q *request) servePost(ctx context.Context, c *call) error {
	var body runtime.Object
	var gvk schema.GroupVersionKind
	switch {
	case c.kind.Root() == kind.Pod && c.sub == "binding":
		body, gvk = new(corev1.Binding), corev1.SchemeGroupVersion.WithKind("Binding")
	case c.kind.Root() == kind.Pod && c.sub == "eviction":
		body, gvk = new(policyv1.Eviction), policyv1.SchemeGroupVersion.WithKind("Eviction")
	case c.kind.Root() == kind.ServiceAccount && c.sub == "token":
		body, gvk = new(authenticationv1.TokenRequest), authenticationv1.SchemeGroupVersion.WithKind("TokenRequest")
	default:
		return errMethod
	}
	if err := q.decode(body, gvk, q.query.Get("fieldValidation")); err != nil {
		return err
	}
	out, err := q.s.post(ctx, c, body, q.query["dryRun"])
	if err != nil {
		return err
	}
	if _, ok := out.(*metav1.Status); ok {
		gvk = statusGVK
	}
	return q.send(http.StatusCreated, out, gvk)
}

func (q *request) serveDelete(ctx context.Context, c *call) error {
	o, err := q.deleteOptions()
	if err != nil {
		return err
	}
	obj, gone, err := q.s.delete(ctx, c, o)
	if err != nil {
		return err
	}
	code := http.StatusOK
	if !gone && (o.OrphanDependents != nil && !*o.OrphanDependents ||
		o.PropagationPolicy != nil && *o.PropagationPolicy == metav1.DeletePropagationForeground) {
		code = http.StatusAccepted
	}
	if gone && !returnsDeleted(c.kind) {
		q.choice.As = wire.AsIs
		return q.send(code, deletedStatus(c, obj), statusGVK)
	}
	return q.sendObject(code, c.kind, obj)
}

// deleteOptions come as body or, without one, as query.
func (q *request) deleteOptions() (o metav1.DeleteOptions, err error) {
	f, err := q.bodyFormat()
	data, done, berr := q.body()
	if berr != nil {
		return o, berr
	}
	defer done()
	if len(data) > 0 {
		if err != nil {
			return o, err
		}
		d, err := wire.Decode(f, data, &o, false)
		if err != nil {
			return o, apierrors.NewBadRequest(err.Error())
		}
		if d.GVK.Kind != "" && d.GVK.Kind != "DeleteOptions" {
			return o, apierrors.NewBadRequest(fmt.Sprintf("decoded object cannot be converted to DeleteOptions: %s", d.GVK))
		}
		q.entry.Object(&o)
		return o, nil
	}
	if v := q.query.Get("gracePeriodSeconds"); v != "" {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil {
			return o, apierrors.NewBadRequest(err.Error())
		}
		o.GracePeriodSeconds = &n
	}
	if v, ok := boolParam(q.query, "orphanDependents"); ok {
		o.OrphanDependents = &v
	}
	if v := q.query.Get("propagationPolicy"); v != "" {
		p := metav1.DeletionPropagation(v)
		o.PropagationPolicy = &p
	}
	o.DryRun = q.query["dryRun"]
	return o, nil
}

// listOptions of the query.
func (q *request) listOptions() (metav1.ListOptions, error) { return parseListOptions(q.query) }

func parseListOptions(v url.Values) (o metav1.ListOptions, err error) {
	if len(v) == 0 {
		return o, nil
	}
	o.LabelSelector, o.FieldSelector = v.Get("labelSelector"), v.Get("fieldSelector")
	o.ResourceVersion, o.ResourceVersionMatch = v.Get("resourceVersion"), metav1.ResourceVersionMatch(v.Get("resourceVersionMatch"))
	o.Continue = v.Get("continue")
	o.Watch, _ = boolParam(v, "watch")
	o.AllowWatchBookmarks, _ = boolParam(v, "allowWatchBookmarks")
	if send, ok := boolParam(v, "sendInitialEvents"); ok {
		o.SendInitialEvents = &send
	}
	if t := strings.TrimSpace(v.Get("limit")); t != "" {
		if o.Limit, err = strconv.ParseInt(t, 10, 64); err != nil {
			return o, apierrors.NewBadRequest(err.Error())
		}
	}
	if t := v.Get("timeoutSeconds"); t != "" {
		n, err := strconv.ParseInt(t, 10, 64)
		if err != nil {
			return o, apierrors.NewBadRequest(err.Error())
		}
		o.TimeoutSeconds = &n
	}
	return o, nil
}

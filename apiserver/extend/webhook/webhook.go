// Package webhook asks mutating and validating admission webhooks about writes
// (Kubernetes docs, "Dynamic Admission Control"; admission.k8s.io/v1, v1beta1 where
// a webhook takes only that).
//
// Mutating webhooks are asked one after the other in the order of their
// configurations' names, validating ones at the same time. What a webhook may not
// do: change which object it is about; answer with more than the limits of package
// hook. A webhook that cannot be called counts as its failurePolicy says. The
// deadline of a call is its timeoutSeconds within that of the request.
//
// Configurations are parsed once for each of their states, match conditions compiled
// on first use. Without any configuration a write costs one look into the snapshot.
// Error and warning texts, audit annotations and codes are upstream's.
package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"sync"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	admissionregv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/admission"

	"proa.dev/apiserver/admit"
	"proa.dev/apiserver/auth"
	"proa.dev/apiserver/extend/expr"
	"proa.dev/apiserver/extend/hook"
	"proa.dev/apiserver/extend/match"
	"proa.dev/env"
	"proa.dev/internal/uuid"
	"proa.dev/kind"
)

// Names of the plugins.
const (
	MutatingName   = "MutatingAdmissionWebhook"
	ValidatingName = "ValidatingAdmissionWebhook"
)

// Config of Webhooks. Client and Authz are needed.
type Config struct {
	Client *hook.Client
	Authz  auth.Authorizer // for authorizer in match conditions
	Rand   env.Rand        // identities of reviews; nil: the system's
	Clock  env.Clock       // how long calls took; nil: the system's
	Meter  match.Meter     // nil: nothing is counted
	Log    *slog.Logger
}

// Webhooks calls webhooks. New makes it; it starts nothing.
type Webhooks struct {
	cfg                  Config
	authz                expr.Authorizer
	mutating, validating source
}

// New makes the caller of webhooks.
func New(cfg Config) *Webhooks {
	if cfg.Rand == nil {
		cfg.Rand = env.SystemRand()
	}
	if cfg.Clock == nil {
		cfg.Clock = env.SystemClock()
	}
	if cfg.Meter == nil {
		cfg.Meter = match.NoMeter{}
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	return &Webhooks{cfg: cfg, authz: expr.Authorizer{Authorizer: cfg.Authz},
		mutating:   source{kind: kind.MutatingWebhookConfiguration, parse: parseMutating},
		validating: source{kind: kind.ValidatingWebhookConfiguration, parse: parseValidating}}
}

// Mutating is the plugin that asks mutating webhooks.
func (w *Webhooks) Mutating() admit.Plugin { return admit.Plugin{Name: MutatingName, Mutate: w.mutate} }

// Validating is the plugin that asks validating webhooks.
func (w *Webhooks) Validating() admit.Plugin {
	return admit.Plugin{Name: ValidatingName, Validate: w.validate}
}

// matches finds the version in which h is to be asked, nil if it is not.
func (w *Webhooks) matches(ctx context.Context, q *match.Request, h *webhook, typ string) (*kind.Kind, error) {
	ok, held := q.Selected(&h.selectors)
	if !ok {
		return nil, nil
	}
	row := q.Rules(h.rules, h.policy)
	if row == nil {
		return nil, nil
	}
	if held != nil {
		return nil, held
	}
	if len(h.list) == 0 {
		return row, nil
	}
	v, err := q.Version(row)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	matched, failed, err := h.matchConditions().Match(ctx, v, row.GVR(), nil, w.authz, h.failure)
	if failed {
		w.cfg.Meter.Condition(h.name, "webhook", typ, string(q.Operation), true)
	}
	if err != nil {
		return nil, q.Forbidden(err)
	}
	if !matched {
		w.cfg.Meter.Condition(h.name, "webhook", typ, string(q.Operation), false)
		return nil, nil
	}
	return row, nil
}

// callError: a webhook could not be asked, or its answer is none.
type callError struct {
	name   string
	reason error
	status *apierrors.StatusError
}

func (e *callError) Error() string {
	return fmt.Sprintf("failed calling webhook %q: %v", e.name, e.reason)
}

func (e *callError) Unwrap() error { return e.reason }

// rejection: a webhook said no.
type rejection struct{ *apierrors.StatusError }

// reject is the status of a refusal, made from what the webhook said.
func reject(name string, result *metav1.Status) error {
	s := metav1.Status{}
	if result != nil {
		s = *result
	}
	if s.Code < http.StatusBadRequest {
		s.Code = http.StatusBadRequest
	}
	if s.Status == "" || s.Status == metav1.StatusSuccess {
		s.Status = metav1.StatusFailure
	}
	by := fmt.Sprintf("admission webhook %q denied the request", name)
	switch {
	case s.Message != "":
		s.Message = by + ": " + s.Message
	case s.Reason != "":
		s.Message = by + ": " + string(s.Reason)
	default:
		s.Message = by + " without explanation"
	}
	return &rejection{&apierrors.StatusError{ErrStatus: s}}
}

// review is the document that is sent, with the objects encoded once for all
// webhooks that get the same version.
type review struct {
	object, old json.RawMessage
}

func encodeReview(v *admission.VersionedAttributes) (*review, error) {
	var r review
	for _, part := range []struct {
		obj runtime.Object
		to  *json.RawMessage
	}{{v.VersionedObject.Object(), &r.object}, {v.VersionedOldObject.Object(), &r.old}} {
		if part.obj == nil {
			continue
		}
		data, err := json.Marshal(part.obj)
		if err != nil {
			return nil, fmt.Errorf("could not create admission objects: %w", err)
		}
		*part.to = data
	}
	return &r, nil
}

// reviewVersion is the first that both sides know.
func reviewVersion(list []string) string {
	for _, v := range list {
		if v == "v1" || v == "v1beta1" {
			return v
		}
	}
	return ""
}

func (w *Webhooks) newUID() types.UID { return types.UID(uuid.New(w.cfg.Rand)) }

// body is one review for one webhook.
func (w *Webhooks) body(q *match.Request, row *kind.Kind, v *admission.VersionedAttributes, r *review, version string, uid types.UID) ([]byte, error) {
	dry := q.DryRun
	attrs := v.Attributes
	gvk, gvr := metav1.GroupVersionKind(v.VersionedKind), metav1.GroupVersionResource(row.GVR())
	requestKind, requestResource := metav1.GroupVersionKind(attrs.GetKind()), metav1.GroupVersionResource(attrs.GetResource())
	doc := admissionv1.AdmissionReview{TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/" + version, Kind: "AdmissionReview"},
		Request: &admissionv1.AdmissionRequest{UID: uid, Kind: gvk, Resource: gvr, SubResource: q.Sub, RequestKind: &requestKind, RequestResource: &requestResource,
			RequestSubResource: q.Sub, Name: q.Name, Namespace: q.Space, Operation: admissionv1.Operation(q.Operation),
			UserInfo: q.User.Info(),
			Object:   runtime.RawExtension{Raw: r.object}, OldObject: runtime.RawExtension{Raw: r.old}, DryRun: &dry,
			Options: runtime.RawExtension{Object: attrs.GetOperationOptions()}}}
	return json.Marshal(&doc)
}

// call asks one webhook and checks the form of its answer. Errors are callErrors or
// StatusErrors.
func (w *Webhooks) call(ctx context.Context, q *match.Request, h *webhook, row *kind.Kind, v *admission.VersionedAttributes, r *review, mutating bool) (*admissionv1.AdmissionResponse, error) {
	if q.DryRun {
		if h.sideEffects == nil {
			return nil, &callError{h.name, errors.New("Webhook SideEffects is nil"), apierrors.NewBadRequest("Webhook SideEffects is nil")}
		}
		if s := *h.sideEffects; s != admissionregv1.SideEffectClassNone && s != admissionregv1.SideEffectClassNoneOnDryRun {
			return nil, apierrors.NewBadRequest(fmt.Sprintf("admission webhook %q does not support dry run", h.name))
		}
	}
	version := reviewVersion(h.versions)
	if version == "" {
		return nil, &callError{h.name, errors.New("could not create admission objects: webhook does not accept known AdmissionReview versions (v1, v1beta1)"),
			apierrors.NewBadRequest("error creating admission objects")}
	}
	uid := w.newUID()
	body, err := w.body(q, row, v, r, version, uid)
	if err != nil {
		return nil, &callError{h.name, fmt.Errorf("could not create admission objects: %w", err), apierrors.NewBadRequest("error creating admission objects")}
	}
	if err := w.cfg.Client.Prepare(h.target); err != nil {
		return nil, &callError{h.name, fmt.Errorf("could not get REST client: %w", err), apierrors.NewInternalError(err)}
	}
	if h.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, h.timeout)
		defer cancel()
	}
	answer, err := w.cfg.Client.Post(ctx, h.target, body)
	if err != nil {
		return nil, failedCall(h.name, err)
	}
	response, err := readResponse(answer, version, uid, mutating)
	if err != nil {
		var form *formError
		if errors.As(err, &form) {
			return nil, failedCall(h.name, form.error)
		}
		return nil, &callError{h.name, fmt.Errorf("received invalid webhook response: %w", err), apierrors.NewServiceUnavailable("error validating webhook response")}
	}
	return response, nil
}

func failedCall(name string, err error) error {
	var se *apierrors.StatusError
	if !errors.As(err, &se) {
		se = apierrors.NewServiceUnavailable("error calling webhook")
	}
	return &callError{name, fmt.Errorf("failed to call webhook: %w", err), se}
}

// formError: the answer is no AdmissionReview at all.
type formError struct{ error }

// readResponse takes the response out of an answer and checks it.
func readResponse(answer []byte, version string, uid types.UID, mutating bool) (*admissionv1.AdmissionResponse, error) {
	var doc admissionv1.AdmissionReview
	if err := json.Unmarshal(answer, &doc); err != nil {
		return nil, &formError{fmt.Errorf("couldn't get version/kind; json parse error: %w", err)}
	}
	if doc.Kind == "" {
		return nil, &formError{runtime.NewMissingKindErr(shortened(answer))}
	}
	if doc.APIVersion == "" {
		return nil, &formError{runtime.NewMissingVersionErr(shortened(answer))}
	}
	r := doc.Response
	if r == nil {
		return nil, errors.New("webhook response was absent")
	}
	if version == "v1beta1" {
		// That version's answers were never checked for more.
		if mutating && len(r.Patch) > 0 {
			t := admissionv1.PatchTypeJSONPatch
			r.PatchType = &t
		} else {
			r.Patch, r.PatchType = nil, nil
		}
		return r, nil
	}
	if r.UID != uid {
		return nil, fmt.Errorf("expected response.uid=%q, got %q", uid, r.UID)
	}
	if want := admissionv1.SchemeGroupVersion.WithKind("AdmissionReview"); doc.GroupVersionKind() != want {
		return nil, fmt.Errorf("expected webhook response of %v, got %v", want.String(), doc.GroupVersionKind().String())
	}
	switch {
	case !mutating && len(r.Patch) > 0:
		return nil, errors.New("validating webhook may not return response.patch")
	case !mutating && r.PatchType != nil:
		return nil, errors.New("validating webhook may not return response.patchType")
	case len(r.Patch) > 0 && r.PatchType == nil:
		return nil, errors.New("webhook returned response.patch but not response.patchType")
	case len(r.Patch) == 0 && r.PatchType != nil:
		return nil, errors.New("webhook returned response.patchType but not response.patch")
	case r.PatchType != nil && *r.PatchType == "":
		return nil, fmt.Errorf("webhook returned invalid response.patchType of %q", *r.PatchType)
	}
	return r, nil
}

func shortened(b []byte) string {
	const most = 1024
	if len(b) > most {
		return string(b[:most]) + "..."
	}
	return string(b)
}

// heard hands on what a webhook says beside its decision.
func heard(ctx context.Context, h *webhook, r *admissionv1.AdmissionResponse, warn func(string)) {
	for k, v := range r.AuditAnnotations {
		admit.Annotate(ctx, h.name+"/"+k, v)
	}
	if warn != nil {
		for _, text := range r.Warnings {
			warn(text)
		}
	}
}

// observe counts one call.
func (w *Webhooks) observe(q *match.Request, h *webhook, typ string, err error, start time.Time) {
	took := w.cfg.Clock.Now().Sub(start)
	var call *callError
	var no *rejection
	code, rejected, errorType := 200, false, ""
	switch {
	case err == nil:
	case errors.As(err, &call):
		code = int(call.status.ErrStatus.Code)
		if !h.ignores() {
			rejected = true
			if !errors.Is(err, context.Canceled) {
				errorType = "calling_webhook_error"
			}
		}
	case errors.As(err, &no):
		code, rejected, errorType = int(no.ErrStatus.Code), true, "no_error"
	default:
		code, rejected, errorType = 0, true, "apiserver_internal_error"
	}
	w.cfg.Meter.Webhook(h.name, typ, string(q.Operation), rejected, code, errorType, took)
}

// validate asks all matching validating webhooks at the same time.
func (w *Webhooks) validate(ctx context.Context, r *admit.Request) error {
	hooks := w.validating.in(r.Snapshot)
	if len(hooks) == 0 || match.Exempt(r) || admit.IsInner(ctx) {
		return nil
	}
	q := match.New(r)
	type asked struct {
		h        *webhook
		row      *kind.Kind
		v        *admission.VersionedAttributes
		body     *review
		response *admissionv1.AdmissionResponse
		err      error
	}
	var list []*asked
	bodies := map[*kind.Kind]*review{}
	for _, h := range hooks {
		row, err := w.matches(ctx, q, h, "validating")
		if err != nil {
			return err
		}
		if row == nil {
			continue
		}
		v, err := q.Version(row)
		if err != nil {
			return apierrors.NewInternalError(err)
		}
		if bodies[row] == nil {
			if bodies[row], err = encodeReview(v); err != nil {
				return apierrors.NewInternalError(err)
			}
		}
		list = append(list, &asked{h: h, row: row, v: v, body: bodies[row]})
	}
	if len(list) == 0 {
		return nil
	}
	if ctx.Err() != nil {
		return apierrors.NewTimeoutError("request did not complete within requested timeout", 0)
	}
	ask := func(a *asked) {
		defer func() {
			if p := recover(); p != nil {
				a.err = apierrors.NewInternalError(fmt.Errorf("ValidatingAdmissionWebhook/%v has panicked: %v", a.h.name, p))
			}
		}()
		start := w.cfg.Clock.Now()
		a.response, a.err = w.call(ctx, q, a.h, a.row, a.v, a.body, false)
		if a.err == nil && !a.response.Allowed {
			a.err = reject(a.h.name, a.response.Result)
		}
		w.observe(q, a.h, "validating", a.err, start)
	}
	if len(list) == 1 {
		ask(list[0])
	} else {
		var running sync.WaitGroup
		for _, a := range list {
			running.Go(func() { ask(a) })
		}
		running.Wait()
	}
	var first error
	for i, a := range list {
		if a.response != nil {
			heard(ctx, a.h, a.response, r.Warn)
		}
		err := a.err
		var call *callError
		if errors.As(err, &call) {
			if a.h.ignores() {
				if !errors.Is(err, context.Canceled) {
					w.failOpen(ctx, a.h, "validating", err)
					admit.Annotate(ctx, "failed-open.validating.webhook.admission.k8s.io/round_0_index_"+strconv.Itoa(i), a.h.name)
				}
				continue
			}
			err = closed(call)
		}
		if err != nil && first == nil {
			first = err
		}
	}
	return status(first)
}

// closed is the answer to the client when a webhook that must be asked could not be.
func closed(e *callError) error {
	if hook.IsBusy(e.reason) {
		return e.status
	}
	return apierrors.NewInternalError(e)
}

func (w *Webhooks) failOpen(_ context.Context, h *webhook, typ string, err error) {
	w.cfg.Log.Warn("a webhook could not be called and is ignored", "webhook", h.name, "configuration", h.config, "err", err)
	w.cfg.Meter.FailOpen(h.name, typ)
}

// status unwraps a rejection.
func status(err error) error {
	var no *rejection
	if errors.As(err, &no) {
		return no.StatusError
	}
	return err
}

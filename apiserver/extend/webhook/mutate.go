package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	admissionv1 "k8s.io/api/admission/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	kjson "sigs.k8s.io/json"

	"proa.dev/apiserver/admit"
	"proa.dev/apiserver/extend/match"
	"proa.dev/apiserver/patch"
	"proa.dev/kind"
)

// mutate asks the matching mutating webhooks in order.
func (w *Webhooks) mutate(ctx context.Context, r *admit.Request) error {
	hooks := w.mutating.in(r.Snapshot)
	if len(hooks) == 0 || match.Exempt(r) || admit.IsInner(ctx) {
		return nil
	}
	q := match.New(r)
	var m *match.Memory[string]
	round := 0
	if r.Again {
		round = 1
		m = match.Remember[string](r, MutatingName)
		m.Resume(r.Object)
		if m.Idle() {
			return nil
		}
	}
	var sent *review
	var sentRow *kind.Kind
	for i, h := range hooks {
		row, err := w.matches(ctx, q, h, "admit")
		if err != nil {
			return err
		}
		if row == nil || r.Again && !m.Again(h.id) {
			continue
		}
		if m == nil {
			m = match.Remember[string](r, MutatingName)
		}
		v, err := q.Version(row)
		if err != nil {
			return apierrors.NewInternalError(err)
		}
		if sent == nil || sentRow != row {
			if sent, err = encodeReview(v); err != nil {
				return apierrors.NewInternalError(err)
			}
			sentRow = row
		}
		key := "round_" + strconv.Itoa(round) + "_index_" + strconv.Itoa(i)
		start := w.cfg.Clock.Now()
		changed, err := w.ask(ctx, q, h, row, sent, key)
		w.observe(q, h, "admit", err, start)
		note(ctx, "mutation.webhook.admission.k8s.io/"+key, struct {
			Configuration string `json:"configuration"`
			Webhook       string `json:"webhook"`
			Mutated       bool   `json:"mutated"`
		}{h.config, h.name, changed})
		if changed {
			sent = nil
			m.Changed()
			r.Reinvoke = true
		}
		if h.reinvoke {
			m.Ready(h.id)
		}
		var call *callError
		switch {
		case err == nil:
		case errors.As(err, &call) && h.ignores():
			if !errors.Is(err, context.Canceled) {
				w.failOpen(ctx, h, "admit", err)
				admit.Annotate(ctx, "failed-open.mutation.webhook.admission.k8s.io/"+key, h.name)
			}
			if ctx.Err() != nil {
				return apierrors.NewTimeoutError("request did not complete within requested timeout", 0)
			}
		case errors.As(err, &call):
			return closed(call)
		default:
			return status(err)
		}
	}
	if m != nil && !r.Again {
		m.Keep(r.Object)
	}
	return nil
}

func note(ctx context.Context, key string, value any) {
	if b, err := json.Marshal(value); err == nil {
		admit.Annotate(ctx, key, string(b))
	}
}

// ask asks one mutating webhook and carries its patch out.
func (w *Webhooks) ask(ctx context.Context, q *match.Request, h *webhook, row *kind.Kind, sent *review, key string) (changed bool, err error) {
	v, err := q.Version(row)
	if err != nil {
		return false, apierrors.NewInternalError(err)
	}
	response, err := w.call(ctx, q, h, row, v, sent, true)
	if err != nil {
		return false, err
	}
	heard(ctx, h, response, q.Warn)
	if !response.Allowed {
		return false, reject(h.name, response.Result)
	}
	if len(response.Patch) == 0 {
		return false, nil
	}
	ops, err := jsonpatch.DecodePatch(response.Patch)
	if err != nil {
		return false, &callError{h.name, fmt.Errorf("received undecodable patch in webhook response: %w", err), apierrors.NewServiceUnavailable("error decoding patch in webhook response")}
	}
	if len(ops) == 0 {
		return false, nil
	}
	if len(ops) > patch.MaxOperations {
		return false, &callError{h.name, fmt.Errorf("the patch has %d operations, more than the allowed %d", len(ops), patch.MaxOperations), apierrors.NewServiceUnavailable("error decoding patch in webhook response")}
	}
	before := v.VersionedObject.Object()
	if before == nil {
		return false, apierrors.NewInternalError(fmt.Errorf("admission webhook %q attempted to modify the object, which is not supported for this operation", h.name))
	}
	if *response.PatchType != admissionv1.PatchTypeJSONPatch {
		return false, &callError{h.name, fmt.Errorf("unsupported patch type %q", *response.PatchType), apierrors.NewServiceUnavailable("error decoding patch in webhook response")}
	}
	after, err := patched(q, row, before, sent.object, ops)
	if err != nil {
		return false, apierrors.NewInternalError(err)
	}
	changed = !apiequality.Semantic.DeepEqual(before, after)
	// Auditors keep this one from level Request on, as it may hold what was sent.
	note(ctx, "patch.webhook.admission.k8s.io/"+key, struct {
		Configuration string          `json:"configuration"`
		Webhook       string          `json:"webhook"`
		Patch         json.RawMessage `json:"patch"`
		PatchType     string          `json:"patchType"`
	}{h.config, h.name, response.Patch, string(admissionv1.PatchTypeJSONPatch)})
	q.Default(row, after)
	if err := q.Update(row, after); err != nil {
		return changed, err
	}
	return changed, nil
}

// patched applies a patch to an encoded object and decodes what comes out. Fields
// that the kind does not know are dropped, as upstream does.
func patched(q *match.Request, row *kind.Kind, before runtime.Object, encoded []byte, ops jsonpatch.Patch) (runtime.Object, error) {
	doc, err := ops.Apply(encoded)
	if err != nil {
		return nil, err
	}
	var after runtime.Object
	if _, ok := before.(*unstructured.Unstructured); ok {
		u := &unstructured.Unstructured{}
		if err := u.UnmarshalJSON(doc); err != nil {
			return nil, err
		}
		after = u
	} else {
		if after, err = q.New(row); err != nil {
			return nil, err
		}
		if err := kjson.UnmarshalCaseSensitivePreserveInts(doc, after); err != nil {
			return nil, err
		}
	}
	was, is := before.GetObjectKind().GroupVersionKind(), after.GetObjectKind().GroupVersionKind()
	if was != is {
		return nil, fmt.Errorf("the patch made a %s of a %s", is, was)
	}
	return after, nil
}

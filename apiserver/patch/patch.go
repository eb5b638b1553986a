// Package patch applies JSON patches (RFC 6902), JSON merge patches (RFC 7386)
// and strategic merge patches (Kubernetes docs, "Update API Objects in Place
// Using kubectl patch") to the JSON form of an object. Pure functions.
//
// Bounds: a JSON patch has MaxOperations operations at most, and its copy
// operations may not add more than MaxCopied bytes (the "billion laughs" way of
// growing a document).
package patch

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/mergepatch"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/apimachinery/pkg/util/validation/field"
	kjson "sigs.k8s.io/json"
)

// Bounds of JSON patches.
const (
	MaxOperations = 10000
	MaxCopied     = 3 << 20
)

func init() { jsonpatch.AccumulatedCopySizeLimit = MaxCopied }

// Apply returns the patched JSON document of an object whose Go type is that of
// example (needed for strategic patches). strict asks for the unknown and
// duplicate fields of the patch itself; they are returned, not refused.
func Apply(t types.PatchType, original, patch []byte, example any, strict bool) (patched []byte, warnings []error, err error) {
	switch t {
	case types.JSONPatchType:
		return jsonPatch(original, patch, strict)
	case types.MergePatchType:
		return mergePatch(original, patch, strict)
	case types.StrategicMergePatchType:
		return strategic(original, patch, example, strict)
	}
	return nil, nil, fmt.Errorf("apply patch %q: %w", t, ErrType)
}

// ErrType: the patch type is none that Apply knows.
var ErrType = errors.New("unknown patch type")

func jsonPatch(original, patch []byte, strict bool) ([]byte, []error, error) {
	ops, err := jsonpatch.DecodePatch(patch)
	if err != nil {
		return nil, nil, apierrors.NewBadRequest(err.Error())
	}
	if len(ops) > MaxOperations {
		return nil, nil, apierrors.NewRequestEntityTooLargeError(
			fmt.Sprintf("The allowed maximum operations in a JSON patch is %d, got %d", MaxOperations, len(ops)))
	}
	var warnings []error
	if strict {
		var raw []map[string]any
		if errs, err := kjson.UnmarshalStrict(patch, &raw); err == nil {
			warnings = patchErrors(errs)
		}
		for i, op := range raw {
			for name := range op {
				switch name {
				case "op", "path", "from", "value":
				default:
					warnings = append(warnings, fmt.Errorf("json patch unknown field \"[%d].%s\"", i, name))
				}
			}
		}
	}
	out, err := ops.Apply(original)
	if err != nil {
		// A test that does not hold, a path that does not exist: 422.
		return nil, nil, apierrors.NewGenericServerResponse(422, "", schema.GroupResource{}, "", err.Error(), 0, false)
	}
	return out, warnings, nil
}

func mergePatch(original, patch []byte, strict bool) ([]byte, []error, error) {
	var m map[string]any
	var warnings []error
	if strict {
		errs, err := kjson.UnmarshalStrict(patch, &m)
		if err != nil {
			return nil, nil, apierrors.NewBadRequest(fmt.Sprintf("error decoding patch: %v", err))
		}
		warnings = patchErrors(errs)
	} else if err := utiljson.Unmarshal(patch, &m); err != nil {
		return nil, nil, apierrors.NewBadRequest(fmt.Sprintf("error decoding patch: %v", err))
	}
	if strings.TrimSpace(string(patch)) == "null" {
		return nil, nil, apierrors.NewBadRequest("error decoding patch: the patch must be an object")
	}
	out, err := jsonpatch.MergePatch(original, patch)
	if err != nil {
		return nil, nil, apierrors.NewBadRequest(err.Error())
	}
	return out, warnings, nil
}

func strategic(original, patch []byte, example any, strict bool) ([]byte, []error, error) {
	var from, change map[string]any
	if err := utiljson.Unmarshal(original, &from); err != nil {
		return nil, nil, err
	}
	var warnings []error
	if strict {
		errs, err := kjson.UnmarshalStrict(patch, &change)
		if err != nil {
			return nil, nil, apierrors.NewBadRequest(fmt.Sprintf("error decoding patch: %v", err))
		}
		warnings = patchErrors(errs)
	} else if err := utiljson.Unmarshal(patch, &change); err != nil {
		return nil, nil, apierrors.NewBadRequest(fmt.Sprintf("error decoding patch: %v", err))
	}
	merged, err := strategicpatch.StrategicMergeMapPatch(from, change, example)
	if err != nil {
		switch {
		case mergepatch.IsPreconditionFailed(err):
			return nil, nil, apierrors.NewConflict(schema.GroupResource{}, "", err)
		case errors.Is(err, mergepatch.ErrBadJSONDoc), errors.Is(err, mergepatch.ErrBadPatchFormatForPrimitiveList),
			errors.Is(err, mergepatch.ErrBadPatchFormatForRetainKeys), errors.Is(err, mergepatch.ErrBadPatchFormatForSetElementOrderList),
			errors.Is(err, mergepatch.ErrUnsupportedStrategicMergePatchFormat):
			return nil, nil, apierrors.NewBadRequest(err.Error())
		case errors.Is(err, mergepatch.ErrNoListOfLists), errors.Is(err, mergepatch.ErrBadPatchFormatForPrimitiveList):
			return nil, nil, apierrors.NewGenericServerResponse(422, "", schema.GroupResource{}, "", err.Error(), 0, false)
		}
		return nil, nil, apierrors.NewGenericServerResponse(422, "", schema.GroupResource{}, "", err.Error(), 0, false)
	}
	out, err := json.Marshal(merged)
	return out, warnings, err
}

func patchErrors(errs []error) []error {
	var out []error
	for _, e := range errs {
		out = append(out, e)
	}
	return out
}

// DecodeError is the answer when the patched document does not fit the type:
// upstream's 422 with the patch as value.
func DecodeError(k schema.GroupKind, name string, patch []byte, err error) error {
	return apierrors.NewInvalid(k, name, field.ErrorList{field.Invalid(field.NewPath("patch"), string(patch), err.Error())})
}

// Accepted lists the patch types, in the words of the 415 answer.
func Accepted(apply bool) []string {
	list := []string{string(types.JSONPatchType), string(types.MergePatchType), string(types.StrategicMergePatchType)}
	if apply {
		list = append(list, string(types.ApplyYAMLPatchType))
	}
	return list
}

// UnsupportedOf is the 415 answer where only these types are accepted.
func UnsupportedOf(accepted ...types.PatchType) error {
	var list []string
	for _, t := range accepted {
		list = append(list, string(t))
	}
	return &apierrors.StatusError{ErrStatus: metav1.Status{Status: metav1.StatusFailure, Code: 415, Reason: metav1.StatusReasonUnsupportedMediaType,
		Message: "the body of the request was in an unknown format - accepted media types include: " + strings.Join(list, ", ")}}
}

// Unsupported is the 415 answer to a patch of another type.
func Unsupported(apply bool) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{Status: metav1.StatusFailure, Code: 415, Reason: metav1.StatusReasonUnsupportedMediaType,
		Message: "the body of the request was in an unknown format - accepted media types include: " + strings.Join(Accepted(apply), ", ")}}
}

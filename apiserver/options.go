package apiserver

import (
	"errors"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"proa.dev/store"
)

func checkCreate(o metav1.CreateOptions) error {
	if errs := metav1validation.ValidateCreateOptions(&o); len(errs) > 0 {
		return apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: "CreateOptions"}, "", errs)
	}
	return nil
}

func checkUpdate(o metav1.UpdateOptions) error {
	if errs := metav1validation.ValidateUpdateOptions(&o); len(errs) > 0 {
		return apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: "UpdateOptions"}, "", errs)
	}
	return nil
}

func isNotFoundKey(err error) bool { return errors.Is(err, store.ErrNotFound) }

package apitest

import (
	"errors"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// Refused checks that err is a Status of this code whose message has all words.
func Refused(t testing.TB, err error, code int32, words ...string) {
	t.Helper()
	var se *apierrors.StatusError
	if !errors.As(err, &se) {
		t.Fatalf("no status: %v", err)
	}
	if se.ErrStatus.Code != code {
		t.Errorf("code %d instead of %d: %v", se.ErrStatus.Code, code, err)
	}
	for _, w := range words {
		if !strings.Contains(se.ErrStatus.Message, w) {
			t.Errorf("%q is not in %q", w, se.ErrStatus.Message)
		}
	}
}

package validate

import (
	"slices"
	"testing"

	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"
)

// change is one way to spoil a valid object and the errors it must give, all of
// them and word for word. No errors means that the change is allowed.
type change[T any] struct {
	name string
	do   func(*T)
	want []string
}

// parse reads an object as a client would send it, after defaulting.
func parse[T any](t *testing.T, text string) *T {
	t.Helper()
	obj := new(T)
	if err := yaml.UnmarshalStrict([]byte(text), obj); err != nil {
		t.Fatalf("read the valid object: %v", err)
	}
	return obj
}

func same(t *testing.T, got field.ErrorList, want []string) {
	t.Helper()
	var texts []string
	for _, e := range Shown(got) {
		texts = append(texts, e.Error())
	}
	slices.Sort(texts)
	want = slices.Clone(want)
	slices.Sort(want)
	if !slices.Equal(texts, want) {
		t.Errorf("got:\n")
		for _, s := range texts {
			t.Errorf("  %s", s)
		}
		t.Errorf("want:\n")
		for _, s := range want {
			t.Errorf("  %s", s)
		}
	}
}

func checkNew[T any](t *testing.T, text string, rule func(*T) field.ErrorList, changes []change[T]) {
	t.Helper()
	same(t, rule(parse[T](t, text)), nil)
	for _, c := range changes {
		t.Run(c.name, func(t *testing.T) {
			obj := parse[T](t, text)
			c.do(obj)
			same(t, rule(obj), c.want)
		})
	}
}

func checkUpdate[T any](t *testing.T, text string, rule func(new, old *T) field.ErrorList, changes []change[T]) {
	t.Helper()
	same(t, rule(parse[T](t, text), parse[T](t, text)), nil)
	for _, c := range changes {
		t.Run(c.name, func(t *testing.T) {
			obj := parse[T](t, text)
			c.do(obj)
			same(t, rule(obj, parse[T](t, text)), c.want)
		})
	}
}

func ptr[T any](v T) *T { return &v }

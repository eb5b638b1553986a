package match

import (
	apiequality "k8s.io/apimachinery/pkg/api/equality"

	"proa.dev/apiserver/admit"
	"proa.dev/kind"
)

// Memory is what the first round of a mutating plugin leaves for the second
// (Kubernetes docs, "Dynamic Admission Control", "Reinvocation policy"). An ID
// names who is asked: a webhook, or a policy with a binding and a parameter.
type Memory[ID comparable] struct {
	output kind.Object // the object after the first round
	ready  map[ID]bool // asked already and willing to be asked again
	again  map[ID]bool // to be asked again
}

// Remember gives the plugin's memory of r, and makes it when there is none.
func Remember[ID comparable](r *admit.Request, plugin string) *Memory[ID] {
	if m, ok := r.Notes[plugin].(*Memory[ID]); ok {
		return m
	}
	m := &Memory[ID]{ready: map[ID]bool{}, again: map[ID]bool{}}
	r.Note(plugin, m)
	return m
}

// Resume begins the second round with o: all that are ready are asked again when
// o is not what the first round left.
func (m *Memory[ID]) Resume(o kind.Object) {
	if m.output == nil || o == nil || !apiequality.Semantic.DeepEqual(m.output, o) {
		m.Changed()
	}
}

// Keep ends the first round with o.
func (m *Memory[ID]) Keep(o kind.Object) {
	if o != nil {
		m.output = o.DeepCopyObject().(kind.Object)
	}
}

// Changed says that something was changed after those that are ready were asked.
func (m *Memory[ID]) Changed() {
	for id := range m.ready {
		m.again[id] = true
	}
	clear(m.ready)
}

// Ready says that id has been asked and is willing to be asked again.
func (m *Memory[ID]) Ready(id ID) { m.ready[id] = true }

// Again says whether id is to be asked again.
func (m *Memory[ID]) Again(id ID) bool { return m.again[id] }

// Idle says that nobody is to be asked again.
func (m *Memory[ID]) Idle() bool { return len(m.again) == 0 }

// Package crd makes rows of the table of kinds from CustomResourceDefinitions
// (Kubernetes docs, "Extend the Kubernetes API with CustomResourceDefinitions",
// "Versions in CustomResourceDefinitions"; docs/decisions/0007).
//
// A Registry turns the definitions of a moment into a table. A definition whose
// condition Established is true has one hidden root row, the same for its life, and
// a served row for each served version. Schemas, CEL rules and type converters are
// compiled when an object first needs them and kept until spec.generation or the
// accepted names change.
//
// Objects are *unstructured.Unstructured. On the way in they are coerced (metadata
// checked, unknown fields pruned, nulls that may not be dropped), defaulted,
// validated against the schema and the CEL rules with upstream's cost limits
// (k8s.io/apiextensions-apiserver says what that means and in which words), and
// converted to the storage version. On the way out they are converted, pruned and
// defaulted by the schema of the version that is asked for; an object that is right
// as it is stored is passed on without a copy.
//
// Bounds: one conversion webhook call has 30 seconds; it holds only the requests for
// its own kind.
package crd

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sort"
	"strings"
	"sync"
	"sync/atomic"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/version"

	"proa.dev/apiserver/extend/hook"
	"proa.dev/kind"
	"proa.dev/view"
)

// Caller posts documents to webhooks; *hook.Client does.
type Caller interface {
	Post(ctx context.Context, t hook.Target, body []byte) ([]byte, error)
}

// Config of a Registry.
type Config struct {
	// Caller reaches conversion webhooks; nil: their kinds can be read and written in
	// the storage version only.
	Caller Caller
	// UID makes identities of conversion requests.
	UID func() types.UID
	Log *slog.Logger // nil: silent
}

// Registry makes tables. It keeps what is compiled from one table to the next.
type Registry struct {
	cfg  Config
	mu   sync.Mutex
	byID map[string]*definition // by name

	compiled atomic.Int64
}

// Compiled counts the schemas that have been compiled so far.
func (r *Registry) Compiled() int64 { return r.compiled.Load() }

// New makes a Registry; it starts nothing.
func New(cfg Config) *Registry {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Registry{cfg: cfg, byID: map[string]*definition{}}
}

// definition is one CustomResourceDefinition in the form of rows.
type definition struct {
	reg     *Registry
	crd     *apiextensionsv1.CustomResourceDefinition
	closing bool
	isShown bool // has a place in the table
	root    *kind.Kind
	all     map[string]*Version // by name, those that are not served too
	rows    []*kind.Kind

	modelsOnce sync.Once
	models     *models
}

// Version is what one version of a definition means; the Extension of its row.
type Version struct {
	def  *definition
	spec *apiextensionsv1.CustomResourceDefinitionVersion
	row  *kind.Kind

	once     sync.Once
	compiled *compiled
	err      error
}

// Of is the version behind a custom row; nil for other rows.
func Of(k *kind.Kind) *Version {
	v, _ := k.Extension.(*Version)
	return v
}

// Definition that the version belongs to; not to be changed.
func (v *Version) Definition() *apiextensionsv1.CustomResourceDefinition { return v.def.crd }

// Spec of the version; not to be changed.
func (v *Version) Spec() *apiextensionsv1.CustomResourceDefinitionVersion { return v.spec }

// StorageVersion is the name of the version that objects are stored in.
func (v *Version) StorageVersion() string {
	if s := v.def.storage(); s != nil {
		return s.spec.Name
	}
	return ""
}

// All implements feed.Kinds.
func (r *Registry) All(now *kind.Table, definitions []kind.Object) view.Reshaping {
	changed := make(map[string]kind.Object, len(definitions))
	r.mu.Lock()
	for name := range r.byID {
		changed[name] = nil
	}
	r.mu.Unlock()
	for _, o := range definitions {
		changed[o.GetName()] = o
	}
	return r.Change(now, changed)
}

// Change implements feed.Kinds. It looks at nothing but the definitions that have
// changed.
func (r *Registry) Change(now *kind.Table, definitions map[string]kind.Object) view.Reshaping {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := view.Reshaping{Table: now}
	var come []kind.Definition
	for _, name := range slices.Sorted(maps.Keys(definitions)) {
		old := r.byID[name]
		crd, ok := definitions[name].(*apiextensionsv1.CustomResourceDefinition)
		if !ok || !isEstablished(crd) {
			if old != nil {
				delete(r.byID, name)
				if old.isShown {
					out.Gone = append(out.Gone, old.root)
				}
			}
			continue
		}
		if old != nil && old.holds(crd) {
			continue
		}
		d := r.define(crd, old)
		r.byID[name] = d
		if k := now.ByResource(d.rowGVR()); k != nil && !k.Custom {
			r.cfg.Log.Warn("definition is not served: a built-in kind has its route", "definition", d.crd.Name)
		} else {
			d.isShown = true
			come = append(come, kind.Definition{Root: d.root, Rows: d.rows})
		}
		wasShown := old != nil && old.isShown
		switch {
		case wasShown && d.isShown && old.root == d.root:
			out.Changed = append(out.Changed, d.root)
		default:
			if wasShown {
				out.Gone = append(out.Gone, old.root)
			}
			if d.isShown {
				out.Came = append(out.Came, view.Loading{Kind: d.root})
			}
		}
	}
	out.Table = now.With(come, out.Gone...)
	return out
}

func isEstablished(crd *apiextensionsv1.CustomResourceDefinition) bool {
	n := crd.Status.AcceptedNames
	return condition(crd, apiextensionsv1.Established) && n.Plural != "" && n.Kind != "" && n.Singular != "" && n.ListKind != ""
}

func condition(crd *apiextensionsv1.CustomResourceDefinition, t apiextensionsv1.CustomResourceDefinitionConditionType) bool {
	return slices.ContainsFunc(crd.Status.Conditions, func(c apiextensionsv1.CustomResourceDefinitionCondition) bool {
		return c.Type == t && c.Status == apiextensionsv1.ConditionTrue
	})
}

func isClosing(crd *apiextensionsv1.CustomResourceDefinition) bool {
	return crd.DeletionTimestamp != nil || condition(crd, apiextensionsv1.Terminating)
}

// holds says that d is what crd says.
func (d *definition) holds(crd *apiextensionsv1.CustomResourceDefinition) bool {
	return d.isOf(crd) && d.closing == isClosing(crd)
}

// isOf says that what d has compiled holds for crd.
func (d *definition) isOf(crd *apiextensionsv1.CustomResourceDefinition) bool {
	return d.crd.UID == crd.UID && d.crd.Generation == crd.Generation && crd.Generation > 0 &&
		apiequality.Semantic.DeepEqual(d.crd.Status.AcceptedNames, crd.Status.AcceptedNames)
}

// define makes the rows of a definition; old is what there was under its name.
func (r *Registry) define(crd *apiextensionsv1.CustomResourceDefinition, old *definition) *definition {
	d := &definition{reg: r, crd: crd, closing: isClosing(crd), all: map[string]*Version{}}
	names, scope := crd.Status.AcceptedNames, kind.Namespaced
	if crd.Spec.Scope == apiextensionsv1.ClusterScoped {
		scope = kind.Cluster
	}
	if old != nil && old.crd.UID == crd.UID && old.root.Scope == scope {
		d.root = old.root
	} else {
		d.root = &kind.Kind{Group: crd.Spec.Group, Kind: names.Kind, Plural: names.Plural, Singular: names.Singular, Scope: scope,
			Custom: true, Hidden: true, Prefix: crd.Spec.Group + "/" + names.Plural,
			New: func() kind.Object { return new(unstructured.Unstructured) }, NewList: newList}
	}
	for i := range crd.Spec.Versions {
		s := &crd.Spec.Versions[i]
		v := &Version{def: d, spec: s}
		if old != nil && old.isOf(crd) {
			// Only closing has changed: what is compiled stays.
			v = old.all[s.Name]
			if s.Served {
				row := *v.row
				row.Closed = closedFor(d)
				d.rows = append(d.rows, &row)
			}
			d.all[s.Name] = v
			continue
		}
		d.all[s.Name] = v
		v.row = v.makeRow()
		if s.Served {
			d.rows = append(d.rows, v.row)
		}
	}
	sort.SliceStable(d.rows, func(i, j int) bool {
		return version.CompareKubeAwareVersionStrings(d.rows[i].Version, d.rows[j].Version) > 0
	})
	return d
}

func newList() runtime.Object { return new(unstructured.UnstructuredList) }

func closedFor(d *definition) string {
	if d.closing {
		return "create not allowed while custom resource definition is terminating"
	}
	return ""
}

// storage is the version that objects are stored in.
func (d *definition) storage() *Version {
	for i := range d.crd.Spec.Versions {
		if d.crd.Spec.Versions[i].Storage {
			return d.all[d.crd.Spec.Versions[i].Name]
		}
	}
	return nil
}

func (d *definition) apiVersion(name string) string { return d.crd.Spec.Group + "/" + name }

// version of an apiVersion; nil when the definition has no such version.
func (d *definition) version(apiVersion string) *Version {
	group, name, _ := strings.Cut(apiVersion, "/")
	if group != d.crd.Spec.Group {
		return nil
	}
	return d.all[name]
}

// deprecation is the warning with every answer in this version; "" for none.
func (v *Version) deprecation() string {
	if !v.spec.Deprecated {
		return ""
	}
	if v.spec.DeprecationWarning != nil {
		return *v.spec.DeprecationWarning
	}
	spec := &v.def.crd.Spec
	msg := fmt.Sprintf("%s/%s %s is deprecated", spec.Group, v.spec.Name, spec.Names.Kind)
	best := ""
	for i := range spec.Versions {
		o := &spec.Versions[i]
		if o.Served && !o.Deprecated && version.CompareKubeAwareVersionStrings(v.spec.Name, o.Name) < 0 &&
			(best == "" || version.CompareKubeAwareVersionStrings(best, o.Name) < 0) {
			best = o.Name
		}
	}
	if best != "" {
		msg += fmt.Sprintf("; use %s/%s %s", spec.Group, best, spec.Names.Kind)
	}
	return msg
}

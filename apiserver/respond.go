package apiserver

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/klauspost/compress/gzip"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"proa.dev/apiserver/table"
	"proa.dev/client/wire"
	"proa.dev/kind"
)

// gzipFrom is the size from which answers are compressed for clients that
// accept it: 128 KiB, as upstream.
const gzipFrom = 128 << 10

// chunk is how much of a large answer is handed to the transport at once.
const chunk = 64 << 10

var gzips = sync.Pool{New: func() any {
	w, _ := gzip.NewWriterLevel(nil, gzip.BestSpeed)
	return w
}}

// body collects an answer: small ones go out with their length, large ones
// compressed if the client can, as they grow.
type body struct {
	q    *request
	code int
	buf  []byte
	gz   *gzip.Writer
	slow *guard
	open bool // headers are out
	err  error
}

func (q *request) newBody(code int, contentType string) *body {
	q.w.Header().Set("Content-Type", contentType)
	return &body{q: q, code: code}
}

func (b *body) Write(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	if !b.open {
		if len(b.buf)+len(p) < gzipFrom {
			b.buf = append(b.buf, p...)
			return len(p), nil
		}
		b.start(false)
	}
	// Each write of the transport costs a round through its scheduler: small pieces
	// go together, large ones as they are.
	if len(b.buf) == 0 && len(p) >= chunk*3/4 {
		b.out(p)
		return len(p), b.err
	}
	if b.buf = append(b.buf, p...); len(b.buf) >= chunk {
		b.flush()
	}
	return len(p), b.err
}

func (b *body) flush() {
	b.out(b.buf)
	b.buf = b.buf[:0]
}

func (b *body) start(whole bool) {
	b.open = true
	h := b.q.w.Header()
	if !whole && strings.Contains(b.q.r.Header.Get("Accept-Encoding"), "gzip") {
		h.Set("Content-Encoding", "gzip")
		h.Add("Vary", "Accept-Encoding")
		b.gz = gzips.Get().(*gzip.Writer)
		b.gz.Reset(b.q.w)
	} else if whole {
		h.Set("Content-Length", strconv.Itoa(len(b.buf)))
	}
	b.q.w.WriteHeader(b.code)
	if !whole {
		b.slow = newGuard(b.q.w, slowWrite)
	}
}

func (b *body) out(p []byte) {
	if b.err != nil || b.q.r.Method == http.MethodHead {
		return
	}
	b.err = b.guarded(func() (err error) {
		if b.gz != nil {
			_, err = b.gz.Write(p)
		} else {
			_, err = b.q.w.Write(p)
		}
		return err
	})
}

func (b *body) guarded(write func() error) error {
	if b.slow == nil {
		return write()
	}
	return b.slow.do(slowWrite, write)
}

func (b *body) Close() error {
	if !b.open {
		b.start(true)
	}
	if len(b.buf) > 0 {
		b.flush()
	}
	if b.gz != nil {
		if err := b.guarded(b.gz.Close); b.err == nil {
			b.err = err
		}
		gzips.Put(b.gz)
		b.gz = nil
	}
	if b.slow != nil {
		b.slow.end()
	}
	return b.err
}

// send answers with one object, without transformation.
func (q *request) send(code int, obj runtime.Object, gvk schema.GroupVersionKind) error {
	if q.entry != nil {
		q.entry.Response(wire.Typed(obj, gvk))
	}
	data, err := wire.Encode(q.choice.Format, obj, gvk, q.choice.Pretty)
	if err != nil {
		return err
	}
	if len(data) < gzipFrom {
		h := q.w.Header()
		h.Set("Content-Type", q.choice.Format.ContentType())
		h.Set("Content-Length", strconv.Itoa(len(data)))
		q.w.WriteHeader(code)
		if q.r.Method != http.MethodHead {
			_, err = q.w.Write(data)
		}
		return err
	}
	b := q.newBody(code, q.choice.Format.ContentType())
	b.Write(data)
	return b.Close()
}

// sendObject answers with one object of a row, transformed if so asked.
func (q *request) sendObject(code int, k *kind.Kind, obj kind.Object) error {
	switch q.choice.As {
	case wire.AsTable:
		if k.Virtual && k.Computed == nil {
			// A review has nothing to show in columns.
			return notAcceptable(wire.Accepted)
		}
		t, err := q.table(k, []kind.Object{obj}, metav1.ListMeta{ResourceVersion: obj.GetResourceVersion()})
		if err != nil {
			return err
		}
		return q.send(code, t, q.tableGVK())
	case wire.AsPartial:
		return q.send(code, table.Partial(obj, q.choice.MetaVersion()), q.metaGVK("PartialObjectMetadata"))
	case wire.AsPartialList:
		return notAcceptable(wire.Accepted)
	}
	return q.send(code, obj, k.GVK())
}

func (q *request) metaGVK(kindName string) schema.GroupVersionKind {
	return schema.GroupVersionKind{Group: metav1.GroupName, Version: q.choice.MetaVersion(), Kind: kindName}
}
func (q *request) tableGVK() schema.GroupVersionKind { return q.metaGVK("Table") }

func (q *request) include() (metav1.IncludeObjectPolicy, error) {
	switch p := metav1.IncludeObjectPolicy(q.query.Get("includeObject")); p {
	case "":
		return metav1.IncludeMetadata, nil
	case metav1.IncludeNone, metav1.IncludeMetadata, metav1.IncludeObject:
		return p, nil
	default:
		return "", invalidInclude(p)
	}
}

func (q *request) table(k *kind.Kind, items []kind.Object, meta metav1.ListMeta) (*metav1.Table, error) {
	include, err := q.include()
	if err != nil {
		return nil, err
	}
	return table.Of(k, items, meta, include, q.choice.MetaVersion(), q.s.clock.Now())
}

// sendList answers with a list, writing large ones as it encodes them.
func (q *request) sendList(code int, k *kind.Kind, l *listing) error {
	items, err := servedList(k, l.items)
	if err != nil {
		return err
	}
	l.items = items
	meta := l.meta()
	switch q.choice.As {
	case wire.AsTable:
		t, err := q.table(k, l.items, meta)
		if err != nil {
			return err
		}
		return q.send(code, t, q.tableGVK())
	case wire.AsPartial:
		return notAcceptable(wire.Accepted)
	case wire.AsPartialList:
		return q.send(code, table.PartialList(l.items, meta, q.choice.MetaVersion()), q.metaGVK("PartialObjectMetadataList"))
	}
	gvk := k.GVK()
	gvk.Kind = k.ListOf()
	if q.entry.WantsResponse() {
		var all bytes.Buffer
		if err := writeJSONList(&all, gvk, q.audited(l.items), meta); err == nil {
			q.entry.ResponseJSON(all.Bytes())
		}
	}
	if q.choice.Format == wire.Protobuf {
		item := q.s.stored(q.r.Context(), k, l)
		if item == nil {
			item = func(i int) (wire.Proto, error) { return protoOf(l.items[i]) }
		}
		return wire.ProtoList(q.newBody(code, wire.ProtobufType), gvk, &meta, len(l.items), item)
	}
	if q.choice.Format == wire.JSON && !q.choice.Pretty {
		b := q.newBody(code, wire.JSONType)
		if err := writeJSONList(b, gvk, l.items, meta); err != nil {
			if !b.open {
				return err
			}
			panic(http.ErrAbortHandler)
		}
		return b.Close()
	}
	var buf bytes.Buffer
	if err := writeJSONList(&buf, gvk, l.items, meta); err != nil {
		return err
	}
	data, err := wire.Reformat(q.choice.Format, buf.Bytes())
	if err != nil {
		return err
	}
	b := q.newBody(code, q.choice.Format.ContentType())
	b.Write(data)
	return b.Close()
}

// audited are the items as the audit policy wants them.
func (q *request) audited(items []kind.Object) []kind.Object {
	if !q.entry.Bare() {
		return items
	}
	out := make([]kind.Object, len(items))
	for i, obj := range items {
		out[i] = obj.DeepCopyObject().(kind.Object)
		out[i].SetManagedFields(nil)
	}
	return out
}

func writeJSONList(w interface{ Write([]byte) (int, error) }, gvk schema.GroupVersionKind, items []kind.Object, meta metav1.ListMeta) error {
	head, err := json.Marshal(struct {
		Kind       string          `json:"kind"`
		APIVersion string          `json:"apiVersion"`
		Metadata   metav1.ListMeta `json:"metadata"`
	}{gvk.Kind, gvk.GroupVersion().String(), meta})
	if err != nil {
		return err
	}
	head = append(head[:len(head)-1], `,"items":[`...)
	if _, err := w.Write(head); err != nil {
		return err
	}
	// One buffer for all: the garbage of a large list would cost as much as encoding it.
	buf := make([]byte, 0, chunk)
	for i, obj := range items {
		if i > 0 {
			buf = append(buf, ',')
		}
		if buf, err = wire.AppendJSON(buf, wire.Typed(obj, schema.GroupVersionKind{})); err != nil {
			return err
		}
		if len(buf) < chunk/2 && i < len(items)-1 {
			continue
		}
		if _, err := w.Write(buf); err != nil {
			return err
		}
		buf = buf[:0]
	}
	_, err = w.Write([]byte("]}\n"))
	return err
}

package apiserver

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"

	"proa.dev/apiserver/table"
	"proa.dev/client/wire"
	"proa.dev/kind"
)

// frameKey names one encoded form of a change in its cache.
type frameKey struct {
	kind    *kind.Kind
	format  wire.Format
	as      wire.As
	beta    bool
	typ     watch.EventType
	include metav1.IncludeObjectPolicy
	headers bool
}

// frame is encoded by whoever comes first; the others wait for it.
type frame struct {
	once sync.Once
	data []byte
	err  error
}

// watchEncoder turns events into frames of one request.
type watchEncoder struct {
	q       *request
	src     *source
	include metav1.IncludeObjectPolicy
	headers bool // the next table carries its column definitions
	events  *watchSeries
}

// encode returns one frame. Forms of one change are made once and shared by all
// watchers that want the same.
func (e *watchEncoder) encode(ev event) ([]byte, error) {
	choice := e.q.choice
	key := frameKey{kind: e.src.c.kind, format: choice.Format, as: choice.As, beta: choice.Beta, typ: ev.typ, include: e.include}
	if choice.As == wire.AsTable {
		key.headers, e.headers = e.headers, false
	}
	if ev.change == nil || ev.change.Cache == nil {
		data, err := e.make(ev, key)
		e.events.sent(len(data))
		return data, err
	}
	got, ok := ev.change.Cache.Load(key)
	if !ok {
		got, _ = ev.change.Cache.LoadOrStore(key, new(frame))
	}
	f := got.(*frame)
	f.once.Do(func() { f.data, f.err = e.make(ev, key) })
	e.events.sent(len(f.data))
	return f.data, f.err
}

func (e *watchEncoder) make(ev event, key frameKey) ([]byte, error) {
	if ev.status != nil {
		data, err := wire.Encode(key.format, ev.status, statusGVK, false)
		return wire.Frame(key.format, string(ev.typ), data), err
	}
	k := key.kind
	obj, err := e.src.object(ev)
	if err != nil {
		return nil, err
	}
	var data []byte
	meta := func(name string) schema.GroupVersionKind { return e.q.metaGVK(name) }
	switch key.as {
	case wire.AsTable:
		var t *metav1.Table
		items := []kind.Object{obj}
		if ev.typ == watch.Bookmark {
			items = nil // only its version counts
		}
		t, err = table.Of(k, items, metav1.ListMeta{ResourceVersion: obj.GetResourceVersion()}, key.include, e.q.choice.MetaVersion(), e.q.s.clock.Now())
		if err != nil {
			return nil, err
		}
		if !key.headers {
			t.ColumnDefinitions = nil
		}
		data, err = wire.Encode(key.format, t, meta("Table"), false)
	case wire.AsPartial:
		data, err = wire.Encode(key.format, table.Partial(obj, e.q.choice.MetaVersion()), meta("PartialObjectMetadata"), false)
	default:
		data, err = wire.Encode(key.format, obj, k.GVK(), false)
	}
	if err != nil {
		return nil, err
	}
	return wire.Frame(key.format, string(ev.typ), data), nil
}

// delivery is how much of a watch goes out at once: what fits into one TLS record
// together with the head of its HTTP/2 frame, or it would take two.
const delivery = 16<<10 - 9

// serveWatch streams a watch over HTTP or WebSocket.
func (q *request) serveWatch(ctx context.Context, c *call) error {
	choice, ok := wire.Negotiate(q.accept(), true, false)
	if !ok || choice.Format == wire.YAML || choice.As == wire.AsPartialList {
		return notAcceptable(wire.JSONType + ";stream=watch, " + wire.ProtobufType + ";stream=watch")
	}
	q.choice = choice
	o, err := q.listOptions()
	if err != nil {
		return err
	}
	include, err := q.include()
	if err != nil {
		return err
	}
	if q.route.watchPrefix {
		// /watch/…/NAME watches one object; the field selector finds its name already.
		c.name = q.route.name
	} else {
		c.name = ""
	}
	src, err := q.s.openWatch(ctx, c, o)
	if err != nil {
		return err
	}
	enc := &watchEncoder{q: q, src: src, include: include, headers: true, events: q.s.metrics.watch(c.kind)}
	src.settled = q.leave
	if isWebSocket(q.r) {
		return q.watchWebSocket(ctx, src, enc)
	}
	q.w.Header().Set("Content-Type", q.choice.Format.StreamType())
	q.w.WriteHeader(http.StatusOK)
	rc := http.NewResponseController(q.w)
	rc.Flush()
	g := newGuard(q.w, slowWrite)
	defer g.end()
	buf := make([]byte, 0, delivery)
	deliver := func(batch []event) error {
		for i := range batch {
			data, err := enc.encode(batch[i])
			if err != nil {
				q.s.log.Error("watch event could not be encoded", "kind", c.kind.String(), "error", err)
				return err
			}
			// Large frames go out as they are, small ones together.
			if len(buf)+len(data) > cap(buf) && len(buf) > 0 {
				if _, err := q.w.Write(buf); err != nil {
					return err
				}
				buf = buf[:0]
			}
			if len(data) > cap(buf) {
				if _, err := q.w.Write(data); err != nil {
					return err
				}
				continue
			}
			buf = append(buf, data...)
		}
		if len(buf) > 0 {
			if _, err := q.w.Write(buf); err != nil {
				return err
			}
			buf = buf[:0]
		}
		return rc.Flush()
	}
	err = src.run(ctx, func(batch []event) error {
		return g.do(slowWrite, func() error { return deliver(batch) })
	})
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func isWebSocket(r *http.Request) bool {
	return strings.EqualFold(r.Header.Get("Upgrade"), "websocket") && strings.Contains(strings.ToLower(r.Header.Get("Connection")), "upgrade")
}

var upgrader = websocket.Upgrader{HandshakeTimeout: 10 * time.Second, ReadBufferSize: 1 << 10, WriteBufferSize: 16 << 10,
	// Browsers' same-origin rule is no protection here: identity comes with the request.
	CheckOrigin: func(*http.Request) bool { return true }}

func (q *request) watchWebSocket(ctx context.Context, src *source, enc *watchEncoder) error {
	var h http.Header
	for _, p := range websocket.Subprotocols(q.r) {
		// A token in the subprotocol is a credential, not a protocol.
		if !strings.HasPrefix(p, "base64url.bearer.") {
			h = http.Header{"Sec-Websocket-Protocol": {p}}
			break
		}
	}
	conn, err := upgrader.Upgrade(q.w, q.r, h)
	if err != nil {
		// Upgrade has answered.
		q.code = max(q.code, 400)
		return nil
	}
	q.code = http.StatusSwitchingProtocols
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	var reader sync.WaitGroup
	reader.Go(func() {
		defer cancel()
		for {
			if _, _, err := conn.NextReader(); err != nil {
				return
			}
		}
	})
	typ := websocket.TextMessage
	if q.choice.Format == wire.Protobuf {
		typ = websocket.BinaryMessage
	}
	err = src.run(ctx, func(batch []event) error {
		for i := range batch {
			data, err := enc.encode(batch[i])
			if err != nil {
				return err
			}
			if q.choice.Format == wire.Protobuf {
				data = data[4:] // messages have their own length
			}
			conn.SetWriteDeadline(time.Now().Add(10 * time.Second)) // connections know the machine's clock only
			if err := conn.WriteMessage(typ, data); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(time.Second))
	}
	conn.Close()
	cancel()
	reader.Wait()
	return nil
}

package apiserver_test

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/apiserver"
	"proa.dev/apiserver/apitest"
	"proa.dev/client/wire"
	"proa.dev/kind"
)

// TestSplicedLists: lists made of stored bytes are byte for byte those that are
// encoded, also of pages and selections, and of objects before this program's.
func TestSplicedLists(t *testing.T) {
	var change *apiserver.Config
	c := apitest.Start(t, func(cfg *apiserver.Config) { change = cfg })
	st := c.Store
	l := c.Server.Local(apitest.Admin)
	ctx := context.Background()
	var middle int64
	for i := range 200 {
		for _, ns := range []string{"default", "kube-system"} {
			cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: fmt.Sprintf("m-%03d", i), GenerateName: "m-",
				Labels: map[string]string{"half": fmt.Sprint(i % 2), "rare": fmt.Sprint(i % 50)}, Finalizers: []string{"example.com/a"}},
				Data: map[string]string{"b": "2", "a": "1"}, BinaryData: map[string][]byte{"x": {0, 1, 2}}}
			if _, err := l.Create(ctx, kind.ConfigMap, cm, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		if i == 100 {
			middle = st.Revision()
		}
	}
	serve := func(written int64) http.Handler {
		cfg := *change
		cfg.Written = written
		s, err := apiserver.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		return s.Handler()
	}
	get := func(h http.Handler, path string) []byte {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer admin")
		r.Header.Set("Accept", wire.ProtobufType)
		w := &recorded{header: http.Header{}}
		h.ServeHTTP(w, r)
		if w.code != http.StatusOK {
			t.Fatalf("%s: %d %s", path, w.code, w.body.Bytes())
		}
		return w.body.Bytes()
	}
	encoded := serve(0)
	for _, written := range []int64{1, middle} {
		spliced := serve(written)
		for _, path := range []string{"/api/v1/configmaps", "/api/v1/namespaces/default/configmaps", "/api/v1/configmaps?labelSelector=half%3D1",
			"/api/v1/configmaps?labelSelector=rare%3D7", fmt.Sprintf("/api/v1/configmaps?resourceVersion=%d&resourceVersionMatch=Exact", middle),
			fmt.Sprintf("/api/v1/configmaps?resourceVersion=%d&limit=40", middle), "/api/v1/namespaces"} {
			want, got := get(encoded, path), get(spliced, path)
			if _, _, err := wire.Unwrap(got); err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(path, "limit") && !bytes.Equal(want, got) {
				t.Errorf("%s from %d: the answers differ (%d and %d bytes)", path, written, len(want), len(got))
			}
			var a, b corev1.ConfigMapList
			if path == "/api/v1/namespaces" {
				continue
			}
			for data, list := range map[*[]byte]*corev1.ConfigMapList{&want: &a, &got: &b} {
				if _, err := wire.Decode(wire.Protobuf, *data, list, false); err != nil {
					t.Fatal(err)
				}
			}
			if len(a.Items) == 0 || fmt.Sprint(a.Items) != fmt.Sprint(b.Items) {
				t.Errorf("%s from %d: the lists differ", path, written)
			}
		}
	}
}

// recorded is an http.ResponseWriter.
type recorded struct {
	header http.Header
	code   int
	body   bytes.Buffer
}

func (r *recorded) Header() http.Header         { return r.header }
func (r *recorded) WriteHeader(code int)        { r.code = code }
func (r *recorded) Write(p []byte) (int, error) { return r.body.Write(p) }

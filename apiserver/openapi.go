package apiserver

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	openapi_v2 "github.com/google/gnostic-models/openapiv2"
	"github.com/klauspost/compress/gzip"
	"google.golang.org/protobuf/proto"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"proa.dev/apiserver/openapi"
	"proa.dev/client/wire"
	"proa.dev/internal/zipped"
)

const (
	openAPIv2Proto  = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"
	openAPIv2Proto2 = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
)

// compressed is a document that is large and rarely asked for: made on first use
// and kept compressed only.
func (s *Server) compressed(name string, make func() ([]byte, error)) (document, error) {
	return s.documents().get(name, func() ([]byte, error) {
		data, err := make()
		if err != nil || data == nil {
			return nil, err
		}
		return zipped.Of(data)
	})
}

// sendCompressed answers with a kept document, unpacked for clients that cannot.
func (q *request) sendCompressed(doc document, contentType string) error {
	h := q.w.Header()
	h.Add("Vary", "Accept-Encoding")
	h.Add("Vary", "Accept")
	if q.notModified(doc) {
		return nil
	}
	h.Set("Content-Type", contentType)
	if strings.Contains(q.r.Header.Get("Accept-Encoding"), "gzip") {
		h.Set("Content-Encoding", "gzip")
		h.Set("Content-Length", fmt.Sprint(len(doc.data)))
		q.w.WriteHeader(http.StatusOK)
		if q.r.Method != http.MethodHead {
			q.w.Write(doc.data)
		}
		return nil
	}
	r, err := gzip.NewReader(bytes.NewReader(doc.data))
	if err != nil {
		return err
	}
	q.w.WriteHeader(http.StatusOK)
	if q.r.Method != http.MethodHead {
		io.Copy(q.w, r)
	}
	return nil
}

func (q *request) serveOpenAPI(path string) error {
	switch {
	case path == "/openapi/v2":
		return q.serveOpenAPIv2()
	case path == "/openapi/v3" || path == "/openapi/v3/":
		return q.serveOpenAPIIndex()
	}
	if rest, ok := strings.CutPrefix(path, "/openapi/v3/"); ok {
		return q.serveOpenAPIv3(rest)
	}
	return errPath()
}

// v2 is the whole document as JSON, with the parts of other servers.
func (s *Server) v2() ([]byte, error) {
	data, err := openapi.V2(s.kinds(), s.cfg.Version.GitVersion)
	if err != nil {
		return nil, err
	}
	return s.remotes().MergeV2(data)
}

func (q *request) serveOpenAPIv2() error {
	accept := q.r.Header.Get("Accept")
	for _, part := range strings.Split(accept, ",") {
		part, _, _ = strings.Cut(strings.TrimSpace(part), ";")
		switch part {
		case openAPIv2Proto, openAPIv2Proto2:
			doc, err := q.s.compressed("openapi/v2/proto", func() ([]byte, error) {
				data, err := q.s.v2()
				if err != nil {
					return nil, err
				}
				d, err := openapi_v2.ParseDocument(data)
				if err != nil {
					return nil, fmt.Errorf("turn OpenAPI v2 into protobuf: %w", err)
				}
				return proto.Marshal(d)
			})
			if err != nil {
				return err
			}
			return q.sendCompressed(doc, openAPIv2Proto2)
		case "", "*/*", "application/*", wire.JSONType:
			doc, err := q.s.compressed("openapi/v2/json", q.s.v2)
			if err != nil {
				return err
			}
			return q.sendCompressed(doc, wire.JSONType)
		}
	}
	return notAcceptable(wire.JSONType + ", " + openAPIv2Proto2)
}

// schemaHash changes when a group version's document may have changed: it stands
// for the program's version and the rows, so that the index costs no documents.
func (s *Server) schemaHash(gv schema.GroupVersion) string {
	h := sha256.New()
	fmt.Fprintln(h, s.cfg.Version.GitVersion, s.cfg.Version.GitCommit, gv)
	for _, k := range s.kinds().GroupVersion(gv.Group, gv.Version) {
		fmt.Fprintln(h, k.Kind, k.Plural, k.Scope, k.Status != nil, k.Scale != nil, len(k.Subresources))
		if p, ok := k.Extension.(openapi.Published); ok {
			fmt.Fprintln(h, p.Identity())
		}
	}
	return strings.ToUpper(hex.EncodeToString(h.Sum(nil)))
}

func (q *request) serveOpenAPIIndex() error {
	paths := map[string]any{}
	for _, gv := range openapi.Versions(q.s.kinds()) {
		p := openapi.Path(gv)
		paths[p] = map[string]string{"serverRelativeURL": "/openapi/v3/" + p + "?hash=" + q.s.schemaHash(gv)}
	}
	for p, doc := range q.s.remotes().V3 {
		paths[p] = map[string]string{"serverRelativeURL": "/openapi/v3/" + p + "?hash=" + doc.Hash}
	}
	data, err := json.Marshal(map[string]any{"paths": paths})
	if err != nil {
		return err
	}
	sum := sha256.Sum256(data)
	if q.notModified(document{etag: strings.ToUpper(hex.EncodeToString(sum[:]))}) {
		return nil
	}
	return q.plain(http.StatusOK, wire.JSONType, data)
}

func (q *request) serveOpenAPIv3(path string) error {
	if doc := q.s.remotes().V3[path]; doc != nil {
		return q.sendV3(doc.Hash, func() (document, error) { return document{data: doc.Gzip}, nil })
	}
	for _, gv := range openapi.Versions(q.s.kinds()) {
		if openapi.Path(gv) != path {
			continue
		}
		return q.sendV3(q.s.schemaHash(gv), func() (document, error) {
			return q.s.compressed("openapi/v3/"+path, func() ([]byte, error) { return openapi.V3(q.s.kinds(), gv, q.s.cfg.Version.GitVersion) })
		})
	}
	return errPath()
}

// sendV3 answers with the document of one group version.
func (q *request) sendV3(hash string, get func() (document, error)) error {
	switch accept := q.r.Header.Get("Accept"); {
	case accept == "", strings.Contains(accept, "*/*"), strings.Contains(accept, wire.JSONType):
	default:
		return notAcceptable(wire.JSONType)
	}
	if asked := q.query.Get("hash"); asked != "" {
		if asked != hash {
			to := url.URL{Path: q.r.URL.Path, RawQuery: "hash=" + hash}
			q.w.Header().Set("Location", to.String())
			q.w.WriteHeader(http.StatusMovedPermanently)
			return nil
		}
		// A URL with its hash never changes.
		q.w.Header().Set("Cache-Control", "public, immutable")
		q.w.Header().Set("Expires", q.s.clock.Now().AddDate(1, 0, 0).UTC().Format(http.TimeFormat))
	}
	doc, err := get()
	if err != nil {
		return err
	}
	doc.etag = hash
	return q.sendCompressed(doc, wire.JSONType)
}

package aggregate

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/klauspost/compress/gzip"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"proa.dev/internal/zipped"
)

// documents fetches the OpenAPI of a server. What cannot be fetched stays as it was.
func (a *Aggregator) documents(ctx context.Context, n *known, svc *apiregistrationv1.APIService) {
	w, err := a.Way(svc)
	if err != nil {
		return
	}
	path := "apis/" + svc.Spec.Group + "/" + svc.Spec.Version
	v3, tag3, err3 := w.v3(ctx, path, n.etag[1])
	v2, tag2, err2 := w.v2(ctx, path, n.etag[0])
	for _, err := range []error{err3, err2} {
		if err != nil && ctx.Err() == nil {
			a.cfg.Log.Debug("OpenAPI of an APIService was not fetched", "apiservice", svc.Name, "error", err)
		}
	}
	if ctx.Err() != nil {
		return
	}
	a.mu.Lock()
	if v3 != nil && (n.v3 == nil || n.v3.Hash != v3.Hash) {
		n.v3 = v3
	}
	if v2 != nil && (n.v2 == nil || n.v2.Hash != v2.Hash) {
		n.v2 = v2
	}
	n.etag = [2]string{tag2, tag3}
	a.mu.Unlock()
	a.publish()
}

// fetch reads a document; nil data when the server has it as etag says.
func (w *Way) fetch(ctx context.Context, path, etag string) (data []byte, tag string, err error) {
	ctx, cancel := context.WithTimeout(ctx, DocumentTimeout)
	defer cancel()
	resp, u, err := w.get(ctx, "", path, "application/json", etag)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusNotModified:
		return nil, etag, nil
	case resp.StatusCode != http.StatusOK:
		return nil, "", fmt.Errorf("fetch %v: status %d", u, resp.StatusCode)
	}
	var body io.Reader = resp.Body
	if resp.Header.Get("Content-Encoding") == "gzip" {
		if body, err = gzip.NewReader(body); err != nil {
			return nil, "", fmt.Errorf("fetch %v: %w", u, err)
		}
	}
	if data, err = io.ReadAll(io.LimitReader(body, MaxDocument+1)); err != nil {
		return nil, "", fmt.Errorf("fetch %v: %w", u, err)
	}
	if len(data) > MaxDocument {
		return nil, "", fmt.Errorf("fetch %v: more than %d bytes", u, MaxDocument)
	}
	return data, resp.Header.Get("ETag"), nil
}

// v3 is the document of one group version.
func (w *Way) v3(ctx context.Context, path, etag string) (*Document, string, error) {
	data, tag, err := w.fetch(ctx, "/openapi/v3", etag)
	if err != nil || data == nil {
		return nil, tag, err
	}
	var index struct {
		Paths map[string]struct {
			ServerRelativeURL string `json:"serverRelativeURL"`
		} `json:"paths"`
	}
	if err := json.Unmarshal(data, &index); err != nil {
		return nil, "", fmt.Errorf("read the OpenAPI index: %w", err)
	}
	at, ok := index.Paths[path]
	if !ok {
		return nil, tag, nil
	}
	if !strings.HasPrefix(at.ServerRelativeURL, "/openapi/v3/") {
		return nil, "", fmt.Errorf("read the OpenAPI index: %q is no path below /openapi/v3/", at.ServerRelativeURL)
	}
	if data, _, err = w.fetch(ctx, at.ServerRelativeURL, ""); err != nil || data == nil {
		return nil, "", err
	}
	if !json.Valid(data) {
		return nil, "", fmt.Errorf("read %q: it is no JSON", at.ServerRelativeURL)
	}
	d, err := pack(data)
	return d, tag, err
}

// v2 is what a server's v2 document says about one group version: the paths below
// it and what these refer to.
func (w *Way) v2(ctx context.Context, path, etag string) (*Document, string, error) {
	data, tag, err := w.fetch(ctx, "/openapi/v2", etag)
	if err != nil || data == nil {
		return nil, tag, err
	}
	var doc map[string]any
	if err := json.Unmarshal(data, &doc); err != nil {
		return nil, "", fmt.Errorf("read OpenAPI v2: %w", err)
	}
	paths, _ := doc["paths"].(map[string]any)
	defs, _ := doc["definitions"].(map[string]any)
	params, _ := doc["parameters"].(map[string]any)
	keptPaths, keptDefs, keptParams := map[string]any{}, map[string]any{}, map[string]any{}
	var follow func(v any)
	follow = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			if ref, ok := v["$ref"].(string); ok {
				keep := func(prefix string, from, to map[string]any) {
					if name, ok := strings.CutPrefix(ref, prefix); ok {
						if _, has := to[name]; !has && from[name] != nil {
							to[name] = from[name]
							follow(from[name])
						}
					}
				}
				keep(definitionPrefix, defs, keptDefs)
				keep(parameterPrefix, params, keptParams)
			}
			for _, x := range v {
				follow(x)
			}
		case []any:
			for _, x := range v {
				follow(x)
			}
		}
	}
	for p, item := range paths {
		if p == "/"+path || strings.HasPrefix(p, "/"+path+"/") {
			keptPaths[p] = item
			follow(item)
		}
	}
	if data, err = json.Marshal(map[string]any{"paths": keptPaths, "definitions": keptDefs, "parameters": keptParams}); err != nil {
		return nil, "", err
	}
	d, err := pack(data)
	return d, tag, err
}

const (
	definitionPrefix = "#/definitions/"
	parameterPrefix  = "#/parameters/"
)

func pack(data []byte) (*Document, error) {
	packed, err := zipped.Of(data)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(data)
	return &Document{Gzip: packed, Hash: strings.ToUpper(hex.EncodeToString(sum[:]))}, nil
}

// JSON of a document.
func (d *Document) JSON() ([]byte, error) { return zipped.Open(d.Gzip) }

// MergeV2 adds the parts of other servers to a v2 document. A definition that is
// there already under the same name and says something else gets another name.
func (s *State) MergeV2(base []byte) ([]byte, error) {
	if len(s.V2) == 0 {
		return base, nil
	}
	var doc map[string]any
	if err := json.Unmarshal(base, &doc); err != nil {
		return nil, err
	}
	section := func(of map[string]any, name string) map[string]any {
		m, _ := of[name].(map[string]any)
		if m == nil {
			m = map[string]any{}
			of[name] = m
		}
		return m
	}
	for _, d := range s.V2 {
		data, err := d.JSON()
		if err != nil {
			return nil, err
		}
		var part map[string]any
		if err := json.Unmarshal(data, &part); err != nil {
			return nil, err
		}
		renamed := map[string]string{}
		for name, prefix := range map[string]string{"definitions": definitionPrefix, "parameters": parameterPrefix} {
			have := section(doc, name)
			for n, v := range section(part, name) {
				to := n
				for i := 2; have[to] != nil && !same(have[to], v); i++ {
					to = fmt.Sprintf("%s_v%d", n, i)
				}
				if to != n {
					renamed[prefix+n] = prefix + to
				}
			}
		}
		rename(part, renamed)
		for name, prefix := range map[string]string{"definitions": definitionPrefix, "parameters": parameterPrefix} {
			have := section(doc, name)
			for n, v := range section(part, name) {
				if to, ok := renamed[prefix+n]; ok {
					n = strings.TrimPrefix(to, prefix)
				}
				if have[n] == nil {
					have[n] = v
				}
			}
			if len(have) == 0 {
				delete(doc, name)
			}
		}
		paths := section(doc, "paths")
		for p, item := range section(part, "paths") {
			paths[p] = item
		}
	}
	return json.Marshal(doc)
}

func same(a, b any) bool {
	x, _ := json.Marshal(a)
	y, _ := json.Marshal(b)
	return bytes.Equal(x, y)
}

// rename rewrites references.
func rename(v any, to map[string]string) {
	switch v := v.(type) {
	case map[string]any:
		if ref, ok := v["$ref"].(string); ok && to[ref] != "" {
			v["$ref"] = to[ref]
		}
		for _, x := range v {
			rename(x, to)
		}
	case []any:
		for _, x := range v {
			rename(x, to)
		}
	}
}

package image

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	godigest "github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// A testRegistry is a registry on loopback, with a hook in front of it.
type testRegistry struct {
	*httptest.Server
	mu   sync.Mutex
	hook func(w http.ResponseWriter, r *http.Request) (handled bool)
	log  []string
}

func newRegistry(t testing.TB) *testRegistry {
	t.Helper()
	reg := &testRegistry{}
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	reg.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		reg.mu.Lock()
		reg.log = append(reg.log, r.Method+" "+r.URL.Path)
		hook := reg.hook
		reg.mu.Unlock()
		if hook != nil && hook(w, r) {
			return
		}
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(reg.Close)
	return reg
}

func (reg *testRegistry) set(hook func(w http.ResponseWriter, r *http.Request) bool) {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	reg.hook = hook
}

func (reg *testRegistry) host() string { return strings.TrimPrefix(reg.URL, "http://") }

// count returns how many requests so far contain part, and forgets them all.
func (reg *testRegistry) count(part string) int {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	n := 0
	for _, line := range reg.log {
		if strings.Contains(line, part) {
			n++
		}
	}
	reg.log = nil
	return n
}

func (reg *testRegistry) put(t testing.TB, path, contentType string, body []byte) {
	t.Helper()
	method := http.MethodPut
	req, err := http.NewRequest(method, reg.URL+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		msg, _ := io.ReadAll(resp.Body)
		t.Fatalf("put %s: %s %s", path, resp.Status, msg)
	}
}

func (reg *testRegistry) pushBlob(t testing.TB, repo string, blob []byte) {
	t.Helper()
	resp, err := http.Post(reg.URL+"/v2/"+repo+"/blobs/uploads/?digest="+digestOf(blob), "application/octet-stream", bytes.NewReader(blob))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		t.Fatalf("push blob: %s", resp.Status)
	}
}

func (reg *testRegistry) push(t testing.TB, repo, tag string, b built) {
	t.Helper()
	for _, blob := range append([][]byte{b.config}, b.blobs...) {
		reg.pushBlob(t, repo, blob)
	}
	reg.put(t, "/v2/"+repo+"/manifests/"+tag, b.manifestType, b.manifest)
}

func pull(s *Store, ref string, auth *Auth) (Image, error) {
	return s.Pull(context.Background(), ref, auth, nil)
}

func TestPull(t *testing.T) {
	for name, compress := range map[string]codec{"gzip": gzipped, "zstd": func(b []byte) []byte { return zstded(t, b) }, "plain": plainCodec} {
		t.Run(name, func(t *testing.T) {
			s, reg := openStore(t), newRegistry(t)
			b := simple(t, compress, "one", "two", "three")
			reg.push(t, "team/web", "1", b)
			ref := reg.host() + "/team/web:1"
			img, err := pull(s, ref, nil)
			if err != nil {
				t.Fatal(err)
			}
			pin := reg.host() + "/team/web@" + b.digest()
			if img.ID != b.id() || !slices.Equal(img.Names, []string{ref}) || !slices.Equal(img.Digests, []string{pin}) || img.Source != Pulled {
				t.Errorf("image: %+v", img)
			}
			if lowers, err := s.Lowers(img); err != nil || len(lowers) != 3 {
				t.Errorf("lowers: %v %v", lowers, err)
			}
			s = reopen(t, s)
			reg.count("")
			if _, err := pull(s, ref, nil); err != nil {
				t.Fatal(err)
			}
			if n := reg.count("GET /v2/team"); n != 0 {
				t.Errorf("pulling again fetched %d things", n)
			}
			if img, err := pull(s, pin, nil); err != nil || img.ID != b.id() {
				t.Errorf("pull by digest: %v", err)
			}
		})
	}
}

// Docker's own media types and a list of platforms.
func TestPullDockerManifestList(t *testing.T) {
	s, reg := openStore(t), newRegistry(t)
	b := simple(t, gzipped, "one")
	b.manifestType = "application/vnd.docker.distribution.manifest.v2+json"
	b.manifest = bytes.Replace(b.manifest, []byte(v1.MediaTypeImageManifest), []byte(b.manifestType), 1)
	reg.push(t, "web", b.digest(), b)
	list := mustJSON(t, map[string]any{"schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.list.v2+json", "manifests": []v1.Descriptor{
		{MediaType: b.manifestType, Digest: godigest.Digest(b.digest()), Size: int64(len(b.manifest)), Platform: &v1.Platform{OS: "linux", Architecture: s.cfg.Architecture}}}})
	reg.put(t, "/v2/web/manifests/1", "application/vnd.docker.distribution.manifest.list.v2+json", list)
	img, err := pull(s, reg.host()+"/web:1", nil)
	if err != nil {
		t.Fatal(err)
	}
	if img.Manifest != b.digest() || !slices.Equal(img.Digests, []string{reg.host() + "/web@" + digestOf(list)}) {
		t.Errorf("image: %+v", img)
	}
}

func TestPullTagMoves(t *testing.T) {
	s, reg := openStore(t), newRegistry(t)
	one, two := simple(t, gzipped, "one"), simple(t, gzipped, "two")
	ref := reg.host() + "/web:1"
	reg.push(t, "web", "1", one)
	if _, err := pull(s, ref, nil); err != nil {
		t.Fatal(err)
	}
	reg.push(t, "web", "1", two)
	if img, err := pull(s, ref, nil); err != nil || img.ID != two.id() {
		t.Fatalf("%v %v", img.ID, err)
	}
	old, found := s.Get(reg.host() + "/web@" + one.digest())
	if !found || len(old.Names) != 0 {
		t.Errorf("the old image: %+v", old)
	}
	reg.push(t, "web", "1", one) // and back, without fetching anything
	reg.count("")
	if img, err := pull(s, ref, nil); err != nil || img.ID != one.id() || len(img.Names) != 1 {
		t.Fatalf("%+v %v", img, err)
	}
	if n := reg.count("/blobs/"); n != 0 {
		t.Errorf("%d blobs fetched", n)
	}
}

func TestPullSharesLayers(t *testing.T) {
	s, reg := openStore(t), newRegistry(t)
	base := tarOf(t, entry{name: "base", body: "b"})
	one := build(t, "", gzipped, base)
	two := build(t, "", func(b []byte) []byte { return zstded(t, b) }, base, tarOf(t, entry{name: "top", body: "t"}))
	reg.push(t, "one", "1", one)
	reg.push(t, "two", "1", two)
	if _, err := pull(s, reg.host()+"/one:1", nil); err != nil {
		t.Fatal(err)
	}
	reg.count("")
	if _, err := pull(s, reg.host()+"/two:1", nil); err != nil {
		t.Fatal(err)
	}
	if n := reg.count("/blobs/"); n != 2 {
		t.Errorf("%d blobs fetched, want the config and the top layer", n)
	}
}

func TestPullErrorsNameTheAnswer(t *testing.T) {
	s, reg := openStore(t), newRegistry(t)
	reg.push(t, "web", "1", simple(t, gzipped, "one"))
	_, err := pull(s, reg.host()+"/web:1.4", nil)
	want := fmt.Sprintf(`pull image "%s/web:1.4": manifest not found (404) at %s/v2/web/manifests/1.4`, reg.host(), reg.URL)
	if err == nil || err.Error() != want {
		t.Errorf("error %v\n want %s", err, want)
	}
	var re *RegistryError
	if !errors.As(err, &re) || re.Status != 404 {
		t.Errorf("no RegistryError in %v", err)
	}
	_, err = pull(s, reg.host()+"/none:1", nil)
	wantError(t, err, "manifest not found (404)", "NAME_UNKNOWN")
	_, err = pull(s, "Bad//Name", nil)
	wantError(t, err, "invalid reference format")

	for status, text := range map[int]string{403: "access to the manifest denied (403)", 429: "too many requests (429)", 500: "internal server error (500)"} {
		reg.set(func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/manifests/") {
				return false
			}
			w.WriteHeader(status)
			fmt.Fprintf(w, `{"errors":[{"code":"DENIED","message":"because\nof %d"}]}`, status)
			return true
		})
		_, err := pull(s, reg.host()+"/web:1", nil)
		wantError(t, err, text, fmt.Sprintf("DENIED: because of %d", status))
	}
	reg.Close()
	_, err = pull(s, reg.host()+"/web:1", nil)
	wantError(t, err, "connection refused", reg.host())
	wantEmpty(t, s, "tmp", "layers", "blobs/sha256")
}

func TestPullRefusesWrongContent(t *testing.T) {
	evil := gzipped(tarOf(t, entry{name: "evil", body: "x"}))
	for name, c := range map[string]struct {
		part string
		body []byte
		ref  string
		want string
	}{
		"layer, same size": {"/blobs/LAYER", nil, ":1", "blob has the digest"},
		"layer":            {"/blobs/LAYER", evil, ":1", "instead of"},
		"config":           {"/blobs/CONFIG", []byte("{}"), ":1", "instead of"},
		"pinned":           {"/manifests/", []byte("{}"), "@DIGEST", "manifest has the digest"},
		"too big":          {"/manifests/", bytes.Repeat([]byte(" "), maxManifestBytes+1), ":1", "larger than allowed"},
		"schema 1":         {"/manifests/", []byte(`{"schemaVersion":1,"fsLayers":[]}`), ":1", "schema 1"},
		"both":             {"/manifests/", []byte(`{"schemaVersion":2,"manifests":[],"layers":[]}`), ":1", "at once"},
		"artifact":         {"/blobs/CONFIG", nil, ":artifact", "not a container image"},
	} {
		t.Run(name, func(t *testing.T) {
			s, reg := openStore(t), newRegistry(t)
			b := simple(t, gzipped, "one", "two")
			reg.push(t, "web", "1", b)
			if name == "artifact" {
				a := b
				a.config = []byte(`{"hello":"world"}`)
				a.manifest = mustJSON(t, document{SchemaVersion: 2, Layers: []v1.Descriptor{}, Config: &v1.Descriptor{
					MediaType: "application/vnd.example.config", Digest: godigest.Digest(a.id()), Size: int64(len(a.config))}})
				reg.push(t, "web", "artifact", a)
			}
			fill := strings.NewReplacer("LAYER", digestOf(b.blobs[1]), "CONFIG", b.id(), "DIGEST", b.digest())
			reg.set(func(w http.ResponseWriter, r *http.Request) bool {
				if name == "layer, same size" {
					c.body = bytes.Clone(b.blobs[1])
					c.body[4] ^= 1 // gzip's time stamp
				}
				if c.body == nil || r.Method != http.MethodGet || !strings.Contains(r.URL.Path, fill.Replace(c.part)) {
					return false
				}
				w.Write(c.body)
				return true
			})
			_, err := pull(s, reg.host()+"/web"+fill.Replace(c.ref), nil)
			wantError(t, err, c.want)
			wantEmpty(t, s, "tmp", "layers", "blobs/sha256")
		})
	}
}

func basicAuth(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

func TestPullWithBasicAuth(t *testing.T) {
	s, reg := openStore(t), newRegistry(t)
	b := simple(t, gzipped, "one")
	reg.push(t, "web", "1", b)
	reg.set(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") == basicAuth("ann", "secret") {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
		w.WriteHeader(http.StatusUnauthorized)
		io.WriteString(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`)
		return true
	})
	for _, auth := range []*Auth{nil, {}, {Username: "ann", Password: "wrong"}} {
		_, err := pull(s, reg.host()+"/web:1", auth)
		wantError(t, err, "no valid credential", "(401)", "authentication required")
		if err != nil && strings.Contains(err.Error(), "wrong") {
			t.Errorf("the password is in the error: %v", err)
		}
	}
	if _, err := pull(s, reg.host()+"/web:1", &Auth{Username: "ann", Password: "secret"}); err != nil {
		t.Error(err)
	}
}

func TestPullWithBearerTokens(t *testing.T) {
	s, reg := openStore(t), newRegistry(t)
	b := simple(t, gzipped, "one", "two")
	reg.push(t, "team/web", "1", b)
	var scope atomic.Value
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.ParseForm()
		scope.Store(r.Form.Get("scope"))
		if r.Header.Get("Authorization") == basicAuth("ann", "secret") || r.Form.Get("refresh_token") == "refresh" {
			io.WriteString(w, `{"token":"good","access_token":"good"}`)
			return
		}
		w.WriteHeader(http.StatusUnauthorized)
		io.WriteString(w, `{"errors":[{"code":"UNAUTHORIZED","message":"who are you"}]}`)
	}))
	defer tokens.Close()
	// The library refuses addresses of this machine here, but not its name.
	realm := strings.Replace(tokens.URL, "127.0.0.1", "localhost", 1)
	reg.set(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") == "Bearer good" {
			return false
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="reg"`, realm))
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	_, err := pull(s, reg.host()+"/team/web:1", nil)
	wantError(t, err, "(401)", realm+"/token", "who are you")
	for _, auth := range []Auth{{Username: "ann", Password: "secret"}, {IdentityToken: "refresh"}, {RegistryToken: "good"}} {
		img, err := pull(s, reg.host()+"/team/web:1", &auth)
		if err != nil {
			t.Errorf("%+v: %v", auth, err)
			continue
		}
		if err := s.Remove(img.ID); err != nil {
			t.Error(err)
		}
	}
	if got, _ := scope.Load().(string); got != "repository:team/web:pull" {
		t.Errorf("scope %q", got)
	}
}

func TestMirrors(t *testing.T) {
	empty, full := newRegistry(t), newRegistry(t)
	b := simple(t, gzipped, "one")
	full.push(t, "cache/library/web", "1", b)
	seen := make(chan string, 100)
	full.set(func(w http.ResponseWriter, r *http.Request) bool {
		seen <- r.Header.Get("Authorization")
		return false
	})
	s := openStore(t, func(c *Config) {
		c.Mirrors = map[string][]Mirror{
			"docker.io": {{Endpoint: empty.URL}, {Endpoint: full.URL + "/v2/cache", Final: true}},
			"*":         {{Endpoint: empty.URL, Final: true}},
		}
	})
	img, err := pull(s, "web:1", &Auth{Username: "ann", Password: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(img.Names, []string{"docker.io/library/web:1"}) || !slices.Equal(img.Digests, []string{"docker.io/library/web@" + b.digest()}) {
		t.Errorf("image: %+v", img)
	}
	for len(seen) > 0 {
		if header := <-seen; header != "" {
			t.Errorf("the registry's credential went to the mirror: %q", header)
		}
	}
	_, err = pull(s, "web:2", nil)
	wantError(t, err, "manifest not found (404) at "+empty.URL+"/v2/library/web/manifests/2", "; then: ", full.URL+"/v2/cache/library/web/manifests/2")
	_, err = pull(s, "reg.example/web:2", nil)
	wantError(t, err, empty.URL+"/v2/web/manifests/2")
}

// Private addresses get no plain http, and so no credential in clear text.
func TestNoPlainHTTPWithoutLeave(t *testing.T) {
	var asked atomic.Int32
	g := &guard{host: "10.0.0.1:5000", next: roundTrip(func(*http.Request) (*http.Response, error) { asked.Add(1); return nil, io.EOF })}
	for _, c := range []struct {
		url    string
		header string
		ep     endpoint
		pass   bool
	}{
		{"http://10.0.0.1:5000/v2/", "", endpoint{}, false},
		{"https://10.0.0.1:5000/v2/", "", endpoint{}, true},
		{"http://10.0.0.1:5000/v2/", "", endpoint{scheme: "http", insecure: true}, true},
		{"https://10.0.0.1:5000/v2/", "", endpoint{scheme: "http", insecure: true}, false},
		{"http://tokens.example/", "Basic x", endpoint{}, false},
		{"http://storage.example/", "", endpoint{}, true},
		{"http://127.0.0.1:1/", "Basic x", endpoint{}, true},
	} {
		g.ep = c.ep
		req, _ := http.NewRequest(http.MethodGet, c.url, nil)
		if c.header != "" {
			req.Header.Set("Authorization", c.header)
		}
		before := asked.Load()
		_, err := g.RoundTrip(req)
		if passed := asked.Load() > before; passed != c.pass || passed == errors.Is(err, errScheme) {
			t.Errorf("%s %q %+v: passed %v, %v", c.url, c.header, c.ep, passed, err)
		}
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// A connection that breaks in a layer is picked up where it broke.
func TestPullResumes(t *testing.T) {
	noise := make([]byte, 300<<10)
	for i := range noise {
		noise[i] = byte(i * i >> 3)
	}
	for _, ranges := range []bool{true, false} {
		s, reg := openStore(t), newRegistry(t)
		b := build(t, "", plainCodec, tarOf(t, entry{name: "noise", body: string(noise)}))
		reg.push(t, "web", "1", b)
		var got []string
		var mu sync.Mutex
		reg.set(func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, digestOf(b.blobs[0])) {
				return false
			}
			mu.Lock()
			defer mu.Unlock()
			got = append(got, r.Header.Get("Range"))
			blob := b.blobs[0]
			if len(got) == 1 {
				w.Header().Set("Content-Length", fmt.Sprint(len(blob)))
				w.Write(blob[:100<<10])
				return true // the server drops the connection: too little was written
			}
			var from int
			if n, _ := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from); ranges && n == 1 {
				w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(blob)-1, len(blob)))
				w.WriteHeader(http.StatusPartialContent)
				w.Write(blob[from:])
			} else {
				w.Write(blob)
			}
			return true
		})
		if _, err := pull(s, reg.host()+"/web:1", nil); err != nil {
			t.Fatalf("ranges %v: %v", ranges, err)
		}
		if len(got) != 2 || got[0] != "" || !strings.HasPrefix(got[1], "bytes=") {
			t.Errorf("requests with ranges %q", got)
		}
	}
}

func TestPullGivesUpOnAStalledRegistry(t *testing.T) {
	reg := newRegistry(t)
	s := openStore(t, func(c *Config) { c.StallTimeout = 30 * time.Millisecond })
	b := simple(t, gzipped, "one")
	reg.push(t, "web", "1", b)
	end := make(chan struct{})
	defer close(end)
	reg.set(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, digestOf(b.blobs[0])) {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(b.blobs[0])))
		w.Write(b.blobs[0][:10])
		w.(http.Flusher).Flush()
		<-end
		return true
	})
	_, err := pull(s, reg.host()+"/web:1", nil)
	wantError(t, err, "broke off after 10 of")
	wantEmpty(t, s, "tmp", "layers", "blobs/sha256")
}

// Many pulls of images that share a layer fetch it once; one that is cancelled
// does not take the others with it.
func TestConcurrentPulls(t *testing.T) {
	s, reg := openStore(t), newRegistry(t)
	base := tarOf(t, entry{name: "base", body: strings.Repeat("b", 1000)})
	blob := digestOf(gzipped(base))
	for i := range 4 {
		reg.push(t, fmt.Sprint("web", i), "1", build(t, "", gzipped, base, tarOf(t, entry{name: fmt.Sprint(i), body: "t"})))
	}
	started, proceed := make(chan struct{}), make(chan struct{})
	var once sync.Once
	reg.set(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, blob) && r.Method == http.MethodGet {
			once.Do(func() { close(started) })
			select {
			case <-proceed:
			case <-r.Context().Done():
			}
		}
		return false
	})
	ctx, cancel := context.WithCancel(context.Background())
	first := make(chan error, 1)
	go func() {
		_, err := s.Pull(ctx, reg.host()+"/web0:1", nil, nil)
		first <- err
	}()
	<-started
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			if _, err := pull(s, fmt.Sprintf("%s/web%d:1", reg.host(), i%4), nil); err != nil {
				t.Error(err)
			}
		})
	}
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("the cancelled pull: %v", err)
	}
	close(proceed)
	wg.Wait()
	if n := reg.count("GET /v2/web0/blobs/" + blob); n > 2 {
		t.Errorf("the shared layer was fetched %d times from one repository", n)
	}
	if list := s.List(); len(list) != 4 {
		t.Errorf("%d images", len(list))
	}
	wantEmpty(t, s, "tmp")
}

func TestPullThenImportIsImported(t *testing.T) {
	s, reg := openStore(t), newRegistry(t)
	b := simple(t, gzipped, "one")
	reg.push(t, "web", "1", b)
	if _, err := pull(s, reg.host()+"/web:1", nil); err != nil {
		t.Fatal(err)
	}
	if len(s.Candidates()) != 1 {
		t.Error("a pulled image is no candidate")
	}
	imported(t, s, dockerArchive(t, map[string]built{"web:1": b}))
	if _, err := pull(s, reg.host()+"/web:1", nil); err != nil {
		t.Fatal(err)
	}
	img, _ := s.Get("web:1")
	if img.Source != Imported || len(img.Names) != 2 || len(s.Candidates()) != 0 {
		t.Errorf("image: %+v", img)
	}
}

func TestPullOverTLS(t *testing.T) {
	reg := newRegistry(t)
	b := simple(t, gzipped, "one")
	reg.push(t, "web", "1", b)
	secure := httptest.NewTLSServer(reg.Config.Handler)
	defer secure.Close()
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	host := strings.TrimPrefix(secure.URL, "https://")

	_, err := pull(openStore(t), host+"/web:1", nil)
	wantError(t, err, "certificate")
	_, err = pull(openStore(t, func(c *Config) { c.Mirrors = map[string][]Mirror{"*": {{Endpoint: secure.URL, Final: true}}} }), "web:1", nil)
	wantError(t, err, secure.URL, "certificate")

	pool := x509.NewCertPool()
	pool.AddCert(secure.Certificate())
	for name, edit := range map[string]func(*Config){
		"authority": func(c *Config) { c.RootCAs = pool },
		"insecure":  func(c *Config) { c.Mirrors = map[string][]Mirror{host: {{Endpoint: secure.URL, Insecure: true}}} },
	} {
		if img, err := pull(openStore(t, edit), host+"/web:1", nil); err != nil || img.ID != b.id() {
			t.Errorf("%s: %v", name, err)
		}
	}
}

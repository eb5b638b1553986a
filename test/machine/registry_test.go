package machine

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/crane"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	corev1 "k8s.io/api/core/v1"

	"proa.dev/internal/await"
)

// Images from a registry on loopback, that stands in for the big ones as their
// mirror: pulled, refused with the registry's own words, and with credentials.
func TestRegistry(t *testing.T) {
	t.Parallel()
	open := registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithReferrersSupport(false))
	pulls := 0
	reg := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/private/") {
			if u, p, ok := r.BasicAuth(); !ok || u != "captain" || p != "ahoy" {
				w.Header().Set("WWW-Authenticate", `Basic realm="harbour"`)
				http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`, http.StatusUnauthorized)
				return
			}
		}
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/manifests/") {
			pulls++
		}
		open.ServeHTTP(w, r)
	}))
	defer reg.Close()
	host := strings.TrimPrefix(reg.URL, "http://")
	tag, _ := name.NewTag("proa/busybox:1")
	img, err := tarball.ImageFromPath(filepath.Join(images, "busybox.tar"), &tag)
	if err != nil {
		t.Fatal(err)
	}
	for _, repo := range []string{"library/tool:1", "library/tool:latest", "private/tool:1"} {
		if err := crane.Push(img, host+"/"+repo, crane.Insecure, crane.WithAuth(basic{})); err != nil {
			t.Fatal(err)
		}
	}
	config := filepath.Join(scratch, "registry.yaml")
	os.WriteFile(config, []byte(fmt.Sprintf("mirrors:\n  docker.io: [{endpoint: %q, insecure: true}]\n", reg.URL)), 0o644)
	b := newBox(t, "registry", "--config", config)
	b.up(t)

	mustHold(t, b.proa(t, "image", "pull", "tool:1"), "docker.io/library/tool:1")
	mustHold(t, b.proa(t, "image", "ls"), "docker.io/library/tool:1", "NAME", "SIZE")
	b.kubectl(t, "", "run", "plain", "--image=tool", "--", "sleep", "1000")
	b.waitReady(t, "default", "plain")
	mustHold(t, b.kubectl(t, "", "describe", "pod", "plain"), `Successfully pulled image "tool"`, `Pulling image "tool"`)

	b.kubectl(t, "", "run", "wrong", "--image=library/nothing:7", "--", "sleep", "1000")
	reasons := map[string]bool{}
	message := ""
	b.waitPod(t, "default", "wrong", "ErrImagePull, then ImagePullBackOff", func(p *corev1.Pod) bool {
		for _, s := range p.Status.ContainerStatuses {
			if s.State.Waiting != nil {
				reasons[s.State.Waiting.Reason] = true
				if s.State.Waiting.Reason == "ErrImagePull" {
					message = s.State.Waiting.Message
				}
			}
		}
		return reasons["ImagePullBackOff"]
	})
	events := b.kubectl(t, "", "describe", "pod", "wrong")
	if message == "" {
		message = events
	}
	mustHold(t, message, "nothing:7", "NAME_UNKNOWN")
	mustHold(t, events, "Failed", `Back-off pulling image "library/nothing:7"`, "ErrImagePull", "ImagePullBackOff")

	b.kubectl(t, "", "run", "locked", "--image="+host+"/private/tool:1", "--", "sleep", "1000")
	b.waitPod(t, "default", "locked", "refused", func(p *corev1.Pod) bool {
		s := p.Status.ContainerStatuses
		return len(s) == 1 && s[0].State.Waiting != nil && strings.Contains(s[0].State.Waiting.Reason, "ImagePull")
	})
	b.kubectl(t, "", "create", "secret", "docker-registry", "key", "--docker-server="+host, "--docker-username=captain", "--docker-password=ahoy")
	b.kubectl(t, "", "run", "opened", "--image="+host+"/private/tool:1", `--overrides={"spec":{"imagePullSecrets":[{"name":"key"}]}}`, "--", "sleep", "1000")
	b.waitReady(t, "default", "opened")

	never := b.tryKubectl("", "run", "never", "--image=proa/not-here:1", "--image-pull-policy=Never", "--", "true")
	if never.code != 0 {
		t.Fatal(never)
	}
	b.waitPod(t, "default", "never", "ErrImageNeverPull", func(p *corev1.Pod) bool {
		s := p.Status.ContainerStatuses
		return len(s) == 1 && s[0].State.Waiting != nil && s[0].State.Waiting.Reason == "ErrImageNeverPull"
	})
	// An image pinned by its digest, and one removed while it is used.
	digest, _ := img.Digest()
	b.kubectl(t, "", "run", "pinned", "--image=tool@"+digest.String(), "--", "sleep", "1000")
	await.Nil(t, 30*time.Second, "the pinned image", func() error {
		if p := b.pod(t, "default", "pinned"); !ready(p) {
			return fmt.Errorf("%v", states(p))
		}
		return nil
	})
	if pulls == 0 {
		t.Error("the registry was never asked")
	}
}

type basic struct{}

func (basic) Authorization() (*authn.AuthConfig, error) {
	return &authn.AuthConfig{Username: "captain", Password: "ahoy"}, nil
}

package node

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/url"
	"path"
	"sort"
	"strings"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"proa.dev/kind"
	"proa.dev/node/pod"
)

// message is an engine's error without its gRPC dress.
func message(err error) string {
	if s, ok := status.FromError(err); ok && s.Code() != codes.OK {
		return s.Message()
	}
	return err.Error()
}

// pull makes sure that a container's image is here, by its pull policy, and before
// it the images that it mounts as volumes.
func (w *worker) pull(ctx context.Context, f pod.PullImage) pod.Event {
	p := w.pod()
	spec := pod.Spec(p, f.Container)
	for i := range spec.VolumeMounts {
		for j := range p.Spec.Volumes {
			v := &p.Spec.Volumes[j]
			if v.Image == nil || v.Name != spec.VolumeMounts[i].Name {
				continue
			}
			if e := w.pullOne(ctx, p, f.Container, v.Image.Reference, v.Image.PullPolicy, fmt.Sprintf("volume %q: ", v.Name)); e.Reason != "" {
				return e
			}
		}
	}
	return w.pullOne(ctx, p, f.Container, spec.Image, spec.ImagePullPolicy, "")
}

// pullOne makes sure that one image is here. The words before say what it is for.
func (w *worker) pullOne(ctx context.Context, p *corev1.Pod, container, ref string, policy corev1.PullPolicy, before string) pod.Pulled {
	answer := func(reason, message string) pod.Pulled {
		return pod.Pulled{Container: container, Reason: reason, Message: before + message}
	}
	emit := func(kind, reason, format string, args ...any) {
		w.a.events.about(p, pod.FieldPath(p, container), kind, reason, fmt.Sprintf(format, args...))
	}
	image := &runtimeapi.ImageSpec{Image: ref}
	have, err := w.a.cfg.Engine.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: image})
	if status.Code(err) == codes.InvalidArgument {
		m := fmt.Sprintf("Failed to apply default image tag %q: %s", ref, message(err))
		emit(corev1.EventTypeWarning, "InspectFailed", "%s", m)
		return answer("InvalidImageName", m)
	}
	if err != nil {
		m := fmt.Sprintf("Failed to inspect image %q: %s", ref, message(err))
		emit(corev1.EventTypeWarning, "InspectFailed", "%s", m)
		return answer("ImageInspectError", m)
	}
	present := have.GetImage() != nil
	if present && policy != corev1.PullAlways {
		emit(corev1.EventTypeNormal, "Pulled", "Container image %q already present on machine", ref)
		return pod.Pulled{Container: container, ImageID: imageID(have.Image)}
	}
	if policy == corev1.PullNever {
		m := fmt.Sprintf("Container image %q is not present with pull policy of Never", ref)
		emit(corev1.EventTypeWarning, "ErrImageNeverPull", "%s", m)
		return answer("ErrImageNeverPull", m)
	}
	select {
	case w.a.pulls <- struct{}{}:
		defer func() { <-w.a.pulls }()
	case <-ctx.Done():
		return answer("ErrImagePull", ctx.Err().Error())
	}
	emit(corev1.EventTypeNormal, "Pulling", "Pulling image %q", ref)
	began := w.a.clock.Now()
	var last error
	for _, auth := range w.a.credentials(ctx, p, ref) {
		r, err := w.a.cfg.Engine.PullImage(ctx, &runtimeapi.PullImageRequest{Image: image, Auth: auth})
		if err != nil {
			last = err
			continue
		}
		took := w.a.clock.Now().Sub(began).Round(1e6)
		size := uint64(0)
		id := r.ImageRef
		if now, err := w.a.cfg.Engine.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: image}); err == nil && now.GetImage() != nil {
			size, id = now.Image.Size, imageID(now.Image)
		}
		emit(corev1.EventTypeNormal, "Pulled", "Successfully pulled image %q in %s (%s including waiting). Image size: %d bytes.", ref, took, took, size)
		return pod.Pulled{Container: container, ImageID: id}
	}
	m := message(last)
	if ctx.Err() == nil {
		emit(corev1.EventTypeWarning, "Failed", "Failed to pull image %q: %s", ref, m)
	}
	return answer("ErrImagePull", m)
}

// imageID is what status.imageID shows: the digest form when there is one.
func imageID(i *runtimeapi.Image) string {
	if len(i.RepoDigests) > 0 {
		return i.RepoDigests[0]
	}
	return i.Id
}

// dockerConfig is the content of a kubernetes.io/dockerconfigjson Secret.
type dockerConfig struct {
	Auths map[string]dockerAuth `json:"auths"`
}

type dockerAuth struct {
	Username      string `json:"username"`
	Password      string `json:"password"`
	Auth          string `json:"auth"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

// credentials are what to try for an image, in order: the matches of the pod's
// imagePullSecrets, longest registry path first; without a match, none at all.
func (a *Agent) credentials(ctx context.Context, p *corev1.Pod, image string) []*runtimeapi.AuthConfig {
	type match struct {
		key  string
		auth *runtimeapi.AuthConfig
	}
	var found []match
	for _, ref := range p.Spec.ImagePullSecrets {
		o, err := a.object(ctx, kind.Secret, p.Namespace, ref.Name)
		if err != nil {
			a.events.about(p, "", corev1.EventTypeWarning, "FailedToRetrieveImagePullSecret",
				fmt.Sprintf("Unable to retrieve some image pull secrets (%s); attempting to pull the image may not succeed.", ref.Name))
			continue
		}
		s := o.(*corev1.Secret)
		var auths map[string]dockerAuth
		switch {
		case len(s.Data[corev1.DockerConfigJsonKey]) > 0:
			var c dockerConfig
			err = json.Unmarshal(s.Data[corev1.DockerConfigJsonKey], &c)
			auths = c.Auths
		case len(s.Data[corev1.DockerConfigKey]) > 0:
			err = json.Unmarshal(s.Data[corev1.DockerConfigKey], &auths)
		}
		if err != nil {
			a.log.Warn("image pull secret cannot be read", "secret", p.Namespace+"/"+ref.Name, "err", err)
			continue
		}
		for key, d := range auths {
			if registryMatches(key, image) {
				found = append(found, match{key, authConfig(d)})
			}
		}
	}
	sort.SliceStable(found, func(i, j int) bool { return len(found[i].key) > len(found[j].key) })
	if len(found) == 0 {
		return []*runtimeapi.AuthConfig{nil}
	}
	out := make([]*runtimeapi.AuthConfig, len(found))
	for i := range found {
		out[i] = found[i].auth
	}
	return out
}

func authConfig(d dockerAuth) *runtimeapi.AuthConfig {
	c := &runtimeapi.AuthConfig{Username: d.Username, Password: d.Password, IdentityToken: d.IdentityToken, RegistryToken: d.RegistryToken}
	if c.Username == "" && d.Auth != "" {
		if raw, err := base64.StdEncoding.DecodeString(d.Auth); err == nil {
			c.Username, c.Password, _ = strings.Cut(string(raw), ":")
			c.Password = strings.TrimRight(c.Password, "\x00")
		}
	}
	return c
}

// registryMatches says whether credentials for key are for image. Key is a host
// with optional port, path and globs per label: "reg.example/team",
// "*.reg.example:5000". Behaviour: Kubernetes docs, "Images", config.json.
func registryMatches(key, image string) bool {
	key = strings.TrimPrefix(strings.TrimPrefix(key, "https://"), "http://")
	key = strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(key, "/"), "/v1"), "/v2")
	host, rest, ok := strings.Cut(image, "/")
	if !ok || !strings.ContainsAny(host, ".:") && host != "localhost" {
		host, rest = "docker.io", image
	}
	keyHost, keyPath, _ := strings.Cut(key, "/")
	switch keyHost {
	case "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com":
		keyHost = "docker.io"
	}
	if host == "index.docker.io" {
		host = "docker.io"
	}
	ku, err1 := url.Parse("//" + keyHost)
	hu, err2 := url.Parse("//" + host)
	if err1 != nil || err2 != nil { // globs may not parse: compare as text
		return keyHost == host && strings.HasPrefix(rest, keyPath)
	}
	if ku.Port() != hu.Port() {
		return false
	}
	kl, hl := strings.Split(ku.Hostname(), "."), strings.Split(hu.Hostname(), ".")
	if len(kl) != len(hl) {
		return false
	}
	for i := range kl {
		if ok, err := path.Match(kl[i], hl[i]); err != nil || !ok {
			return false
		}
	}
	return keyPath == "" || strings.HasPrefix(rest, keyPath)
}

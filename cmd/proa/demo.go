package main

import (
	"archive/tar"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/client"
	"proa.dev/cluster"
	"proa.dev/cluster/kubeconfig"
	"proa.dev/ctl/demo"
	"proa.dev/engine/image"
	"proa.dev/env"
	"proa.dev/examples/dockercoins"
	"proa.dev/kind"
)

// sample is the namespace of the sample application.
const sample = "dockercoins"

func demoCommand(o *options) *cobra.Command {
	var images string
	var remove bool
	c := &cobra.Command{Use: "demo", Short: "Run the sample application and print its web address", Args: cobra.NoArgs,
		Long: `Runs the sample application, a coin miner of five services (random numbers,
hashes, a worker, Redis and a page that shows the speed), and prints the page's
address. Running it again is harmless.

Its images come from the archives that "make images" makes, not from a registry.`,
		Example: "  proa demo\n  proa demo --images bin/images\n  proa demo --delete",
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := o.cluster()
			if err != nil {
				return err
			}
			api, err := adminClient(cl)
			if err != nil {
				return err
			}
			defer api.Close()
			out := c.OutOrStdout()
			if remove {
				return demo.Delete(c.Context(), api, dockercoins.Manifests(), out)
			}
			if images == "" {
				images = imagesBeside()
			}
			if images != "" {
				if err := importImages(c.Context(), out, cl, images); err != nil {
					return err
				}
			}
			if err := haveImages(c.Context(), cl); err != nil {
				return err
			}
			return runDemo(c.Context(), out, cl, api)
		}}
	c.Flags().StringVar(&images, "images", "", "directory with the images' archives, imported first (default: images beside the executable, if there)")
	c.Flags().BoolVar(&remove, "delete", false, "remove the sample application")
	return c
}

func runDemo(ctx context.Context, out io.Writer, cl cluster.Cluster, api client.Client) error {
	began := time.Now()
	address, err := demo.Deploy(ctx, api, dockercoins.Manifests(), out)
	if err != nil {
		return err
	}
	host, err := answers(ctx, address)
	if err != nil {
		return err
	}
	if other, err := elsewhere(ctx, api, host, address); err != nil {
		return err
	} else if other != "" {
		fmt.Fprintf(out, "  another cluster's page answers at %s; here the node port leads to it\n", address)
		if _, err := answers(ctx, other); err != nil {
			return err
		}
		address = other
	}
	kubectl := "proa" + nameFlag(cl.Name) + " kubectl -n " + sample
	fmt.Fprintf(out, "\nthe sample runs after %s; the page is at %s\n\ntry:\n", round(time.Since(began)), address)
	for _, t := range []struct{ args, what string }{
		{"get pods", "see what runs"},
		{"scale deployment worker --replicas 5", "dig faster: watch the page"},
		{"set image deployment rng rng=dockercoins/rng:v2", "roll out a new version"},
		{"rollout undo deployment rng", "and back"},
		{"delete pod -l app=hasher", "it heals itself"},
		{"logs -f deployment/worker", ""},
	} {
		if t.what != "" {
			t.what = "   # " + t.what
		}
		fmt.Fprintf(out, "  %s %s%s\n", kubectl, t.args, t.what)
	}
	fmt.Fprintf(out, "  proa%s demo --delete\n", nameFlag(cl.Name))
	return nil
}

// adminClient speaks as the administrator of a running cluster.
func adminClient(cl cluster.Cluster) (*client.HTTP, error) {
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("reach cluster %q: only root may; run it with sudo", cl.Name)
	}
	if runningPID(cl) == 0 {
		return nil, fmt.Errorf("reach cluster %q: it is not running; start it with `proa up%s`", cl.Name, nameFlag(cl.Name))
	}
	card, err := cl.Load()
	if err != nil {
		return nil, err
	}
	entry, err := adminEntry(cl, card)
	if err != nil {
		return nil, err
	}
	return httpClient(entry)
}

func httpClient(e kubeconfig.Entry) (*client.HTTP, error) {
	pair, err := tls.X509KeyPair(e.ClientCert, e.ClientKey)
	if err != nil {
		return nil, fmt.Errorf("read the administrator's certificate: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(e.CA) {
		return nil, errors.New("read the cluster's certificate: there is none in ca.crt")
	}
	return client.NewHTTP(client.HTTPConfig{Servers: []string{e.Server}, UserAgent: "proa-demo/" + version,
		TLS: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}})
}

// imagesBeside is the directory images beside the executable when it has archives.
func imagesBeside() string {
	self, err := os.Executable()
	if err != nil {
		return ""
	}
	dir := filepath.Join(filepath.Dir(self), "images")
	if found, _ := filepath.Glob(filepath.Join(dir, "*.tar")); len(found) == 0 {
		return ""
	}
	return dir
}

// importImages imports the archives that hold something new.
func importImages(ctx context.Context, out io.Writer, cl cluster.Cluster, dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*.tar"))
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return fmt.Errorf("import images: no *.tar in %q; `make images` makes them", dir)
	}
	have, err := present(ctx, cl)
	if err != nil {
		return err
	}
	for _, f := range files {
		if list, err := readTags(f); err == nil && len(list) > 0 && !slices.ContainsFunc(list, func(t tagged) bool { return have[t.name] != t.id }) {
			continue
		}
		if err := importImage(ctx, out, cl, f, nil); err != nil {
			return fmt.Errorf("%s: %w", f, err)
		}
	}
	return nil
}

// present maps the full names of a node's images to IDs.
func present(ctx context.Context, cl cluster.Cluster) (map[string]string, error) {
	have := map[string]string{}
	err := knock(ctx, cl, http.MethodGet, "/images", nil, func(l line) error {
		for _, img := range l.Images {
			for _, name := range img.Names {
				have[name] = img.ID
			}
		}
		return nil
	})
	return have, err
}

func haveImages(ctx context.Context, cl cluster.Cluster) error {
	need, err := demo.Images(dockercoins.Manifests())
	if err != nil {
		return err
	}
	have, err := present(ctx, cl)
	if err != nil {
		return err
	}
	var missing []string
	for _, name := range need {
		full, err := image.Normalize(name)
		if err != nil {
			return err
		}
		if have[full] == "" {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("run the sample: its images %s are not on this machine and in no registry; make them with `make images`, then `proa%s demo --images bin/images`",
			strings.Join(missing, ", "), nameFlag(cl.Name))
	}
	return nil
}

type tagged struct{ name, id string }

// readTags reads the names and IDs in an archive whose manifest.json comes first.
// Without it there or in another form there are none: then the archive is imported.
func readTags(file string) ([]tagged, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	tr := tar.NewReader(f)
	hdr, err := tr.Next()
	if err != nil || hdr.Name != "manifest.json" || hdr.Size > 1<<20 {
		return nil, err
	}
	var images []struct {
		Config   string
		RepoTags []string
	}
	if err := json.NewDecoder(tr).Decode(&images); err != nil {
		return nil, err
	}
	var list []tagged
	for _, i := range images {
		for _, name := range i.RepoTags {
			list = append(list, tagged{name, "sha256:" + path.Base(i.Config)})
		}
	}
	return list, nil
}

// answers waits until the page comes, at most 15 seconds, and returns the name of
// the pod that served it.
func answers(ctx context.Context, address string) (host string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	var last error
	for {
		one, stop := context.WithTimeout(ctx, 3*time.Second)
		host, err := ask(one, address+"json")
		stop()
		if err == nil {
			return host, nil
		}
		if ctx.Err() == nil || last == nil {
			last = err
		}
		if !env.Sleep(ctx, env.SystemClock(), 100*time.Millisecond) {
			return "", fmt.Errorf("open the page at %s: %w; the pods are ready, so look at the network: `proa doctor`", address, last)
		}
	}
}

func ask(ctx context.Context, url string) (host string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	web := http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // no proxy: the address is this machine's
	res, err := web.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return "", fmt.Errorf("it answered %s", res.Status)
	}
	var page struct{ Host string }
	if err := json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&page); err != nil {
		return "", fmt.Errorf("something else answered: %w", err)
	}
	return page.Host, nil
}

// elsewhere is empty when host is a pod of this cluster. Clusters side by side
// share the machine's address: then it is the page's address by its node port.
func elsewhere(ctx context.Context, c client.Client, host, address string) (string, error) {
	_, err := c.Get(ctx, kind.Pod, sample, host, metav1.GetOptions{})
	if err == nil {
		return "", nil
	}
	if !apierrors.IsNotFound(err) {
		return "", fmt.Errorf("look for the page's pod %q: %w", host, err)
	}
	obj, err := c.Get(ctx, kind.Service, sample, "webui", metav1.GetOptions{})
	if err != nil {
		return "", fmt.Errorf("look for the page's service: %w", err)
	}
	u, err := url.Parse(address)
	if err != nil {
		return "", err
	}
	for _, p := range obj.(*corev1.Service).Spec.Ports {
		if p.NodePort != 0 {
			return "http://" + net.JoinHostPort(u.Hostname(), strconv.Itoa(int(p.NodePort))) + "/", nil
		}
	}
	return "", fmt.Errorf("open the page at %s: another cluster on this machine answers there; stop it, or change the port of service webui", address)
}

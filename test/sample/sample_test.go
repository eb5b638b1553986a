package sample

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"image/png"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"proa.dev/internal/await"
	"proa.dev/test/web"
)

const (
	cluster = "sample-test"
	port    = 28080
)

type bench struct {
	*testing.T
	proa, dir string
	address   string
}

// run returns standard output; any failure ends the test.
func (b *bench) run(args ...string) string {
	b.Helper()
	out, err := b.try(b.proa, args...)
	if err != nil {
		b.Fatal(err)
	}
	return out
}

func (b *bench) try(proa string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	all := append([]string{"--name", cluster, "--data-dir", filepath.Join(b.dir, "data")}, args...)
	cmd := exec.CommandContext(ctx, proa, all...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+filepath.Join(b.dir, "kubeconfig"))
	var out, problems bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problems
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("proa %s: %w\n%s%s", strings.Join(args, " "), err, &out, &problems)
	}
	return out.String(), nil
}

func (b *bench) kubectl(args ...string) string {
	b.Helper()
	return b.run(append([]string{"kubectl", "-n", "dockercoins"}, args...)...)
}

func (b *bench) until(what string, cond func() error) {
	b.Helper()
	if err := await.Until(b.Context(), 90*time.Second, what, cond); err != nil {
		b.Fatalf("%v\n%s", err, b.kubectl("get", "pods,services,events"))
	}
}

type numbers struct {
	Hashes, Coins int64
	Speed         float64
	Miners        int
	Latest        []string
	Host, Error   string
}

func (b *bench) numbers() (n numbers, err error) {
	c := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := c.Get(b.address + "json")
	if err != nil {
		return n, err
	}
	defer res.Body.Close()
	if res.StatusCode != 200 {
		return n, fmt.Errorf("the page answered %s", res.Status)
	}
	if err := json.NewDecoder(res.Body).Decode(&n); err != nil {
		return n, err
	}
	if n.Error != "" {
		return n, fmt.Errorf("the page says: %s", n.Error)
	}
	return n, nil
}

func TestSample(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("not root: containers need it")
	}
	proa, err := filepath.Abs("../../bin/proa")
	if err != nil {
		t.Fatal(err)
	}
	images, err := filepath.Abs("../../bin/images")
	if err != nil {
		t.Fatal(err)
	}
	for _, need := range []string{proa, filepath.Join(images, "redis-7.tar")} {
		if _, err := os.Stat(need); err != nil {
			t.Fatalf("%v; make it with `make build images`", err)
		}
	}
	b := &bench{T: t, proa: proa, dir: t.TempDir()}
	b.try(proa, "delete") // what a killed test left
	t.Cleanup(func() {
		if _, err := b.try(proa, "delete"); err != nil {
			t.Error(err)
		}
	})
	b.run("up", "--kubeconfig", filepath.Join(b.dir, "kubeconfig"))

	// Without its images the sample says so at once.
	lone := filepath.Join(b.dir, "proa")
	if err := copyFile(proa, lone); err != nil {
		t.Fatal(err)
	}
	if _, err := b.try(lone, "demo"); err == nil || !strings.Contains(err.Error(), "dockercoins/redis:7") || !strings.Contains(err.Error(), "make images") {
		t.Fatalf("demo without images: %v", err)
	}

	began := time.Now()
	out := b.run("demo", "--images", images)
	t.Logf("the sample ran after %s", time.Since(began).Round(time.Millisecond))
	found := regexp.MustCompile(`the page is at (http://\S+:)[0-9]+/\n`).FindStringSubmatch(out)
	if found == nil {
		t.Fatalf("demo prints no address:\n%s", out)
	}
	// Once more: nothing is imported, nothing changes.
	if again := b.run("demo", "--images", images); strings.Contains(again, "layer") || strings.Contains(again, "changed") || strings.Contains(again, "created") {
		t.Errorf("the second demo did\n%s", again)
	}
	b.kubectl("patch", "service", "webui", "--type=json", "-p", fmt.Sprintf(`[{"op":"replace","path":"/spec/ports/0/port","value":%d}]`, port))
	b.address = found[1] + strconv.Itoa(port) + "/"
	b.until("the page at its new port", func() error {
		n, err := b.numbers()
		if err == nil && (n.Coins == 0 || n.Speed == 0) {
			err = fmt.Errorf("no coins yet: %+v", n)
		}
		return err
	})
	n, err := b.numbers()
	if err != nil {
		t.Fatal(err)
	}
	if pods := b.pods("webui"); !slices.Contains(pods, n.Host) {
		t.Fatalf("%s is answered by %q, which is none of this cluster's pods %v", b.address, n.Host, pods)
	}

	t.Run("page", func(t *testing.T) { b.page(t) })
	t.Run("scale", func(t *testing.T) {
		b := b.in(t)
		b.kubectl("scale", "deployment", "worker", "--replicas=4")
		b.until("four miners", func() error {
			n, err := b.numbers()
			if err == nil && (n.Miners != 4 || n.Speed < 20) {
				err = fmt.Errorf("%+v", n)
			}
			return err
		})
		b.kubectl("scale", "deployment", "worker", "--replicas=1")
		b.until("one miner", func() error {
			n, err := b.numbers()
			if err == nil && n.Miners != 1 {
				err = fmt.Errorf("%+v", n)
			}
			return err
		})
	})
	t.Run("rollout", func(t *testing.T) { b.in(t).rollout() })
	t.Run("lossless", func(t *testing.T) { b.in(t).lossless() })
	t.Run("heal", func(t *testing.T) { b.in(t).heal() })

	out = b.run("demo", "--delete")
	if !strings.Contains(out, "namespace dockercoins deleted") {
		t.Errorf("demo --delete says %q", out)
	}
	if left := b.run("kubectl", "get", "pods", "-A", "-o", "name"); left != "" {
		t.Errorf("pods are left: %s", left)
	}
}

func (b *bench) in(t *testing.T) *bench { return &bench{t, b.proa, b.dir, b.address} }

func (b *bench) pods(app string) []string {
	b.Helper()
	return strings.Fields(b.kubectl("get", "pods", "-l", "app="+app, "-o", "jsonpath={.items[*].metadata.name}"))
}

// page looks at it in Chromium.
func (b *bench) page(t *testing.T) {
	dom, picture, err := web.Look(context.Background(), b.address)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`data-state="live"`, `<h1 id="title">DockerCoins</h1>`, `class="line"`, `<em>0`, "served by webui-"} {
		if !strings.Contains(dom, want) {
			t.Errorf("the page lacks %s", want)
		}
	}
	m := regexp.MustCompile(`id="speed"[^>]*>([0-9.]+)<`).FindStringSubmatch(dom)
	if m == nil {
		t.Fatalf("the page shows no speed:\n%s", dom)
	}
	if speed, err := strconv.ParseFloat(m[1], 64); err != nil || speed <= 0 {
		t.Errorf("the page shows the speed %q", m[1])
	}
	img, err := png.Decode(bytes.NewReader(picture))
	if err != nil {
		t.Fatal(err)
	}
	colors := map[[3]uint32]bool{}
	for x := 0; x < img.Bounds().Dx(); x += 3 {
		for y := 0; y < img.Bounds().Dy(); y += 3 {
			r, g, bl, _ := img.At(x, y).RGBA()
			colors[[3]uint32{r, g, bl}] = true
		}
	}
	if len(colors) < 10 {
		t.Errorf("the picture has %d colours: nothing is drawn", len(colors))
	}
}

func (b *bench) rollout() {
	image := func() string {
		return b.kubectl("get", "pods", "-l", "app=rng", "-o", `jsonpath={range .items[*]}{.spec.containers[0].image}{"\n"}{end}`)
	}
	b.kubectl("set", "image", "deployment", "rng", "rng=dockercoins/rng:v2")
	b.kubectl("rollout", "status", "deployment", "rng", "--timeout=90s")
	b.until("rng v2 everywhere", func() error {
		if got := image(); got != strings.Repeat("dockercoins/rng:v2\n", 3) {
			return fmt.Errorf("%q", got)
		}
		return nil
	})
	// It really is the other program.
	if log := b.kubectl("logs", "deployment/rng"); !strings.Contains(log, "rng v2 on rng-") {
		b.Errorf("the log does not say v2: %.300s", log)
	}
	b.kubectl("rollout", "undo", "deployment", "rng")
	b.kubectl("rollout", "status", "deployment", "rng", "--timeout=90s")
	b.until("rng v1 again", func() error {
		if got := image(); got != strings.Repeat("dockercoins/rng:v1\n", 3) {
			return fmt.Errorf("%q", got)
		}
		return nil
	})
	if _, err := b.numbers(); err != nil {
		b.Error(err)
	}
}

// lossless: the page is replaced under load, with and without kept connections,
// and no request fails.
func (b *bench) lossless() {
	b.kubectl("scale", "deployment", "webui", "--replicas=2")
	b.kubectl("rollout", "status", "deployment", "webui", "--timeout=90s")
	before := b.pods("webui")
	stop := make(chan struct{})
	var mu sync.Mutex
	var failures []string
	hosts, requests := map[string]int{}, 0
	var group sync.WaitGroup
	for i := range 4 {
		group.Go(func() {
			c := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: i%2 == 0}}
			defer c.CloseIdleConnections()
			for {
				select {
				case <-stop:
					return
				default:
				}
				host, err := ask(&c, b.address+"json")
				mu.Lock()
				requests++
				if err != nil {
					failures = append(failures, time.Now().Format("15:04:05.000 ")+err.Error())
				} else {
					hosts[host]++
				}
				mu.Unlock()
			}
		})
	}
	_, err := b.try(b.proa, "kubectl", "-n", "dockercoins", "rollout", "restart", "deployment", "webui")
	if err == nil {
		_, err = b.try(b.proa, "kubectl", "-n", "dockercoins", "rollout", "status", "deployment", "webui", "--timeout=90s")
	}
	close(stop)
	group.Wait()
	if err != nil {
		b.Fatal(err)
	}
	b.Logf("%d requests", requests)
	if len(failures) > 0 {
		b.Errorf("%d of %d requests failed: %s", len(failures), requests, strings.Join(failures[:min(5, len(failures))], "\n"))
	}
	var fresh int
	for h := range hosts {
		if !slices.Contains(before, h) {
			fresh++
		}
	}
	if fresh < 2 {
		b.Errorf("the new pods did not all answer: %v, before %v", hosts, before)
	}
}

func ask(c *http.Client, url string) (host string, err error) {
	res, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return "", err
	}
	var n numbers
	if err := json.Unmarshal(body, &n); err != nil || res.StatusCode != 200 {
		return "", fmt.Errorf("%s: %.200q", res.Status, body)
	}
	return n.Host, nil
}

// heal: what is deleted comes back; without Redis the page says so and goes on.
func (b *bench) heal() {
	old := b.pods("rng")
	b.kubectl("delete", "pod", "-l", "app=rng", "--wait=false")
	b.kubectl("delete", "pod", "-l", "app=redis")
	b.until("three new pods of rng", func() error {
		now := b.kubectl("get", "pods", "-l", "app=rng", "-o", `jsonpath={range .items[*]}{.metadata.name}={.status.conditions[?(@.type=="Ready")].status} {end}`)
		fields := strings.Fields(now)
		if len(fields) != 3 {
			return fmt.Errorf("%q", now)
		}
		for _, f := range fields {
			name, ready, _ := strings.Cut(f, "=")
			if ready != "True" || slices.Contains(old, name) {
				return fmt.Errorf("%q", now)
			}
		}
		return nil
	})
	var n numbers
	b.until("counting with a new Redis", func() (err error) {
		if n, err = b.numbers(); err == nil && n.Speed == 0 {
			err = fmt.Errorf("%+v", n)
		}
		return err
	})
	// The page did not restart for it.
	if restarts := b.kubectl("get", "pods", "-l", "app in (webui,worker)", "-o", "jsonpath={.items[*].status.containerStatuses[*].restartCount}"); strings.Trim(restarts, "0 ") != "" {
		b.Errorf("restarts: %s", restarts)
	}
}

func copyFile(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o755)
}

package conformance

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"hash/fnv"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"proa.dev/act"
	"proa.dev/apiserver/apitest"
	"proa.dev/apiserver/auth"
	"proa.dev/client"
	"proa.dev/cluster/first"
	"proa.dev/cluster/pki"
	"proa.dev/control"
	"proa.dev/internal/await"
	"proa.dev/kind"
	"proa.dev/server"
	"proa.dev/view"
)

var (
	kubeconfig = flag.String("kubeconfig", "", "run against this cluster instead of a server in this process")
	image      = flag.String("image", "busybox:1", "what pods run; it must have a shell")
	other      = flag.String("other-image", "", "another image or another name of it (default: with docker.io/ before it)")
	update     = flag.Bool("update", false, "write docs/CONFORMANCE.md")
)

// another image that pods can run.
func another() string {
	switch {
	case *other != "":
		return *other
	case *kubeconfig == "":
		return "another"
	}
	return "docker.io/" + *image
}

// onThisMachine says whether the API server reaches servers in this process.
func onThisMachine(t *testing.T) bool {
	t.Helper()
	if *kubeconfig == "" {
		return true
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	ok(t, err)
	u, err := url.Parse(cfg.Host)
	ok(t, err)
	ip, err := netip.ParseAddr(u.Hostname())
	return u.Hostname() == "localhost" || err == nil && ip.IsLoopback()
}

// cluster is what the behaviours are tried on.
type cluster struct {
	config *rest.Config
	*kubernetes.Clientset
	dynamic dynamic.Interface
}

func start(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{}
	if *kubeconfig != "" {
		cfg, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
		if err != nil {
			t.Fatal(err)
		}
		c.config = cfg
	} else {
		c.config = serve(t)
	}
	c.config.QPS = -1
	// Warnings are looked at where they matter.
	c.config.WarningHandlerWithContext = rest.NoWarnings{}
	c.connect(t)
	eventually(t, func() string {
		if n := len(c.schedulable(t)); n < 1 || *kubeconfig == "" && n < 2 {
			return fmt.Sprintf("%d nodes take pods", n)
		}
		return ""
	})
	return c
}

func (c *cluster) connect(t *testing.T) {
	t.Helper()
	var err error
	if c.Clientset, err = kubernetes.NewForConfig(c.config); err != nil {
		t.Fatal(err)
	}
	if c.dynamic, err = dynamic.NewForConfig(c.config); err != nil {
		t.Fatal(err)
	}
}

// as is the same cluster with another configuration.
func (c *cluster) as(t *testing.T, change func(*rest.Config)) *cluster {
	t.Helper()
	out := &cluster{config: rest.CopyConfig(c.config)}
	change(out.config)
	out.connect(t)
	return out
}

// serve runs a whole cluster but its nodes' containers in this process until the
// test ends.
func serve(t *testing.T) *rest.Config {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	ca, err := pki.Open(t.TempDir(), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	serving := ca.Leaf(pki.LeafLife, func() pki.Names {
		return pki.Names{CommonName: "kube-apiserver", Server: true, DNS: []string{"localhost"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}}
	})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	url, port := "https://"+listener.Addr().String(), netip.MustParseAddrPort(listener.Addr().String()).Port()
	machine := netip.MustParseAddr("192.168.0.1")
	var store server.Opener
	if e, chosen := apitest.Etcd(t); chosen {
		store = server.Etcd(e)
	}
	s, err := server.New(t.Context(), server.Config{
		Store: store,
		Log:   log, Authority: ca, Services: netip.MustParsePrefix("10.96.0.0/16"), Host: "server",
		First:     first.Config{API: machine, APIPort: int32(port), DNS: machine, DNSPort: 53, PublicURL: url},
		Listeners: []server.Listener{{Listener: listener, TLS: server.ServingTLS(serving.GetCertificate)}},
		Parts:     []control.Part{hollowKubelet()},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
		if n := s.Skipped(); n > 0 {
			t.Errorf("%d stored objects could not be decoded", n)
		}
	})
	select {
	case <-s.Ready():
	case err := <-ended:
		ended <- nil
		t.Fatal(err)
	}
	for i := range 2 {
		hollowNode(t, s.Admin(), fmt.Sprintf("hollow-%d", i+1), i+1)
	}
	admin, err := ca.Issue(pki.Names{CommonName: "admin", Organizations: []string{auth.Masters}, Client: true}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := pki.EncodePair(admin)
	if err != nil {
		t.Fatal(err)
	}
	return &rest.Config{Host: url, TLSClientConfig: rest.TLSClientConfig{CAData: ca.PEM(), CertData: cert, KeyData: key}}
}

func hollowNode(t *testing.T, c client.Client, name string, number int) {
	t.Helper()
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name, corev1.LabelOSStable: "linux", corev1.LabelArchStable: "amd64"}}}
	made, err := c.Create(t.Context(), kind.Node, n, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	n = made.DeepCopyObject().(*corev1.Node)
	n.Status.Capacity = resources("cpu", "16", "memory", "64Gi", "pods", "500", "ephemeral-storage", "500Gi")
	n.Status.Allocatable = n.Status.Capacity.DeepCopy()
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("192.168.0.%d", number)}, {Type: corev1.NodeHostName, Address: name}}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady", LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.Now()}}
	n.Status.NodeInfo = corev1.NodeSystemInfo{OperatingSystem: "linux", Architecture: "amd64", KubeletVersion: "v1.37.2"}
	if _, err := c.Update(t.Context(), kind.Node, n, "status", metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// hollowKubelet says of the pods of hollow nodes what a kubelet would: they run
// and are ready at once, the scripts of job_test.go are obeyed, and what is being
// deleted ends. An image called none is never there.
func hollowKubelet() control.Part {
	return control.Part{
		Name: "hollow-kubelet", Kind: kind.Pod,
		Plan: func(s view.Snapshot, ref view.Ref, now time.Time) (act.List, time.Time) {
			p := view.Get[*corev1.Pod](s, kind.Pod, ref.Namespace, ref.Name)
			if p == nil || p.Spec.NodeName == "" {
				return nil, time.Time{}
			}
			n := view.Get[*corev1.Node](s, kind.Node, "", p.Spec.NodeName)
			if n == nil || n.Status.NodeInfo.KubeletVersion == "" {
				return nil, time.Time{}
			}
			if p.DeletionTimestamp != nil {
				if p.Status.Phase == corev1.PodRunning && p.Spec.RestartPolicy == corev1.RestartPolicyNever {
					return act.List{act.Update{Kind: kind.Pod, Object: killed(p, now), Sub: "status"}}, time.Time{}
				}
				if p.DeletionGracePeriodSeconds != nil && *p.DeletionGracePeriodSeconds > 0 {
					zero := int64(0)
					return act.List{act.Delete{Target: ref, UID: p.UID, GraceSeconds: &zero}}, time.Time{}
				}
				return nil, time.Time{}
			}
			w := p.DeepCopy()
			st := &w.Status
			st.ObservedGeneration = p.Generation
			if st.Phase == corev1.PodPending && st.StartTime == nil {
				begin(w, n, now, func(name, key string) string {
					if m := view.Get[*corev1.ConfigMap](s, kind.ConfigMap, p.Namespace, name); m != nil {
						return m.Data[key]
					}
					return ""
				})
			}
			if gates(w, now) && st.Phase == p.Status.Phase {
				return act.List{act.Update{Kind: kind.Pod, Object: w, Sub: "status"}}, time.Time{}
			}
			if d := p.Spec.ActiveDeadlineSeconds; d != nil && st.Phase == corev1.PodRunning {
				end := st.StartTime.Add(time.Duration(*d) * time.Second)
				if now.Before(end) {
					if st.ObservedGeneration != p.Status.ObservedGeneration || st.Phase != p.Status.Phase {
						return act.List{act.Update{Kind: kind.Pod, Object: w, Sub: "status"}}, end
					}
					return nil, end
				}
				st.Phase, st.Reason = corev1.PodFailed, "DeadlineExceeded"
			}
			if st.ObservedGeneration == p.Status.ObservedGeneration && st.Phase == p.Status.Phase && p.Status.StartTime != nil {
				return nil, time.Time{}
			}
			return act.List{act.Update{Kind: kind.Pod, Object: w, Sub: "status"}}, time.Time{}
		},
		Writes: []control.Write{{Kind: kind.Pod, Verbs: []string{"delete"}}, {Kind: kind.Pod, Sub: "status", Verbs: []string{"update"}}},
	}
}

// gates makes the Ready condition of a pod with readiness gates what they say, and
// says whether it changed.
func gates(p *corev1.Pod, now time.Time) bool {
	if len(p.Spec.ReadinessGates) == 0 || p.Status.Phase != corev1.PodRunning {
		return false
	}
	want := corev1.ConditionTrue
	for _, g := range p.Spec.ReadinessGates {
		if !slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
			return c.Type == g.ConditionType && c.Status == corev1.ConditionTrue
		}) {
			want = corev1.ConditionFalse
		}
	}
	for i := range p.Status.Conditions {
		if c := &p.Status.Conditions[i]; c.Type == corev1.PodReady && c.Status != want {
			c.Status, c.LastTransitionTime = want, metav1.NewTime(now)
			return true
		}
	}
	return false
}

// killed is a pod that never restarts and whose containers were told to end.
func killed(p *corev1.Pod, now time.Time) *corev1.Pod {
	p = p.DeepCopy()
	p.Status.Phase = corev1.PodFailed
	for i := range p.Status.ContainerStatuses {
		c := &p.Status.ContainerStatuses[i]
		if r := c.State.Running; r != nil {
			c.State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 137, Reason: "Error", StartedAt: r.StartedAt, FinishedAt: metav1.NewTime(now)}}
			c.Ready = false
		}
	}
	for i := range p.Status.Conditions {
		if c := &p.Status.Conditions[i]; c.Type == corev1.PodReady || c.Type == corev1.ContainersReady {
			c.Status, c.LastTransitionTime = corev1.ConditionFalse, metav1.NewTime(now)
		}
	}
	return p
}

// begin fills in the status of a pod that has started; read gives the values of
// ConfigMaps.
func begin(p *corev1.Pod, n *corev1.Node, now time.Time, read func(name, key string) string) {
	st, at := &p.Status, metav1.NewTime(now)
	st.StartTime = &at
	h := fnv.New32a()
	h.Write([]byte(p.UID))
	st.PodIP = fmt.Sprintf("10.%d.%d.%d", 128+h.Sum32()>>16&0x7f, h.Sum32()>>8&0xff, h.Sum32()&0xff)
	st.PodIPs = []corev1.PodIP{{IP: st.PodIP}}
	st.HostIP = n.Status.Addresses[0].Address
	st.HostIPs = []corev1.HostIP{{IP: st.HostIP}}
	st.Phase = corev1.PodRunning
	ready := corev1.ConditionTrue
	ended, code := true, int32(0)
	for _, c := range p.Spec.Containers {
		cs := corev1.ContainerStatus{Name: c.Name, Image: c.Image, ImageID: c.Image, ContainerID: "hollow://" + string(p.UID) + "/" + c.Name, AllocatedResources: c.Resources.Requests, Resources: c.Resources.DeepCopy()}
		if i := len(c.Command) - 1; i >= 0 && c.Command[i] == `eval "$DO"` {
			from := c.Env[0].ValueFrom.ConfigMapKeyRef
			c.Command = append(slices.Clone(c.Command[:i]), read(from.Name, from.Key))
		}
		yes := true
		switch {
		case c.Image == "none":
			st.Phase, ready, ended = corev1.PodPending, corev1.ConditionFalse, false
			cs.State.Waiting = &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff"}
		case script(&c, p) >= 0:
			code = max(code, script(&c, p))
			cs.State.Terminated = &corev1.ContainerStateTerminated{ExitCode: script(&c, p), StartedAt: at, FinishedAt: at, Reason: "Completed"}
		default:
			ended = false
			cs.State.Running = &corev1.ContainerStateRunning{StartedAt: at}
			cs.Ready, cs.Started = true, &yes
		}
		st.ContainerStatuses = append(st.ContainerStatuses, cs)
	}
	if ended && p.Spec.RestartPolicy != corev1.RestartPolicyAlways {
		st.Phase, ready = corev1.PodSucceeded, corev1.ConditionFalse
		if code != 0 {
			st.Phase = corev1.PodFailed
		}
	}
	for _, t := range []corev1.PodConditionType{corev1.PodInitialized, corev1.ContainersReady, corev1.PodReady} {
		s := ready
		if t == corev1.PodInitialized {
			s = corev1.ConditionTrue
		}
		st.Conditions = append(st.Conditions, corev1.PodCondition{Type: t, Status: s, LastTransitionTime: at, ObservedGeneration: p.Generation})
	}
}

func TestMain(m *testing.M) {
	flag.Parse()
	// Most of the time is waiting.
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		f.Value.Set("16")
	}
	os.Exit(m.Run())
}

// eventually polls until ok says "" or half a minute is over.
func eventually(t *testing.T, ok func() string) {
	t.Helper()
	await.Nil(t, 30*time.Second, "what the cluster is to do", func() error {
		if why := ok(); why != "" {
			return errors.New(why)
		}
		return nil
	})
}

// gone waits until get says NotFound.
func gone(t *testing.T, what string, get func() error) {
	t.Helper()
	eventually(t, func() string {
		err := get()
		if apierrors.IsNotFound(err) {
			return ""
		}
		return fmt.Sprintf("%s is still there (%v)", what, err)
	})
}

// namespace makes one with a service account in it, and deletes it in the end.
func (c *cluster) namespace(t *testing.T) string {
	t.Helper()
	ns, err := c.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "conformance-", Labels: map[string]string{"conformance": "yes"}}}, metav1.CreateOptions{})
	ok(t, err)
	t.Cleanup(func() {
		if err := c.CoreV1().Namespaces().Delete(context.Background(), ns.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			t.Error(err)
		}
	})
	eventually(t, func() string {
		if _, err := c.CoreV1().ServiceAccounts(ns.Name).Get(t.Context(), "default", metav1.GetOptions{}); err != nil {
			return "no default service account: " + err.Error()
		}
		return ""
	})
	return ns.Name
}

// cannot leaves a behaviour out on a cluster that was given and has not what it needs;
// the cluster of this process has everything.
func cannot(t *testing.T, why string) {
	t.Helper()
	if *kubeconfig == "" {
		t.Fatal(why)
	}
	t.Skip(why)
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// same fails the test when have is not want.
func same[T comparable](t *testing.T, what string, have, want T) {
	t.Helper()
	if have != want {
		t.Fatalf("%s: %v, want %v", what, have, want)
	}
}

// Package several runs several servers on one etcd in one process, and looks at
// what only shows there: lost updates, the order of watches, decisions that two
// servers take at once, who leads, and what happens when etcd restarts or a server
// cannot reach it.
package several

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"proa.dev/client"
	"proa.dev/cluster/first"
	"proa.dev/cluster/pki"
	"proa.dev/internal/await"
	"proa.dev/kind"
	"proa.dev/server"
	"proa.dev/store/etcd"
	"proa.dev/store/etcd/etcdtest"
)

// lease of the deciders: short, so that a failover is quick to see.
const lease = 3 * time.Second

// wire carries bytes to etcd until it is cut: then connections stay open and
// nothing arrives, as behind a broken network.
type wire struct {
	listener net.Listener
	to       string
	cut      atomic.Bool
	wg       sync.WaitGroup
	mu       sync.Mutex
	conns    []net.Conn
}

func newWire(t testing.TB, to string) *wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{listener: l, to: to}
	w.wg.Go(w.accept)
	t.Cleanup(func() {
		l.Close()
		w.mu.Lock()
		for _, c := range w.conns {
			c.Close()
		}
		w.mu.Unlock()
		w.wg.Wait()
	})
	return w
}

func (w *wire) URL() string { return "http://" + w.listener.Addr().String() }

func (w *wire) accept() {
	for {
		in, err := w.listener.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", w.to)
		if err != nil {
			in.Close()
			continue
		}
		w.mu.Lock()
		w.conns = append(w.conns, in, out)
		w.mu.Unlock()
		w.wg.Go(func() { w.copy(out, in) })
		w.wg.Go(func() { w.copy(in, out) })
	}
}

func (w *wire) copy(to, from net.Conn) {
	defer to.Close()
	defer from.Close()
	b := make([]byte, 64<<10)
	for {
		n, err := from.Read(b)
		if err != nil {
			return
		}
		if w.cut.Load() {
			continue // lost
		}
		if _, err := to.Write(b[:n]); err != nil {
			return
		}
	}
}

// mend lets new connections through; the old ones have lost bytes and are closed.
func (w *wire) mend() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut.Store(false)
	for _, c := range w.conns {
		c.Close()
	}
	w.conns = nil
}

type one struct {
	*server.Server
	wire *wire
	stop func()
}

// start runs n servers of one cluster on one etcd until the test ends.
func start(t *testing.T, n int, change func(*server.Config)) ([]*one, *etcdtest.Server) {
	t.Helper()
	e := etcdtest.Start(t)
	ca, err := pki.Open(t.TempDir(), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	out := make([]*one, n)
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range out {
		w := newWire(t, strings.TrimPrefix(e.URL, "http://"))
		log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})).With("server", i)
		c := server.Config{
			Log: log, Authority: ca, Services: netip.MustParsePrefix("10.96.0.0/24"), Host: fmt.Sprintf("server-%d", i), LeaseDuration: lease,
			First: first.Config{API: netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), APIPort: 6443, PublicURL: "https://192.0.2.1:6443"},
			Store: server.Etcd(etcd.Config{Endpoints: []string{w.URL()}, RequestTimeout: 2 * time.Second}),
		}
		if change != nil {
			change(&c)
		}
		// All at once: the first objects are made by all of them.
		wg.Go(func() {
			s, err := server.New(t.Context(), c)
			if err != nil {
				errs[i] = err
				return
			}
			ctx, cancel := context.WithCancel(context.Background())
			ended := make(chan error, 1)
			go func() { ended <- s.Run(ctx) }()
			var once sync.Once
			stop := func() {
				once.Do(func() {
					cancel()
					if err := <-ended; err != nil {
						t.Errorf("server %d: %v", i, err)
					}
				})
			}
			out[i] = &one{s, w, stop}
			select {
			case <-s.Ready():
			case err := <-ended:
				errs[i] = fmt.Errorf("ended: %w", err)
				ended <- nil
			}
		})
	}
	wg.Wait()
	for _, s := range out {
		if s != nil {
			t.Cleanup(s.stop)
		}
	}
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	return out, e
}

func namespace(t testing.TB, c client.Client, name string) {
	t.Helper()
	if _, err := c.Create(t.Context(), kind.Namespace, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func configMap(ns, name string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Data: map[string]string{"n": "0"}}
}

// count adds one to a ConfigMap, reading it through one server and writing it
// through the same, until nobody was faster. Errors other than conflicts are told
// to failed, which says whether to go on.
func count(ctx context.Context, c client.Client, name string) error {
	for {
		got, err := c.Get(ctx, kind.ConfigMap, "default", name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		m := got.(*corev1.ConfigMap).DeepCopy()
		n, err := strconv.Atoi(m.Data["n"])
		if err != nil {
			return err
		}
		m.Data["n"] = strconv.Itoa(n + 1)
		if _, err = c.Update(ctx, kind.ConfigMap, m, "", metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
			return err
		}
	}
}

func TestNoLostUpdateAndOneOrder(t *testing.T) {
	servers, _ := start(t, 3, nil)
	c := servers[0].Admin()
	for i := range 3 {
		if _, err := c.Create(t.Context(), kind.ConfigMap, configMap("default", fmt.Sprint("c", i)), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	watches := make([]watch.Interface, len(servers))
	for i, s := range servers {
		var err error
		if watches[i], err = s.Admin().Watch(t.Context(), kind.ConfigMap, "default", metav1.ListOptions{}); err != nil {
			t.Fatal(err)
		}
		defer watches[i].Stop()
	}
	const writers, each = 3, 10
	var wg sync.WaitGroup
	for _, s := range servers {
		for w := range writers {
			wg.Go(func() {
				for i := range each {
					if err := count(t.Context(), s.Admin(), fmt.Sprint("c", (w+i)%3)); err != nil {
						t.Errorf("count: %v", err)
					}
				}
			})
		}
	}
	wg.Wait()
	sum := 0
	newest := map[string]string{}
	for i := range 3 {
		got, err := servers[i].Admin().Get(t.Context(), kind.ConfigMap, "default", fmt.Sprint("c", i), metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		n, _ := strconv.Atoi(got.(*corev1.ConfigMap).Data["n"])
		sum += n
		newest[got.GetName()] = got.GetResourceVersion()
	}
	if want := len(servers) * writers * each; sum != want {
		t.Errorf("the counters are at %d, %d were counted", sum, want)
	}
	// Every server tells of the same changes in the same order.
	var told [3][]string
	for i, w := range watches {
		left := map[string]string{}
		for k, v := range newest {
			left[k] = v
		}
		timeout := time.After(20 * time.Second)
		for len(left) > 0 {
			select {
			case e, ok := <-w.ResultChan():
				if !ok {
					t.Fatalf("watch of server %d ended", i)
				}
				o := e.Object.(kind.Object)
				if o.GetName() == "kube-root-ca.crt" {
					continue
				}
				told[i] = append(told[i], fmt.Sprint(e.Type, " ", o.GetName(), " ", o.GetResourceVersion()))
				if left[o.GetName()] == o.GetResourceVersion() {
					delete(left, o.GetName())
				}
			case <-timeout:
				t.Fatalf("watch of server %d has not told of %v", i, left)
			}
		}
		// The first three are the state when it began.
		if fmt.Sprint(told[i][3:]) != fmt.Sprint(told[0][3:]) {
			t.Errorf("server %d tells\n%v\nserver 0\n%v", i, told[i], told[0])
		}
	}
}

// What one server has answered, every other one answers from then on.
func TestReadsContainOthersWrites(t *testing.T) {
	servers, _ := start(t, 2, nil)
	a, b := servers[0].Admin(), servers[1].Admin()
	for i := range 50 {
		m, err := a.Create(t.Context(), kind.ConfigMap, configMap("default", fmt.Sprint("m", i)), metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Get(t.Context(), kind.ConfigMap, "default", m.GetName(), metav1.GetOptions{}); err != nil {
			t.Fatalf("object %d: %v", i, err)
		}
		// A version that the other server gave out is waited for.
		l, err := b.List(t.Context(), kind.ConfigMap, "default", metav1.ListOptions{ResourceVersion: m.GetResourceVersion(), ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan})
		if err != nil || len(l.Items) < i+1 {
			t.Fatalf("list after object %d: %d, %v", i, len(l.Items), err)
		}
		if err := b.Delete(t.Context(), kind.ConfigMap, "default", m.GetName(), metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Get(t.Context(), kind.ConfigMap, "default", m.GetName(), metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Fatalf("removed object %d: %v", i, err)
		}
		if _, err := a.Create(t.Context(), kind.ConfigMap, configMap("default", m.GetName()), metav1.CreateOptions{}); err != nil {
			t.Fatalf("object %d again: %v", i, err)
		}
	}
}

// A quota's last places go to exactly as many as there are, whichever servers are
// asked.
func TestQuotaOverSeveralServers(t *testing.T) {
	servers, _ := start(t, 3, nil)
	namespace(t, servers[0].Admin(), "q")
	const places = 20
	quota := &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: "q", Name: "q"},
		Spec: corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{"count/secrets": resource.MustParse(strconv.Itoa(places))}}}
	if _, err := servers[0].Admin().Create(t.Context(), kind.ResourceQuota, quota, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	var made, refused atomic.Int64
	var wg sync.WaitGroup
	for i, s := range servers {
		for w := range 4 {
			wg.Go(func() {
				for n := range 5 {
					o := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "q", Name: fmt.Sprintf("s-%d-%d-%d", i, w, n)}}
					_, err := s.Admin().Create(t.Context(), kind.Secret, o, metav1.CreateOptions{})
					switch {
					case err == nil:
						made.Add(1)
					case apierrors.IsForbidden(err) && strings.Contains(err.Error(), "exceeded quota: q, requested: count/secrets=1, used: count/secrets=2") &&
						strings.HasSuffix(err.Error(), "limited: count/secrets=20"): // used: with writes that are under way
						refused.Add(1)
					default:
						t.Errorf("create: %v", err)
					}
				}
			})
		}
	}
	wg.Wait()
	l, err := servers[2].Admin().List(t.Context(), kind.Secret, "q", metav1.ListOptions{})
	if err != nil || len(l.Items) != places || made.Load() != places || refused.Load() != 60-places {
		t.Errorf("%d made, %d refused, %d are there, %v; %d have a place", made.Load(), refused.Load(), len(l.Items), err, places)
	}
}

// No address and no node port is given out twice.
func TestAddressesOverSeveralServers(t *testing.T) {
	servers, _ := start(t, 3, nil)
	var wg sync.WaitGroup
	var mu sync.Mutex
	ips, ports := map[string]string{}, map[int32]string{}
	for i, s := range servers {
		for w := range 4 {
			wg.Go(func() {
				for n := range 6 {
					name := fmt.Sprintf("s-%d-%d-%d", i, w, n)
					o := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
						Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Ports: []corev1.ServicePort{{Port: 80}}}}
					got, err := s.Admin().Create(t.Context(), kind.Service, o, metav1.CreateOptions{})
					if err != nil {
						t.Errorf("create: %v", err)
						continue
					}
					svc := got.(*corev1.Service)
					mu.Lock()
					if by, ok := ips[svc.Spec.ClusterIP]; ok {
						t.Errorf("%s and %s have address %s", by, name, svc.Spec.ClusterIP)
					}
					if by, ok := ports[svc.Spec.Ports[0].NodePort]; ok {
						t.Errorf("%s and %s have port %d", by, name, svc.Spec.Ports[0].NodePort)
					}
					ips[svc.Spec.ClusterIP], ports[svc.Spec.Ports[0].NodePort] = name, name
					mu.Unlock()
				}
			})
		}
	}
	wg.Wait()
}

// endpoints of the API's Service, as one server shows them.
func endpoints(t testing.TB, s *one) string {
	t.Helper()
	got, err := s.Admin().Get(t.Context(), kind.Endpoints, "default", "kubernetes", metav1.GetOptions{})
	if err != nil {
		return err.Error()
	}
	var out []string
	for _, sub := range got.(*corev1.Endpoints).Subsets {
		for _, a := range sub.Addresses {
			out = append(out, a.IP)
		}
	}
	return strings.Join(out, " ")
}

// leader is the number of the server that holds the Lease, as one server shows it.
func leader(t testing.TB, s *one) int {
	t.Helper()
	got, err := s.Admin().Get(t.Context(), kind.Lease, "kube-system", server.LeaderLease, metav1.GetOptions{})
	if err != nil || got.(*coordinationv1.Lease).Spec.HolderIdentity == nil {
		return -1
	}
	name, _, _ := strings.Cut(*got.(*coordinationv1.Lease).Spec.HolderIdentity, "_")
	n, err := strconv.Atoi(strings.TrimPrefix(name, "server-"))
	if err != nil {
		return -1
	}
	return n
}

// works says that deciders run: a new namespace gets its service account.
func works(t testing.TB, s *one, ns string) {
	t.Helper()
	namespace(t, s.Admin(), ns)
	await.True(t, 20*time.Second, "the default service account of "+ns, func() bool {
		_, err := s.Admin().Get(t.Context(), kind.ServiceAccount, ns, "default", metav1.GetOptions{})
		return err == nil
	})
}

func TestDecidersFailOver(t *testing.T) {
	servers, _ := start(t, 3, nil)
	await.True(t, 10*time.Second, "a leader", func() bool { return leader(t, servers[0]) >= 0 })
	await.True(t, 25*time.Second, "all servers are endpoints of the API", func() bool {
		return endpoints(t, servers[0]) == "192.0.2.1 192.0.2.2 192.0.2.3"
	})
	works(t, servers[0], "before")

	// A leader that ends gives the Lease back.
	l := leader(t, servers[0])
	rest := append(append([]*one{}, servers[:l]...), servers[l+1:]...)
	began := time.Now()
	servers[l].stop()
	await.True(t, 10*time.Second, "another leader", func() bool { n := leader(t, rest[0]); return n >= 0 && n != l })
	t.Logf("a leader that ended was replaced in %v", time.Since(began))
	if e := endpoints(t, rest[0]); strings.Contains(e, fmt.Sprintf("192.0.2.%d", l+1)) {
		t.Errorf("the server that ended is an endpoint still: %s", e)
	}
	works(t, rest[1], "ended")

	// A leader that is cut off is replaced when its Lease is over; it answers reads
	// of any version from its view, and nothing else; it leads no longer, and comes
	// back when the network does.
	l = leader(t, rest[0])
	cut, other := rest[0], rest[1]
	if servers[l] != cut {
		cut, other = other, cut
	}
	began = time.Now()
	cut.wire.cut.Store(true)
	await.True(t, 2*lease+2*time.Second, "another leader when the lease of the one that was cut off is over", func() bool { n := leader(t, other); return n >= 0 && n != l })
	t.Logf("a leader that was cut off was replaced in %v", time.Since(began))
	works(t, other, "cut-off")
	if _, err := cut.Admin().Get(t.Context(), kind.Namespace, "", "ended", metav1.GetOptions{ResourceVersion: "0"}); err != nil {
		t.Errorf("read of any version without etcd: %v", err)
	}
	short, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := cut.Admin().Get(short, kind.Namespace, "", "ended", metav1.GetOptions{}); err == nil {
		t.Error("a server without etcd answers a consistent read")
	}
	cut.wire.mend()
	await.True(t, 30*time.Second, "the cut off server shows what has happened", func() bool {
		short, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		_, err := cut.Admin().Get(short, kind.ServiceAccount, "cut-off", "default", metav1.GetOptions{})
		return err == nil
	})
}

func TestEtcdRestartsMeanwhile(t *testing.T) {
	servers, e := start(t, 3, nil)
	if _, err := servers[0].Admin().Create(t.Context(), kind.ConfigMap, configMap("default", "c"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	var counted, unknown atomic.Int64
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var wg sync.WaitGroup
	for _, s := range servers {
		wg.Go(func() {
			for ctx.Err() == nil {
				switch err := count(ctx, s.Admin(), "c"); {
				case err == nil:
					counted.Add(1)
				case ctx.Err() == nil:
					unknown.Add(1) // etcd was away: it may have been counted, or not
				}
			}
		})
	}
	some := func(n int64) func() bool { return func() bool { return counted.Load() >= n } }
	await.True(t, 20*time.Second, "20 counted", some(20))
	e.Stop()
	e.Restart()
	await.True(t, 30*time.Second, "20 more counted after the restart", some(counted.Load()+20))
	stop()
	wg.Wait()
	for i, s := range servers {
		got, err := s.Admin().Get(t.Context(), kind.ConfigMap, "default", "c", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		n, _ := strconv.Atoi(got.(*corev1.ConfigMap).Data["n"])
		// The last write of each server may have been done when its context ended.
		if int64(n) < counted.Load() || int64(n) > counted.Load()+unknown.Load()+int64(len(servers)) {
			t.Errorf("server %d shows %d, %d were counted and %d are unknown", i, n, counted.Load(), unknown.Load())
		}
	}
	works(t, servers[1], "after")
}

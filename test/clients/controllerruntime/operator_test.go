package controllerruntime

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/webhook"

	"proa.dev/test/clients/lab"
)

// assets is what `proa envtest path` says, of PROA_BIN or of what `make build` made.
func assets(t *testing.T) string {
	t.Helper()
	bin := os.Getenv("PROA_BIN")
	if bin == "" {
		var err error
		bin, err = filepath.Abs("../../../bin/proa")
		lab.Must(t, err)
	}
	if _, err := os.Stat(bin); err != nil {
		t.Fatalf("find proa: %v; run `make build`, or set PROA_BIN", err)
	}
	out, err := exec.CommandContext(t.Context(), bin, "envtest", "path").Output()
	lab.Must(t, err)
	return strings.TrimSpace(string(out))
}

// warnings keeps what the server warns of.
type warnings struct {
	mu  sync.Mutex
	all []string
}

func (w *warnings) HandleWarningHeader(_ int, _, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = append(w.all, text)
}

func (w *warnings) have(text string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Contains(w.all, text)
}

func TestOperator(t *testing.T) {
	log.SetLogger(logr.Discard())
	t.Setenv("KUBEBUILDER_ASSETS", assets(t))
	scheme := runtime.NewScheme()
	lab.Must(t, clientgoscheme.AddToScheme(scheme))
	addToScheme(scheme)

	env := &envtest.Environment{
		Scheme:                scheme,
		CRDDirectoryPaths:     []string{"config/crd"},
		ErrorIfCRDPathMissing: true,
		WebhookInstallOptions: envtest.WebhookInstallOptions{Paths: []string{"config/webhook"}},
	}
	started := time.Now()
	conf, err := env.Start()
	if err != nil {
		_ = env.Stop()
		t.Fatal(err)
	}
	t.Logf("the environment took %s to start", time.Since(started).Round(time.Millisecond))
	t.Cleanup(func() {
		began := time.Now()
		if err := env.Stop(); err != nil {
			t.Errorf("stop the environment: %v", err)
		}
		t.Logf("the environment took %s to stop", time.Since(began).Round(time.Millisecond))
	})

	// A manager for the webhooks, and two that want to lead.
	run := func(id string, with func(*ctrl.Options), setUp func(ctrl.Manager) error) (ctrl.Manager, func()) {
		t.Helper()
		second := func(n int) *time.Duration { d := time.Duration(n) * time.Second; return &d }
		retry, yes := 250*time.Millisecond, true
		o := ctrl.Options{
			Scheme: scheme, Metrics: server.Options{BindAddress: "0"}, Controller: config.Controller{SkipNameValidation: &yes},
			LeaderElectionID: "boats.sea.example.com", LeaderElectionNamespace: "default", LeaderElectionReleaseOnCancel: true,
			LeaseDuration: second(8), RenewDeadline: second(6), RetryPeriod: &retry,
		}
		with(&o)
		m, err := ctrl.NewManager(rest.CopyConfig(conf), o)
		lab.Must(t, err)
		lab.Must(t, setUp(m))
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- m.Start(ctx) }()
		stop := sync.OnceFunc(func() {
			cancel()
			if err := <-ended; err != nil {
				t.Errorf("manager %q: %v", id, err)
			}
		})
		t.Cleanup(stop)
		return m, stop
	}
	hooks := &env.WebhookInstallOptions
	run("webhooks", func(o *ctrl.Options) {
		o.WebhookServer = webhook.NewServer(webhook.Options{Host: hooks.LocalServingHost, Port: hooks.LocalServingPort, CertDir: hooks.LocalServingCertDir})
	}, func(m ctrl.Manager) error {
		return ctrl.NewWebhookManagedBy(m, &Boat{}).WithDefaulter(webhooks{}).WithValidator(webhooks{}).Complete()
	})
	lab.Eventually(t, "webhooks are served", func(ctx context.Context) error {
		d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}} // is it there? The API server checks who it is
		c, err := d.DialContext(ctx, "tcp", net.JoinHostPort(hooks.LocalServingHost, strconv.Itoa(hooks.LocalServingPort)))
		if err != nil {
			return err
		}
		return c.Close()
	})
	candidate := func(id string) (*reconciler, ctrl.Manager, func()) {
		r := &reconciler{id: id}
		m, stop := run(id, func(o *ctrl.Options) { o.LeaderElection = true }, func(m ctrl.Manager) error { return r.setUp(t.Context(), m) })
		return r, m, stop
	}
	_, first, stopA := candidate("a")
	lab.Eventually(t, "a leads", func(ctx context.Context) error {
		select {
		case <-first.Elected():
			return nil
		default:
			return errors.New("it does not")
		}
	})
	b, second, _ := candidate("b")

	warned := &warnings{}
	conf = rest.CopyConfig(conf)
	conf.WarningHandler = warned
	c, err := client.New(conf, client.Options{Scheme: scheme})
	lab.Must(t, err)
	ctx := t.Context()
	key := client.ObjectKey{Namespace: "default", Name: "proa"}
	rigged := func(sails int32, by string) *Boat {
		t.Helper()
		var boat Boat
		lab.Eventually(t, fmt.Sprintf("a boat with %d sails by %s", sails, by), func(ctx context.Context) error {
			var crew appsv1.Deployment
			var log corev1.ConfigMap
			if err := errors.Join(c.Get(ctx, key, &boat), c.Get(ctx, key, &crew), c.Get(ctx, key, &log)); err != nil {
				return err
			}
			cond := meta.FindStatusCondition(boat.Status.Conditions, "Rigged")
			if cond == nil || cond.ObservedGeneration != boat.Generation || cond.Message != "by "+by || *crew.Spec.Replicas != sails || log.Data["sails"] != fmt.Sprint(sails) || log.Data["by"] != by {
				return fmt.Errorf("boat %+v, %d replicas, log %v", boat.Status, *crew.Spec.Replicas, log.Data)
			}
			if !metav1.IsControlledBy(&crew, &boat) || !metav1.IsControlledBy(&log, &boat) {
				return fmt.Errorf("owners %v, %v", crew.OwnerReferences, log.OwnerReferences)
			}
			if crew.Spec.Template.Spec.Containers[0].Image != boat.Spec.Image {
				return fmt.Errorf("image %q", crew.Spec.Template.Spec.Containers[0].Image)
			}
			return nil
		})
		return &boat
	}

	// The webhooks default and check.
	boat := &Boat{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name}, Spec: BoatSpec{Sails: 10, Harbour: "haven"}}
	if err := c.Create(ctx, boat); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), `admission webhook "vboat.kb.io" denied the request: 10 sails are too many`) {
		t.Fatalf("a boat of 10 sails: %v", err)
	}
	boat.Spec.Sails = 2
	lab.Must(t, c.Create(ctx, boat))
	if boat.Spec.Image != "registry.example.com/sail:1" {
		t.Errorf("defaulted: %+v", boat.Spec)
	}
	boat = rigged(2, "a")
	if !slices.Contains(boat.Finalizers, finalizer) {
		t.Errorf("finalizers: %v", boat.Finalizers)
	}
	harbour := boat.DeepCopyObject().(*Boat)
	harbour.Spec.Harbour = "elsewhere"
	if err := c.Patch(ctx, harbour, client.MergeFrom(boat)); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "a boat keeps its harbour") {
		t.Errorf("another harbour: %v", err)
	}
	drift := boat.DeepCopyObject().(*Boat)
	drift.Spec.Sails = 0
	lab.Must(t, c.Patch(ctx, drift, client.MergeFrom(boat)))
	if !warned.have("a boat without sails drifts") {
		t.Errorf("warnings: %v", warned.all)
	}
	rigged(0, "a")

	// The older version is converted, both ways; webhooks for v1 see it as v1.
	var old OldBoat
	lab.Must(t, c.Get(ctx, key, &old))
	if old.Spec.Rig != "0 sails" || old.Spec.Harbour != "haven" || old.Annotations[imageOf] == "" {
		t.Errorf("as v1beta1: %+v %v", old.Spec, old.Annotations)
	}
	old.Spec.Rig = "10 sails"
	if err := c.Update(ctx, &old); !apierrors.IsForbidden(err) {
		t.Errorf("10 sails as v1beta1: %v", err)
	}
	lab.Eventually(t, "3 sails as v1beta1", func(ctx context.Context) error {
		if err := c.Get(ctx, key, &old); err != nil {
			return err
		}
		old.Spec.Rig = "3 sails"
		return c.Update(ctx, &old)
	})
	boat = rigged(3, "a")
	var olds OldBoatList
	lab.Must(t, c.List(ctx, &olds, client.InNamespace("default")))
	if len(olds.Items) != 1 || olds.Items[0].Spec.Rig != "3 sails" {
		t.Errorf("the list of v1beta1: %+v", olds.Items)
	}

	// The Secret of the harbour is watched by its metadata; the index finds the boat.
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "haven"}, StringData: map[string]string{"password": "mast"}}
	lab.Must(t, c.Create(ctx, secret))
	lab.Eventually(t, "the Secret's version in the status", func(ctx context.Context) error {
		if err := c.Get(ctx, key, boat); err != nil {
			return err
		}
		if boat.Status.Password != secret.ResourceVersion {
			return fmt.Errorf("%q, want %q", boat.Status.Password, secret.ResourceVersion)
		}
		return nil
	})
	var byIndex BoatList
	lab.Must(t, first.GetClient().List(ctx, &byIndex, client.MatchingFields{byHarbour: "haven"}))
	if len(byIndex.Items) != 1 {
		t.Errorf("%d boats by harbour", len(byIndex.Items))
	}

	// What is taken away from the operator's objects comes back.
	lab.Must(t, c.Delete(ctx, &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name}}))
	rigged(3, "a")

	// The leader gives the Lease back as it ends; the other goes on.
	if n := b.runs.Load(); n != 0 {
		t.Errorf("the manager that does not lead reconciled %d times", n)
	}
	stopA()
	select {
	case <-second.Elected():
	case <-time.After(30 * time.Second):
		t.Fatal("b does not lead")
	}
	rigged(3, "b")
	var lease coordinationv1.Lease
	lab.Must(t, c.Get(ctx, client.ObjectKey{Namespace: "default", Name: "boats.sea.example.com"}, &lease))
	if lease.Spec.HolderIdentity == nil || *lease.Spec.HolderIdentity == "" {
		t.Errorf("lease: %+v", lease.Spec)
	}

	// Deletion asks the webhook, and waits for the finalizer.
	anchored := client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"labels":{"anchored":"true"}}}`))
	lab.Must(t, c.Patch(ctx, boat, anchored))
	if err := c.Delete(ctx, boat); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "the boat is anchored") {
		t.Errorf("delete an anchored boat: %v", err)
	}
	lab.Must(t, c.Patch(ctx, boat, client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"labels":{"anchored":null}}}`))))
	lab.Must(t, c.Delete(ctx, boat))
	lab.Eventually(t, "the boat is gone", func(ctx context.Context) error {
		if err := c.Get(ctx, key, boat); !apierrors.IsNotFound(err) {
			return fmt.Errorf("get: %v", err)
		}
		return nil
	})
	lab.Eventually(t, "events", func(ctx context.Context) error {
		var list eventsv1.EventList
		if err := c.List(ctx, &list, client.InNamespace("default")); err != nil {
			return err
		}
		for _, want := range []string{"Rigged", "Farewell"} {
			if !slices.ContainsFunc(list.Items, func(e eventsv1.Event) bool {
				return e.Reason == want && e.Regarding.Name == "proa" && e.ReportingController == "sea.example.com/boats"
			}) {
				return fmt.Errorf("%d events, none is %s", len(list.Items), want)
			}
		}
		return nil
	})
}

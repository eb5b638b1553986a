package apiservice

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"proa.dev/cluster/pki"
	"proa.dev/kind"
	"proa.dev/view"
)

func TestRegister(t *testing.T) {
	priority := func(string, string) (int32, int32) { return 17800, 15 }
	svc := func(name, label string, minimum int32) *apiregistrationv1.APIService {
		a := &apiregistrationv1.APIService{ObjectMeta: metav1.ObjectMeta{Name: name, UID: "u"}, Spec: apiregistrationv1.APIServiceSpec{Group: "apps", Version: "v1", GroupPriorityMinimum: minimum, VersionPriority: 15}}
		if label != "" {
			a.Labels = map[string]string{Managed: label}
		}
		return a
	}
	for what, c := range map[string]struct {
		have *apiregistrationv1.APIService
		name string
		want string
	}{
		"absent":     {nil, "v1.apps", "create apiservices.apiregistration.k8s.io/v1.apps because=served\n"},
		"right":      {svc("v1.apps", onStart, 17800), "v1.apps", ""},
		"changed":    {svc("v1.apps", onStart, 1), "v1.apps", "update apiservices.apiregistration.k8s.io/v1.apps because=repaired\n"},
		"the user's": {svc("v1.apps", "", 1), "v1.apps", ""},
		"not served": {svc("v1.gone.example.org", always, 1000), "v1.gone.example.org", "delete apiservices.apiregistration.k8s.io/v1.gone.example.org because=not-served\n"},
		"itself":     {nil, "v1.apiregistration.k8s.io", ""},
	} {
		var objects []kind.Object
		if c.have != nil {
			objects = append(objects, c.have)
		}
		if got := Register(view.Build(1, kind.All, objects...), view.Ref{Kind: kind.APIService, Name: c.name}, priority).String(); got != c.want {
			t.Errorf("%s: %q, want %q", what, got, c.want)
		}
	}
}

func TestPublish(t *testing.T) {
	now := time.Now()
	authority := func(at time.Time) []byte {
		a, err := pki.New(func() time.Time { return at })
		if err != nil {
			t.Fatal(err)
		}
		return a.PEM()
	}
	ours, others, expired := authority(now), authority(now), authority(now.Add(-pki.CALife-time.Hour))
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: TrustNamespace}}
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: TrustNamespace, Name: TrustName},
		Data: map[string]string{"requestheader-client-ca-file": string(others) + string(expired), "requestheader-allowed-names": `["other"]`}}
	actions := Publish(view.Build(1, kind.All, ns, cm), Trust{RequestHeader: ours, Names: []string{"us"}}, now)
	if len(actions) != 1 {
		t.Fatalf("actions are %q", actions.String())
	}
	if got := union(ours, []byte(cm.Data["requestheader-client-ca-file"]), now); got != string(ours)+string(others) {
		t.Errorf("authorities are %q", got)
	}
	if got := merged(cm.Data["requestheader-allowed-names"], "us"); got != `["us","other"]` {
		t.Errorf("names are %s", got)
	}
}

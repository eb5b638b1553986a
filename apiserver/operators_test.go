package apiserver_test

import (
	"net/http"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"proa.dev/apiserver"
	"proa.dev/apiserver/apitest"
)

// TestDoorMetrics: authentication and authorization are counted and timed, and
// deprecated kinds that were asked for are named.
func TestDoorMetrics(t *testing.T) {
	c := apitest.Start(t, nil)
	call(t, c, "GET", "/api/v1/namespaces/default/endpoints", "", "", "")
	req, _ := http.NewRequest("GET", c.HTTP.URL+"/api/v1/configmaps", nil)
	req.Header.Set("Authorization", "Bearer jane")
	res, err := c.HTTP.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	_, _, body := call(t, c, "GET", "/metrics", "", "", "")
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	series := func(name string, labels map[string]string) *dto.Metric {
		for _, m := range families[name].GetMetric() {
			same := len(m.Label) == len(labels)
			for _, l := range m.Label {
				same = same && labels[l.GetName()] == l.GetValue()
			}
			if same {
				return m
			}
		}
		t.Fatalf("/metrics lacks %s%v", name, labels)
		return nil
	}
	for _, r := range []struct {
		what, result string
		least        float64
	}{{"authentication", "success", 3}, {"authorization", "allowed", 2}, {"authorization", "no-opinion", 1}} {
		labels := map[string]string{"result": r.result}
		count := map[string]string{"authentication": "authentication_attempts", "authorization": "authorization_attempts_total"}[r.what]
		if n := series(count, labels).GetCounter().GetValue(); n < r.least {
			t.Errorf("%s %s: %v, want %v at least", count, r.result, n, r.least)
		}
		h := series(r.what+"_duration_seconds", labels).GetHistogram()
		if float64(h.GetSampleCount()) < r.least || len(h.Bucket) != 16 || h.Bucket[0].GetUpperBound() != 0.001 {
			t.Errorf("%s_duration_seconds of %s: %v", r.what, r.result, h)
		}
	}
	for _, result := range []string{"denied", "error"} {
		series("authorization_attempts_total", map[string]string{"result": result})
	}
	old := series("apiserver_requested_deprecated_apis", map[string]string{"group": "", "version": "v1", "resource": "endpoints", "subresource": "", "removed_release": ""})
	if old.GetGauge().GetValue() != 1 {
		t.Errorf("deprecated endpoints: %v", old)
	}
}

// TestVerbosity: /debug/flags/v answers as upstream's.
func TestVerbosity(t *testing.T) {
	var set []int
	c := apitest.Start(t, func(cfg *apiserver.Config) { cfg.Verbosity = func(v int) { set = append(set, v) } })
	for _, r := range []struct {
		method, body string
		code         int
		text         string
	}{
		{"PUT", "5", 200, "successfully set klog.logging.verbosity to 5"},
		{"PUT", "much", 400, `failed set klog.logging.verbosity much: strconv.ParseInt: parsing "much": invalid syntax`},
		{"GET", "", 406, "unsupported http method"},
	} {
		code, h, body := call(t, c, r.method, "/debug/flags/v", "", "", r.body)
		if code != r.code || body != r.text || h.Get("Content-Type") != "text/plain" {
			t.Errorf("%s %q: %d %q %v", r.method, r.body, code, body, h)
		}
	}
	if len(set) != 1 || set[0] != 5 {
		t.Errorf("set %v", set)
	}
	req, _ := http.NewRequest("PUT", c.HTTP.URL+"/debug/flags/v", strings.NewReader("9"))
	req.Header.Set("Authorization", "Bearer jane")
	res, err := c.HTTP.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 403 || len(set) != 1 {
		t.Errorf("jane: %d, set %v", res.StatusCode, set)
	}
	if code, _, _ := call(t, apitest.Start(t, nil), "PUT", "/debug/flags/v", "", "", "5"); code != 404 {
		t.Errorf("without a level that can be set: %d", code)
	}
}

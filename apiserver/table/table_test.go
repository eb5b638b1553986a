package table

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/kind"
)

func TestRowsOfEndedPods(t *testing.T) {
	var pods []kind.Object
	for _, phase := range []corev1.PodPhase{corev1.PodRunning, corev1.PodSucceeded, corev1.PodFailed} {
		pods = append(pods, &corev1.Pod{Status: corev1.PodStatus{Phase: phase}})
	}
	tab, err := Of(kind.Pod, pods, metav1.ListMeta{}, metav1.IncludeNone, "v1", time.Unix(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"", "Succeeded", "Failed"} {
		got := ""
		for _, c := range tab.Rows[i].Conditions {
			if c.Type == metav1.RowCompleted && c.Status == metav1.ConditionTrue {
				got = c.Reason
			}
		}
		if got != want {
			t.Errorf("row %d is completed with %q, want %q", i, got, want)
		}
	}
}

package job

import (
	"slices"
	"strconv"
	"strings"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
)

// indexes is a set of completion indexes; its text has the form "1,3-5,7".
type indexes map[int]bool

// parseIndexes reads the text of a status; what is not a number, or not below
// limit, is left out.
func parseIndexes(text string, limit int) indexes {
	out := indexes{}
	for part := range strings.SplitSeq(text, ",") {
		from, to, isRange := strings.Cut(part, "-")
		a, err := strconv.Atoi(from)
		if err != nil || a < 0 {
			continue
		}
		b := a
		if isRange {
			if b, err = strconv.Atoi(to); err != nil {
				continue
			}
		}
		for i := a; i <= min(b, limit-1); i++ {
			out[i] = true
		}
	}
	return out
}

// String in upstream's form: two neighbours are listed, three become a range.
func (x indexes) String() string {
	all := make([]int, 0, len(x))
	for i := range x {
		all = append(all, i)
	}
	slices.Sort(all)
	var b strings.Builder
	for i := 0; i < len(all); {
		j := i
		for j+1 < len(all) && all[j+1] == all[j]+1 {
			j++
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(all[i]))
		if j > i {
			if j == i+1 {
				b.WriteByte(',')
			} else {
				b.WriteByte('-')
			}
			b.WriteString(strconv.Itoa(all[j]))
		}
		i = j + 1
	}
	return b.String()
}

// indexOf a pod; -1 when it has none.
func indexOf(p *corev1.Pod) int {
	n, err := strconv.Atoi(p.Annotations[batchv1.JobCompletionIndexAnnotation])
	if err != nil || n < 0 {
		return -1
	}
	return n
}

// failuresBefore of a pod's index, as its maker counted; ignored ones do not count.
func failuresBefore(p *corev1.Pod) int {
	n, err := strconv.Atoi(p.Annotations[batchv1.JobIndexFailureCountAnnotation])
	if err != nil || n < 0 {
		return 0
	}
	return n
}

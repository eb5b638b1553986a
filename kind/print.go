package kind

import (
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"
)

// none and unknown are what kubectl users are used to see for missing values.
const (
	none    = "<none>"
	unknown = "<unknown>"
	unset   = "<unset>"
)

// The columns that every table has.
var (
	nameColumn = Column{Name: "Name", Type: "string", Format: "name"}
	ageColumn  = Column{Name: "Age", Type: "string"}
)

// columns lists the columns between name and age: "Ready" is a string column,
// "Data:integer" another type, "Attacher:name" a string that names an object, and what
// follows "|" is shown with -o wide only. Descriptions are in Describe.
func columns(description string) []Column {
	shown, wide, _ := strings.Cut(description, "|")
	out := []Column{nameColumn}
	out = append(out, columnList(shown, 0)...)
	out = append(out, ageColumn)
	return append(out, columnList(wide, 1)...)
}

// columnsExactly lists all columns; none are added.
func columnsExactly(description string) []Column {
	shown, wide, _ := strings.Cut(description, "|")
	return append(columnList(shown, 0), columnList(wide, 1)...)
}

func columnList(description string, priority int32) []Column {
	var out []Column
	for word := range strings.SplitSeq(description, ",") {
		name, typ, _ := strings.Cut(strings.TrimSpace(word), ":")
		switch name {
		case "":
			continue
		case "Name":
			out = append(out, nameColumn)
			continue
		case "Age":
			out = append(out, ageColumn)
			continue
		}
		c := Column{Name: name, Type: typ, Priority: priority}
		if typ == "" || typ == "name" {
			c.Type, c.Format = "string", typ
		}
		out = append(out, c)
	}
	return out
}

// since prints how long ago t was.
func since(t metav1.Time, now time.Time) string {
	if t.IsZero() {
		return unknown
	}
	return duration.HumanDuration(now.Sub(t.Time))
}

func age(obj metav1.Object, now time.Time) string { return since(obj.GetCreationTimestamp(), now) }

func orNone(s string) string {
	if s == "" {
		return none
	}
	return s
}

// containerCells are the names and images columns of a workload.
func containerCells(list []corev1.Container) (names, images string) {
	n, m := make([]string, len(list)), make([]string, len(list))
	for i := range list {
		n[i], m[i] = list[i].Name, list[i].Image
	}
	return strings.Join(n, ","), strings.Join(m, ",")
}

// mapCell prints labels as a selector.
func mapCell(m map[string]string) string {
	if len(m) == 0 {
		return none
	}
	return metav1.FormatLabelSelector(&metav1.LabelSelector{MatchLabels: m})
}

// firstFew joins at most limit words and counts the rest, as upstream's tables do.
func firstFew(words []string, limit int, separator string) string {
	if len(words) == 0 {
		return none
	}
	if len(words) <= limit {
		return strings.Join(words, separator)
	}
	return fmt.Sprintf("%s + %d more...", strings.Join(words[:limit], separator), len(words)-limit)
}

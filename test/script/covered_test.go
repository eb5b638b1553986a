package script

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

// TestEveryCommandIsInASession asks kubectl itself for its commands.
func TestEveryCommandIsInASession(t *testing.T) {
	t.Parallel()
	binary := proaBinary(t)
	said := typed(t)
	var missing []string
	program := []string{binary, "kubectl"}
	if own := filepath.Join(filepath.Dir(binary), "helpers", "proa-kubectl"); exists(own) {
		program = []string{own} // the same without being unpacked
	}
	tree := commandTree(t, program)
	for _, c := range tree {
		if !slices.ContainsFunc(said, func(line string) bool { return line == c || strings.HasPrefix(line, c+" ") }) {
			missing = append(missing, "kubectl "+c)
		}
	}
	if len(tree) < 90 {
		t.Errorf("kubectl's help was not understood: only %d commands in it: %v", len(tree), tree)
	}
	if len(missing) > 0 {
		t.Errorf("no session in testdata has:\n%s", strings.Join(missing, "\n"))
	}
}

// typed are all lines with kubectl in the sessions, without the word and without
// flags of one word.
func typed(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no sessions: %v", err)
	}
	var said []string
	call := regexp.MustCompile(`(?:^|[ ';|])kubectl (.*)`)
	flags := regexp.MustCompile(`(^| )--?[a-z-]+=\S+`)
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		script, _, _ := strings.Cut(string(data), "\n-- ")
		for line := range strings.Lines(script) {
			if strings.HasPrefix(strings.TrimSpace(line), "#") {
				continue
			}
			if m := call.FindStringSubmatch(strings.TrimSpace(line)); m != nil {
				said = append(said, strings.Join(strings.Fields(flags.ReplaceAllString(m[1], "")), " "))
			}
		}
	}
	return said
}

// commandTree are kubectl's commands that have none below them, and those that do
// something by themselves all the same.
func commandTree(t *testing.T, program []string) []string {
	t.Helper()
	// "  create          Create a resource", below a title such as "Basic Commands (Beginner):".
	title := regexp.MustCompile(`^[A-Z][A-Za-z ]*Commands.*:$`)
	entry := regexp.MustCompile(`^  ([a-z][a-z-]*) {2,}\S`)
	var (
		all []string
		mu  sync.Mutex
		wg  sync.WaitGroup
	)
	slots := make(chan struct{}, 4)
	var walk func(path []string)
	walk = func(path []string) {
		defer wg.Done()
		slots <- struct{}{}
		out, err := exec.Command(program[0], append(append(slices.Clone(program[1:]), path...), "--help")...).CombinedOutput()
		<-slots
		if err != nil {
			t.Errorf("kubectl %s --help: %v\n%s", strings.Join(path, " "), err, out)
			return
		}
		inside, children := false, 0
		for line := range strings.Lines(string(out)) {
			line = strings.TrimRight(line, "\n")
			switch m := entry.FindStringSubmatch(line); {
			case title.MatchString(line):
				inside = true
			case line == "":
				inside = false
			case inside && m != nil:
				children++
				wg.Add(1)
				go walk(append(slices.Clone(path), m[1]))
			}
		}
		if children == 0 || slices.Contains([]string{"create", "apply", "cluster-info"}, strings.Join(path, " ")) {
			mu.Lock()
			all = append(all, strings.Join(path, " "))
			mu.Unlock()
		}
	}
	wg.Add(1)
	go walk(nil)
	wg.Wait()
	slices.Sort(all)
	return all
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

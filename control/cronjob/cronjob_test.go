package cronjob

import (
	"testing"
	"time"

	"proa.dev/control"
	"proa.dev/control/garbage"
	"proa.dev/control/job"
	"proa.dev/control/scenario"
	"proa.dev/kind"
)

func TestScenarios(t *testing.T) {
	scenario.Run(t, "testdata/*.txtar", func() []control.Part { return []control.Part{Part(), job.Part(), garbage.Part(kind.All)} })
}

func TestNext(t *testing.T) {
	for _, c := range []struct{ line, zone, from, want string }{
		{"* * * * *", "", "2026-01-01T00:00:30Z", "2026-01-01T00:01:00Z"},
		{"*/15 * * * *", "", "2026-01-01T00:45:00Z", "2026-01-01T01:00:00Z"},
		{"5/20 * * * *", "", "2026-01-01T00:06:00Z", "2026-01-01T00:25:00Z"},
		{"0 9-17/4 * * mon-fri", "", "2026-01-02T17:00:00Z", "2026-01-05T09:00:00Z"},
		{"0 0 29 2 *", "", "2026-01-01T00:00:00Z", "2028-02-29T00:00:00Z"},
		{"0 0 31 4 *", "", "2026-01-01T00:00:00Z", ""},
		// Day of the month or of the week, when neither is *.
		{"0 0 13 * 5", "", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"},
		{"0 0 13 * *", "", "2026-01-01T00:00:00Z", "2026-01-13T00:00:00Z"},
		{"@monthly", "", "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"},
		{"@hourly", "", "2026-01-01T00:00:00Z", "2026-01-01T01:00:00Z"},
		{"30 2 * * *", "Europe/Berlin", "2026-03-28T02:00:00Z", "2026-03-30T00:30:00Z"}, // the hour from 2 to 3 is left out on the 29th
		{"30 1 * * *", "America/New_York", "2026-01-01T00:00:00Z", "2026-01-01T06:30:00Z"},
		{"TZ=Asia/Tokyo 0 9 * * *", "", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"},
	} {
		s, err := parse(c.line, c.zone)
		if err != nil {
			t.Errorf("%q: %v", c.line, err)
			continue
		}
		from, _ := time.Parse(time.RFC3339, c.from)
		got := ""
		if n := s.next(from); !n.IsZero() {
			got = n.UTC().Format(time.RFC3339)
		}
		if got != c.want {
			t.Errorf("%q after %s: got %q, want %q", c.line, c.from, got, c.want)
		}
	}
	for _, line := range []string{"", "* * * *", "60 * * * *", "* * * * 7", "5-1 * * * *", "*/0 * * * *", "x * * * *", "@never", "@every x"} {
		if _, err := parse(line, ""); err == nil {
			t.Errorf("%q was taken", line)
		}
	}
}

func TestLastOfManyMissed(t *testing.T) {
	s, err := parse("*/5 * * * *", "")
	if err != nil {
		t.Fatal(err)
	}
	from := scenario.Epoch
	for _, c := range []struct {
		gone   time.Duration
		missed int
	}{{4 * time.Minute, 0}, {5 * time.Minute, 1}, {61 * time.Minute, 12}, {30 * 24 * time.Hour, 101}} {
		now := from.Add(c.gone)
		at, missed := s.last(from, now)
		want := now.Truncate(5 * time.Minute)
		if c.missed == 0 {
			want = time.Time{}
		}
		if missed != c.missed || !at.Equal(want) {
			t.Errorf("after %v: %v %d, want %v %d", c.gone, at, missed, want, c.missed)
		}
	}
}

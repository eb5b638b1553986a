package cronjob

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// schedule is a parsed cron line (Kubernetes docs, "CronJob", Schedule syntax).
type schedule struct {
	minute, hour, day, month, weekday uint64 // bit n: n matches
	anyDay, anyWeekday                bool   // the field began with * or ?
	every                             time.Duration
	zone                              *time.Location
}

var (
	months = map[string]int{"jan": 1, "feb": 2, "mar": 3, "apr": 4, "may": 5, "jun": 6, "jul": 7, "aug": 8, "sep": 9, "oct": 10, "nov": 11, "dec": 12}
	days   = map[string]int{"sun": 0, "mon": 1, "tue": 2, "wed": 3, "thu": 4, "fri": 5, "sat": 6}
	macros = map[string]string{"@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *", "@monthly": "0 0 1 * *", "@weekly": "0 0 * * 0",
		"@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@hourly": "0 * * * *"}
)

// parse a line; zone is the name of a time zone, "" is UTC.
func parse(line, zone string) (s schedule, err error) {
	s.zone = time.UTC
	if name, ok := strings.CutPrefix(strings.TrimPrefix(line, "CRON_"), "TZ="); ok {
		zone, line, _ = strings.Cut(name, " ")
		line = strings.TrimSpace(line)
	}
	if zone != "" {
		if s.zone, err = time.LoadLocation(zone); err != nil {
			return s, fmt.Errorf("read time zone %q: %w", zone, err)
		}
	}
	if d, ok := strings.CutPrefix(line, "@every "); ok {
		if s.every, err = time.ParseDuration(d); err != nil {
			return s, fmt.Errorf("read schedule %q: %w", line, err)
		}
		s.every = max(s.every.Truncate(time.Second), time.Second)
		return s, nil
	}
	if m, ok := macros[line]; ok {
		line = m
	}
	f := strings.Fields(line)
	if len(f) != 5 {
		return s, fmt.Errorf("read schedule %q: %d fields instead of 5", line, len(f))
	}
	for i, x := range []struct {
		to       *uint64
		min, max int
		names    map[string]int
	}{{&s.minute, 0, 59, nil}, {&s.hour, 0, 23, nil}, {&s.day, 1, 31, nil}, {&s.month, 1, 12, months}, {&s.weekday, 0, 6, days}} {
		for _, part := range strings.Split(f[i], ",") {
			bits, err := span(part, x.min, x.max, x.names)
			if err != nil {
				return s, fmt.Errorf("read schedule %q: %w", line, err)
			}
			*x.to |= bits
		}
	}
	s.anyDay, s.anyWeekday = strings.ContainsAny(f[2], "*?"), strings.ContainsAny(f[4], "*?")
	return s, nil
}

// span reads *, ?, n or n-m, each with an optional /step.
func span(text string, least, most int, names map[string]int) (bits uint64, err error) {
	of := func(t string) (int, error) {
		if n, ok := names[strings.ToLower(t)]; ok {
			return n, nil
		}
		n, err := strconv.Atoi(t)
		if err != nil || n < least || n > most {
			return 0, fmt.Errorf("%q is not from %d to %d", t, least, most)
		}
		return n, nil
	}
	body, stepText, stepped := strings.Cut(text, "/")
	from, to := least, most
	if body != "*" && body != "?" {
		a, b, isRange := strings.Cut(body, "-")
		if from, err = of(a); err != nil {
			return 0, err
		}
		switch {
		case isRange:
			if to, err = of(b); err != nil {
				return 0, err
			}
		case !stepped:
			to = from
		}
	}
	step := 1
	if stepped {
		if step, err = strconv.Atoi(stepText); err != nil || step < 1 {
			return 0, fmt.Errorf("step %q is not a positive number", stepText)
		}
	}
	if from > to {
		return 0, fmt.Errorf("%q runs backwards", text)
	}
	for n := from; n <= to; n += step {
		bits |= 1 << n
	}
	return bits, nil
}

func (s schedule) dayMatches(t time.Time) bool {
	day, week := s.day&(1<<t.Day()) != 0, s.weekday&(1<<int(t.Weekday())) != 0
	if s.anyDay || s.anyWeekday {
		return day && week
	}
	return day || week
}

// next instant after t; zero when there is none within five years.
func (s schedule) next(t time.Time) time.Time {
	if s.every > 0 {
		return t.Add(s.every).Truncate(time.Second)
	}
	t = t.In(s.zone)
	t = t.Add(time.Minute - time.Duration(t.Second())*time.Second - time.Duration(t.Nanosecond()))
	for limit := t.AddDate(5, 0, 0); t.Before(limit); {
		switch {
		case s.month&(1<<int(t.Month())) == 0:
			t = time.Date(t.Year(), t.Month()+1, 1, 0, 0, 0, 0, s.zone)
		case !s.dayMatches(t):
			was := t
			t = time.Date(t.Year(), t.Month(), t.Day()+1, 0, 0, 0, 0, s.zone)
			if !t.After(was) { // midnight does not exist that day
				t = was.Add(time.Hour)
			}
		case s.hour&(1<<t.Hour()) == 0:
			t = t.Add(time.Hour - time.Duration(t.Minute())*time.Minute)
		case s.minute&(1<<t.Minute()) == 0:
			t = t.Add(time.Minute)
		default:
			return t
		}
	}
	return time.Time{}
}

// last instant after from, up to and including now; zero when there is none.
// missed counts them, up to 101.
func (s schedule) last(from, now time.Time) (at time.Time, missed int) {
	if s.every > 0 {
		n := int64(now.Sub(from) / s.every)
		if n < 1 {
			return time.Time{}, 0
		}
		return from.Add(time.Duration(n) * s.every).Truncate(time.Second), int(min(n, 101))
	}
	t := s.next(from)
	for ; missed <= 100 && !t.IsZero() && !t.After(now); t = s.next(t) {
		at = t
		missed++
	}
	if missed <= 100 {
		return at, missed
	}
	// Too many to walk: look back from now, further each time.
	for back := time.Minute; ; back *= 2 {
		start := now.Add(-back)
		if start.Before(from) {
			start = from
		}
		for t := s.next(start); !t.IsZero() && !t.After(now); t = s.next(t) {
			at = t
		}
		if first := s.next(start); !first.After(now) || start.Equal(from) {
			return at, missed
		}
	}
}

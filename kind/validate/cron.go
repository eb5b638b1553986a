package validate

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// cronField is one of the five fields of a schedule.
type cronField struct {
	min, max uint
	names    map[string]uint
}

var cronFields = []cronField{
	{0, 59, nil},
	{0, 23, nil},
	{1, 31, nil},
	{1, 12, map[string]uint{"jan": 1, "feb": 2, "mar": 3, "apr": 4, "may": 5, "jun": 6, "jul": 7, "aug": 8, "sep": 9, "oct": 10, "nov": 11, "dec": 12}},
	{0, 6, map[string]uint{"sun": 0, "mon": 1, "tue": 2, "wed": 3, "thu": 4, "fri": 5, "sat": 6}},
}

// cronSchedule says what is wrong with a standard cron line of five fields or a
// descriptor such as @daily or "@every 1h".
func cronSchedule(line string) error {
	if line == "" {
		return fmt.Errorf("empty spec string")
	}
	if strings.HasPrefix(line, "TZ=") || strings.HasPrefix(line, "CRON_TZ=") {
		zone, rest, _ := strings.Cut(line, " ")
		_, name, _ := strings.Cut(zone, "=")
		if _, err := time.LoadLocation(name); err != nil {
			return fmt.Errorf("provided bad location %s: %v", name, err)
		}
		line = strings.TrimSpace(rest)
	}
	if strings.HasPrefix(line, "@") {
		return cronDescriptor(line)
	}
	fields := strings.Fields(line)
	if len(fields) != len(cronFields) {
		return fmt.Errorf("expected exactly %d fields, found %d: %s", len(cronFields), len(fields), fields)
	}
	for i, f := range fields {
		for _, expr := range strings.FieldsFunc(f, func(r rune) bool { return r == ',' }) {
			if err := cronFields[i].check(expr); err != nil {
				return err
			}
		}
	}
	return nil
}

func cronDescriptor(line string) error {
	switch line {
	case "@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly":
		return nil
	}
	if every, ok := strings.CutPrefix(line, "@every "); ok {
		if _, err := time.ParseDuration(every); err != nil {
			return fmt.Errorf("failed to parse duration %s: %s", line, err)
		}
		return nil
	}
	return fmt.Errorf("unrecognized descriptor: %s", line)
}

// check looks at one of *, ?, n, n-m, each with an optional /step.
func (f cronField) check(expr string) error {
	var start, end uint
	var err error
	span := strings.Split(expr, "/")
	ends := strings.Split(span[0], "-")
	single := len(ends) == 1
	if ends[0] == "*" || ends[0] == "?" {
		start, end = f.min, f.max
	} else {
		if start, err = f.value(ends[0]); err != nil {
			return err
		}
		switch len(ends) {
		case 1:
			end = start
		case 2:
			if end, err = f.value(ends[1]); err != nil {
				return err
			}
		default:
			return fmt.Errorf("too many hyphens: %s", expr)
		}
	}
	step := uint(1)
	switch len(span) {
	case 1:
	case 2:
		if step, err = cronNumber(span[1]); err != nil {
			return err
		}
		if single {
			end = f.max
		}
	default:
		return fmt.Errorf("too many slashes: %s", expr)
	}
	switch {
	case start < f.min:
		return fmt.Errorf("beginning of range (%d) below minimum (%d): %s", start, f.min, expr)
	case end > f.max:
		return fmt.Errorf("end of range (%d) above maximum (%d): %s", end, f.max, expr)
	case start > end:
		return fmt.Errorf("beginning of range (%d) beyond end of range (%d): %s", start, end, expr)
	case step == 0:
		return fmt.Errorf("step of range should be a positive number: %s", expr)
	}
	return nil
}

func (f cronField) value(expr string) (uint, error) {
	if n, ok := f.names[strings.ToLower(expr)]; ok {
		return n, nil
	}
	return cronNumber(expr)
}

func cronNumber(expr string) (uint, error) {
	n, err := strconv.Atoi(expr)
	if err != nil {
		return 0, fmt.Errorf("failed to parse int from %s: %s", expr, err)
	}
	if n < 0 || n > math.MaxInt32 {
		return 0, fmt.Errorf("negative number (%d) not allowed: %s", n, expr)
	}
	return uint(n), nil
}

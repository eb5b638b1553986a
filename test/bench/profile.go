package main

import (
	"fmt"
	"os"
	"runtime/pprof"
)

// profile writes a CPU profile of this process until stop, if one is wanted.
func (l *lab) profile() (stop func(), err error) {
	if l.cpuprofile == "" {
		return func() {}, nil
	}
	f, err := os.Create(l.cpuprofile)
	if err != nil {
		return nil, fmt.Errorf("write a profile: %w", err)
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		f.Close()
		return nil, fmt.Errorf("write a profile: %w", err)
	}
	return func() {
		pprof.StopCPUProfile()
		f.Close()
	}, nil
}

// Command proa-monitor is the parent of one pod's containers; the engine starts
// it, nobody else. Its contract is package engine/monitor.
//
// Build (static, no cgo, small):
//
//	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o bin/proa-monitor ./cmd/proa-monitor
package main

import (
	"os"

	"proa.dev/engine/monitor"
)

func main() { os.Exit(monitor.Main(os.Args[1:])) }

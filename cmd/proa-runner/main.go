// Command proa-runner builds one container or one process in a container, and
// exits; a monitor starts it, nobody else. Its contract is package engine/runner.
//
// It needs cgo (libcontainer's namespace code and libseccomp) and is linked
// statically, so that one file runs on every machine:
//
//	apt-get install libseccomp-dev
//	CGO_ENABLED=1 go build -trimpath -tags seccomp,netgo,osusergo \
//	    -ldflags '-s -w -linkmode external -extldflags -static' \
//	    -o bin/proa-runner ./cmd/proa-runner
package main

import (
	"os"

	"proa.dev/engine/runner"
)

func main() { os.Exit(runner.Main(os.Args[1:])) }

// Command mkimage makes an OCI image archive of files on this machine, without a
// registry, a daemon or root:
//
//	mkimage -o rng.tar -name dockercoins/rng:v1 -file bin/rng:/rng -entrypoint /rng -user 65534:65534
//
// The image has one layer, uncompressed: the members of -tar (a root file system)
// that no -prune names, then what -dir, -file and -link add. Times are zero and
// members sorted, so that the same input gives the same bytes and the same image ID.
// The archive is an OCI image layout and what `docker load` reads at once; the name
// is written in full (docker.io/dockercoins/rng:v1).
//
// A dynamically linked file in an image without -tar is an error: its loader would
// not be there.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// list is a flag that may be given many times.
type list []string

func (l *list) String() string     { return strings.Join(*l, " ") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "mkimage:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	var out, name, base, user, dir, stop string
	var prunes, dirs, files, links, envs, entry, cmd, ports, labels list
	f := flag.NewFlagSet("mkimage", flag.ContinueOnError)
	f.StringVar(&out, "o", "", "archive to write")
	f.StringVar(&name, "name", "", "name of the image")
	f.StringVar(&base, "tar", "", "root file system to start from, an uncompressed tar")
	f.Var(&prunes, "prune", "path below which nothing of -tar is taken (shell pattern)")
	f.Var(&dirs, "dir", "PATH[:MODE[:UID:GID]] directory to make")
	f.Var(&files, "file", "SOURCE:PATH[:MODE[:UID:GID]] file to add")
	f.Var(&links, "link", "TARGET:PATH hard link to an added file")
	f.Var(&envs, "env", "NAME=VALUE")
	f.Var(&entry, "entrypoint", "one word of the entry point")
	f.Var(&cmd, "cmd", "one word of the default arguments")
	f.Var(&ports, "port", "PORT/PROTOCOL that the program listens on")
	f.Var(&labels, "label", "NAME=VALUE")
	f.StringVar(&user, "user", "", "user that the program runs as, UID:GID")
	f.StringVar(&dir, "workdir", "/", "working directory")
	f.StringVar(&stop, "stop", "", "signal that stops the program (default SIGTERM)")
	if err := f.Parse(args); err != nil {
		return err
	}
	if out == "" || name == "" || f.NArg() > 0 {
		return errors.New("want -o FILE and -name NAME, and no other words; see -help")
	}
	full, err := fullName(name)
	if err != nil {
		return err
	}
	l := newLayer()
	if base != "" {
		if err := l.addTar(base, prunes); err != nil {
			return err
		}
	}
	for _, d := range dirs {
		p := strings.Split(d, ":")
		a, err := attributes(p[1:], 0o755)
		if err != nil {
			return fmt.Errorf("-dir %q: %w", d, err)
		}
		l.addDir(p[0], a)
	}
	for _, d := range files {
		p := strings.Split(d, ":")
		if len(p) < 2 {
			return fmt.Errorf("-file %q: want SOURCE:PATH", d)
		}
		info, err := os.Stat(p[0])
		if err != nil {
			return fmt.Errorf("-file %q: %w", d, err)
		}
		mode := fs.FileMode(0o644)
		if info.Mode()&0o111 != 0 {
			mode = 0o755
		}
		a, err := attributes(p[2:], mode)
		if err != nil {
			return fmt.Errorf("-file %q: %w", d, err)
		}
		if base == "" {
			if err := checkStatic(p[0]); err != nil {
				return err
			}
		}
		if err := l.addFile(p[0], p[1], a); err != nil {
			return err
		}
	}
	for _, d := range links {
		target, at, ok := strings.Cut(d, ":")
		if !ok {
			return fmt.Errorf("-link %q: want TARGET:PATH", d)
		}
		if err := l.addLink(target, at); err != nil {
			return err
		}
	}
	config := v1.ImageConfig{User: user, Env: envs, Entrypoint: entry, Cmd: cmd, WorkingDir: dir, StopSignal: stop}
	if len(config.Env) == 0 {
		config.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	}
	for _, p := range ports {
		if config.ExposedPorts == nil {
			config.ExposedPorts = map[string]struct{}{}
		}
		config.ExposedPorts[p] = struct{}{}
	}
	for _, p := range labels {
		k, v, ok := strings.Cut(p, "=")
		if !ok {
			return fmt.Errorf("-label %q: want NAME=VALUE", p)
		}
		if config.Labels == nil {
			config.Labels = map[string]string{}
		}
		config.Labels[k] = v
	}
	tmp, err := os.CreateTemp(filepath.Dir(out), ".mkimage-")
	if err != nil {
		return fmt.Errorf("write %q: %w", out, err)
	}
	defer os.Remove(tmp.Name())
	err = writeArchive(tmp, full, config, l)
	if err == nil {
		err = tmp.Chmod(0o644)
	}
	if e := tmp.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(tmp.Name(), out)
	}
	if err != nil {
		return fmt.Errorf("write %q: %w", out, err)
	}
	return nil
}

// attr is what a member has besides its content.
type attr struct {
	mode     int64
	uid, gid int
}

func attributes(words []string, mode fs.FileMode) (attr, error) {
	a := attr{mode: int64(mode)}
	if len(words) > 0 && words[0] != "" {
		m, err := strconv.ParseUint(words[0], 8, 12)
		if err != nil {
			return a, fmt.Errorf("mode %q: want an octal number up to 7777", words[0])
		}
		a.mode = int64(m)
	}
	if len(words) == 1 || len(words) == 0 {
		return a, nil
	}
	if len(words) != 3 {
		return a, errors.New("want MODE:UID:GID")
	}
	uid, err := strconv.ParseUint(words[1], 10, 31)
	if err != nil {
		return a, fmt.Errorf("user %q: want a number", words[1])
	}
	gid, err := strconv.ParseUint(words[2], 10, 31)
	if err != nil {
		return a, fmt.Errorf("group %q: want a number", words[2])
	}
	a.uid, a.gid = int(uid), int(gid)
	return a, nil
}

// fullName completes a name by the rules of the distribution project: the first
// word is a registry when it has a dot, a colon or is localhost.
func fullName(name string) (string, error) {
	if name == "" || name != strings.ToLower(name) || strings.ContainsAny(name, " @") {
		return "", fmt.Errorf("image name %q: want lower case, no digest and no spaces", name)
	}
	if !strings.Contains(path.Base(name), ":") {
		name += ":latest"
	}
	first, _, more := strings.Cut(name, "/")
	switch {
	case !more:
		return "docker.io/library/" + name, nil
	case strings.ContainsAny(first, ".:") || first == "localhost":
		return name, nil
	}
	return "docker.io/" + name, nil
}

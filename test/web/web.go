// Package web looks at a page as a person would: in headless Chromium, scripts and
// all. Tests only. Needs Debian's package chromium (tools/deps.sh test installs it)
// and reaches no host but the page's own.
package web

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

const (
	bound = 60 * time.Second
	// settle is how long the page's scripts run, in the page's own time.
	settle = 4 * time.Second
)

// Look opens url, lets its scripts run for four seconds of page time, and returns
// the document as it then is and a picture of it (PNG, 1200 × 900).
func Look(ctx context.Context, url string) (dom string, png []byte, err error) {
	chromium, err := exec.LookPath("chromium")
	if err != nil {
		return "", nil, fmt.Errorf("look at %q: %w; install it with `tools/deps.sh test`", url, err)
	}
	dir, err := os.MkdirTemp("", "look-")
	if err != nil {
		return "", nil, fmt.Errorf("look at %q: %w", url, err)
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	picture := filepath.Join(dir, "page.png")
	cmd := exec.CommandContext(ctx, chromium,
		"--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run",
		"--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions", "--disable-default-apps",
		"--no-proxy-server", "--hide-scrollbars", "--force-color-profile=srgb",
		"--user-data-dir="+filepath.Join(dir, "profile"), "--window-size=1200,900",
		fmt.Sprintf("--virtual-time-budget=%d", settle.Milliseconds()), "--dump-dom", "--screenshot="+picture, url)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "HOME="+dir)
	var out, problems bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problems
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return "", nil, fmt.Errorf("look at %q: %w: %s", url, err, tail(problems.String()))
	}
	if strings.Contains(out.String(), `id="main-frame-error"`) { // Chromium's own page
		return out.String(), nil, fmt.Errorf("look at %q: no page came: %s", url, tail(problems.String()))
	}
	if png, err = os.ReadFile(picture); errors.Is(err, os.ErrNotExist) {
		return "", nil, fmt.Errorf("look at %q: chromium made no picture: %s", url, tail(problems.String()))
	} else if err != nil {
		return "", nil, fmt.Errorf("look at %q: %w", url, err)
	}
	return out.String(), png, nil
}

// tail is the end of what Chromium said; it is talkative.
func tail(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-5):], "\n")
}

package machine

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// buildImages makes busybox.tar (proa/busybox:1) and web-v1.tar, web-v2.tar
// (proa/web:v1 and v2) in a directory of this run.
func buildImages() (string, error) {
	dir := filepath.Join(scratch, "images")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	run := func(env []string, name string, args ...string) error {
		c := exec.Command(name, args...)
		c.Env = append(os.Environ(), env...)
		if out, err := c.CombinedOutput(); err != nil {
			return fmt.Errorf("%s %s: %w\n%s", name, args[0], err, out)
		}
		return nil
	}
	mkimage, web := filepath.Join(dir, "mkimage"), filepath.Join(dir, "web")
	if err := run(nil, "go", "build", "-o", mkimage, "../../tools/mkimage"); err != nil {
		return "", err
	}
	if err := run([]string{"CGO_ENABLED=0"}, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", web, "./web"); err != nil {
		return "", err
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return "", fmt.Errorf("%w; `make deps` installs busybox-static", err)
	}
	applets, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return "", err
	}
	args := []string{"-o", filepath.Join(dir, "busybox.tar"), "-name", "proa/busybox:1", "-file", busybox + ":/bin/busybox:755",
		"-file", web + ":/bin/web:755", // busybox's own wget, static against glibc, crashes in an image without glibc
		"-dir", "/tmp:1777", "-dir", "/root:700", "-dir", "/etc", "-cmd", "sh", "-env", "FROM_IMAGE=yes"}
	for _, a := range strings.Fields(string(applets)) {
		if a != "busybox" {
			args = append(args, "-link", "/bin/busybox:/bin/"+a)
		}
	}
	passwd := filepath.Join(dir, "passwd")
	if err := os.WriteFile(passwd, []byte("root:x:0:0:root:/root:/bin/sh\nsailor:x:1000:1000::/tmp:/bin/sh\n"), 0o644); err != nil {
		return "", err
	}
	group := filepath.Join(dir, "group")
	if err := os.WriteFile(group, []byte("root:x:0:\nsailor:x:1000:\ncrew:x:2000:sailor\n"), 0o644); err != nil {
		return "", err
	}
	args = append(args, "-file", passwd+":/etc/passwd:644", "-file", group+":/etc/group:644")
	if err := run(nil, mkimage, args...); err != nil {
		return "", err
	}
	for _, v := range []string{"v1", "v2"} {
		if err := run(nil, mkimage, "-o", filepath.Join(dir, "web-"+v+".tar"), "-name", "proa/web:"+v, "-file", web+":/web:755", "-entrypoint", "/web",
			"-env", "VERSION="+v, "-port", "8080/tcp", "-user", "65534:65534"); err != nil {
			return "", err
		}
	}
	return dir, nil
}

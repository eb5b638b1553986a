package machine

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"proa.dev/internal/await"
)

// Every wrong start: a sentence with the thing and the way out, a code that is
// not 0, and nothing lost.
func TestWrongStarts(t *testing.T) {
	t.Parallel()
	refused := func(t *testing.T, r result, want ...string) {
		t.Helper()
		if r.code == 0 {
			t.Errorf("went through: %s", r)
		}
		mustHold(t, r.err, want...)
		if !strings.HasPrefix(r.err, "proa: ") || strings.Contains(r.err, "panic") || strings.Contains(r.err, "goroutine") {
			t.Errorf("not a sentence: %s", r)
		}
	}
	t.Run("words", func(t *testing.T) {
		refused(t, command(nil, "", nil, binary, "up", "--nonsense"), "unknown flag: --nonsense", "see `proa up --help`")
		refused(t, command(nil, "", nil, binary, "upp"), `unknown command "upp"`)
		refused(t, command(nil, "", nil, binary, "up", "extra"), "extra")
		refused(t, command(nil, "", nil, binary, "up", "--name", "Not_A_Name"), `cluster name "Not_A_Name"`, "lower-case letters")
		refused(t, command(nil, "", nil, binary, "status", "-o", "xml"), `"xml"`, "json")
		refused(t, command(nil, "", nil, binary, "--name", "machine-nowhere", "image", "ls"), "not running", "proa up")
		refused(t, command(nil, "", nil, binary, "--name", "machine-nowhere", "up", "--config", "/nowhere.yaml"), "/nowhere.yaml")
		bad := filepath.Join(t.TempDir(), "c.yaml")
		os.WriteFile(bad, []byte("podNetwrk: x\n"), 0o644)
		refused(t, command(nil, "", nil, binary, "--name", "machine-nowhere", "up", "--config", bad), "podNetwrk", bad)
	})
	t.Run("not root", func(t *testing.T) {
		// Somebody else may read the binary where it is copied to.
		dir, err := os.MkdirTemp("", "proa-machine-other-")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		os.Chmod(dir, 0o755)
		own := filepath.Join(dir, "proa")
		if r := command(nil, "", nil, "cp", binary, own); r.code != 0 {
			t.Fatal(r)
		}
		r := command(nil, "", nil, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", own, "--name", "machine-nobody", "up")
		refused(t, r, "not root", "sudo proa up")
		if r := command(nil, "", nil, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", own, "version"); r.code != 0 {
			t.Error(r)
		}
	})
	t.Run("read-only", func(t *testing.T) {
		mount(t, boxAt("readonly").data, "tmpfs", unix.MS_RDONLY, "")
		b := newBox(t, "readonly")
		refused(t, b.tryUp(), b.data, "read-only file system", "--data-dir")
	})
	t.Run("port in use", func(t *testing.T) {
		l, err := net.Listen("tcp", ":0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		port := fmt.Sprint(l.Addr().(*net.TCPAddr).Port)
		b := newBox(t, "port", "--api-port", port)
		refused(t, b.tryUp(), "port "+port, "address already in use", "--api-port")
	})
	t.Run("second on one directory", func(t *testing.T) {
		b := newBox(t, "first", "--no-node")
		b.up(t)
		other := &box{name: "machine-second", data: b.data, kubeconfig: b.kubeconfig + "2"}
		r := other.tryUp("--no-node")
		if r.code == 0 {
			other.tryProa("down")
			t.Errorf("a second proa on the same directory went through: %s", r)
		}
		mustHold(t, r.err, b.data)
		b.kubectl(t, "", "get", "--raw", "/readyz")
		os.RemoveAll("/run/proa/machine-second")
	})
	t.Run("corrupt store", func(t *testing.T) {
		b := newBox(t, "corrupt", "--no-node")
		b.up(t)
		b.kubectl(t, "", "create", "configmap", "c")
		b.proa(t, "down")
		spoiled := 0
		filepath.Walk(filepath.Join(b.data, "store"), func(path string, info os.FileInfo, err error) error {
			if err == nil && !info.IsDir() && info.Size() > 100 && (strings.HasSuffix(path, ".sst") || strings.HasSuffix(path, ".log") || strings.Contains(path, "MANIFEST")) {
				f, err := os.OpenFile(path, os.O_RDWR, 0)
				if err != nil {
					return err
				}
				defer f.Close()
				spoiled++
				f.WriteAt([]byte("these bytes are not what was written here"), info.Size()/3)
			}
			return nil
		})
		if spoiled == 0 {
			t.Fatal("found no file to spoil")
		}
		refused(t, b.tryUp(), filepath.Join(b.data, "store"))
		if _, err := os.Stat(filepath.Join(b.data, "store")); err != nil {
			t.Errorf("the store was taken away: %v", err)
		}
	})
	t.Run("full disk", func(t *testing.T) {
		mount(t, boxAt("full").data, "tmpfs", 0, "size=48m")
		b := newBox(t, "full", "--no-node")
		r := b.tryUp()
		if r.code != 0 {
			refused(t, r, "no space left on device")
			return
		}
		b.kubectl(t, "", "create", "configmap", "kept", "--from-literal=a=b")
		fill := filepath.Join(b.data, "fill")
		command(nil, "", nil, "dd", "if=/dev/zero", "of="+fill, "bs=64k")
		big := filepath.Join(scratch, "big")
		os.WriteFile(big, []byte(strings.Repeat("x", 900_000)), 0o644)
		failed := result{}
		for i := range 60 {
			if failed = b.tryKubectl("", "create", "configmap", fmt.Sprint("big-", i), "--from-file="+big); failed.code != 0 {
				break
			}
		}
		if failed.code == 0 || !strings.Contains(failed.err, "no space left on device") {
			t.Errorf("writes on a full disk: %s", failed)
		}
		os.Remove(fill)
		await.Nil(t, 30*time.Second, "writes after space is there again", func() error {
			if r := b.tryKubectl("", "create", "configmap", "again", "--dry-run=none"); r.code != 0 && !strings.Contains(r.err, "already exists") {
				if st, _ := b.status(t); st.State != "running" {
					b.tryUp()
				}
				return fmt.Errorf("%s", r)
			}
			return nil
		})
		if out := b.kubectl(t, "", "get", "configmap", "kept", "-o", "jsonpath={.data.a}"); out != "b" {
			t.Errorf("what was written before: %q", out)
		}
	})
}

// mount puts a file system on a directory for the time of a test.
func mount(t *testing.T, dir, kind string, flags uintptr, options string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(kind, dir, kind, flags, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

package script

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"proa.dev/internal/await"
)

// patience is how long a session waits for something to become true.
const patience = 45 * time.Second

// commands are the words of the sessions beside those of testscript.
func commands(binary string) map[string]func(ts *testscript.TestScript, neg bool, args []string) {
	return map[string]func(ts *testscript.TestScript, neg bool, args []string){
		// kubectl ARGS: the real one, in the session's namespace.
		"kubectl": func(ts *testscript.TestScript, neg bool, args []string) {
			result(ts, neg, ts.Exec(binary, kubectl(ts, args)...))
		},
		// proa ARGS: as typed.
		"proa": func(ts *testscript.TestScript, neg bool, args []string) {
			result(ts, neg, ts.Exec(binary, args...))
		},
		// eventually REGEXP kubectl ARGS: until what it says matches.
		"eventually": func(ts *testscript.TestScript, neg bool, args []string) {
			if neg || len(args) < 3 || args[1] != "kubectl" {
				ts.Fatalf("usage: eventually REGEXP kubectl ARGS")
			}
			want, err := regexp.Compile("(?m)" + args[0])
			ts.Check(err)
			poll(ts, func() (bool, string) {
				c := exec.Command(binary, kubectl(ts, args[2:])...)
				c.Dir, c.Env = ts.MkAbs("."), append(os.Environ(), "HOME="+ts.Getenv("HOME"))
				out, _ := c.CombinedOutput()
				return want.Match(out), string(out)
			})
		},
		// capture NAME REGEXP FILE: sets the variable to the first group, as soon as the
		// file has it.
		"capture": func(ts *testscript.TestScript, neg bool, args []string) {
			if neg || len(args) != 3 {
				ts.Fatalf("usage: capture NAME REGEXP FILE (stdout for the last command's)")
			}
			want, err := regexp.Compile("(?m)" + args[1])
			ts.Check(err)
			poll(ts, func() (bool, string) {
				var text string
				if args[2] == "stdout" {
					text = ts.ReadFile("stdout")
				} else {
					data, _ := os.ReadFile(ts.MkAbs(args[2]))
					text = string(data)
				}
				m := want.FindStringSubmatch(text)
				if len(m) < 2 {
					return false, text
				}
				ts.Setenv(args[0], m[1])
				return true, ""
			})
		},
		// fetch [SOCKET] URL: the body goes to stdout; connecting is tried until it works.
		"fetch": func(ts *testscript.TestScript, neg bool, args []string) {
			t := &http.Transport{DisableKeepAlives: true}
			if len(args) == 2 {
				path := ts.MkAbs(args[0])
				t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
					var d net.Dialer
					return d.DialContext(ctx, "unix", path)
				}
				args = args[1:]
			}
			if neg || len(args) != 1 {
				ts.Fatalf("usage: fetch [SOCKET] URL")
			}
			c := http.Client{Transport: t, Timeout: 10 * time.Second}
			poll(ts, func() (bool, string) {
				res, err := c.Get(args[0])
				if err != nil {
					return false, err.Error()
				}
				defer res.Body.Close()
				data, err := io.ReadAll(res.Body)
				if err != nil {
					return false, err.Error()
				}
				ts.Stdout().Write(data)
				return true, ""
			})
		},
	}
}

func kubectl(ts *testscript.TestScript, args []string) []string {
	return append([]string{"--name", name, "--data-dir", ts.Getenv("DATA"), "kubectl", "-n", ts.Getenv("NS")}, args...)
}

// poll calls f until it is true, as long as patience lasts.
func poll(ts *testscript.TestScript, f func() (ok bool, last string)) {
	if err := await.Until(context.Background(), patience, "what the script says", func() error {
		ok, last := f()
		if !ok {
			return errors.New("it was\n" + strings.TrimSpace(last))
		}
		return nil
	}); err != nil {
		ts.Fatalf("%v", err)
	}
}

func result(ts *testscript.TestScript, neg bool, err error) {
	switch {
	case neg && err == nil:
		ts.Fatalf("went through, should have been refused")
	case !neg && err != nil:
		ts.Fatalf("%v", err)
	}
}

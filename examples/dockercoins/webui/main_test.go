package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"proa.dev/examples/dockercoins/redis"
)

func TestSpeed(t *testing.T) {
	u := &webui{}
	at := time.Unix(1000, 0)
	for i, tt := range []struct {
		hashes int64
		want   float64
	}{{100, 0}, {110, 10}, {120, 10}, {140, 13.3}, {140, 10}, {140, 8}, {140, 6}, {140, 4}, {140, 0}, {7, 0}, {17, 10}} {
		if got := u.add(sample{at: at.Add(time.Duration(i) * time.Second), hashes: tt.hashes}); got != tt.want {
			t.Errorf("second %d: %v, want %v", i, got, tt.want)
		}
	}
	for i := range 2 * keep {
		u.add(sample{at: at.Add(time.Hour + time.Duration(i)*time.Second), hashes: 1000})
	}
	if len(u.history) != keep || len(u.samples) > 6 {
		t.Errorf("%d of history, %d samples", len(u.history), len(u.samples))
	}
}

func TestRead(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, replies := range [][]string{
			{"$2\r\n12\r\n", "$1\r\n3\r\n", "*2\r\n$2\r\n0a\r\n$2\r\n0b\r\n", "*1\r\n$7\r\nminer:a\r\n"},
			{"$-1\r\n", "$-1\r\n", "*0\r\n", "*0\r\n"},
			{"$1\r\nx\r\n", "$-1\r\n", "*0\r\n", "*0\r\n"},
			{"-NOAUTH Authentication required.\r\n", "-NOAUTH x\r\n", "-NOAUTH x\r\n", "-NOAUTH x\r\n"},
		} {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r := bufio.NewReader(c)
			for _, reply := range replies {
				if _, err := redis.Read(r); err != nil {
					break
				}
				fmt.Fprint(c, reply)
			}
			c.Close()
		}
	}()
	defer func() { l.Close(); <-done }()
	for _, tt := range []struct {
		want sample
		err  string
	}{
		{sample{hashes: 12, coins: 3, miners: 1, latest: []string{"0a", "0b"}}, ""},
		{sample{}, ""},
		{sample{}, "not a number"},
		{sample{}, "NOAUTH"},
	} {
		db := redis.New(l.Addr().String(), "")
		got, err := read(context.Background(), db)
		db.Close()
		got.at = time.Time{}
		if !reflect.DeepEqual(got, tt.want) || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%+v %v, want %+v %q", got, err, tt.want, tt.err)
		}
	}
}

func TestHandler(t *testing.T) {
	u := &webui{title: "T", host: "h"}
	get := func(path string, into any) *httptest.ResponseRecorder {
		t.Helper()
		w := httptest.NewRecorder()
		u.handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		if into != nil {
			if err := json.Unmarshal(w.Body.Bytes(), into); err != nil {
				t.Fatalf("%s: %v: %s", path, err, w.Body)
			}
		}
		return w
	}
	var n numbers
	if get("/json", &n); n.Error == "" || n.Latest == nil {
		t.Errorf("%+v", n)
	}
	u.add(sample{at: time.Unix(10, 0), hashes: 1})
	u.add(sample{at: time.Unix(11, 0), hashes: 9, coins: 2, miners: 3, latest: []string{"0"}})
	want := numbers{Hashes: 9, Coins: 2, Now: 11, Speed: 8, Miners: 3, Latest: []string{"0"}, Title: "T", Host: "h"}
	if get("/json", &n); !reflect.DeepEqual(n, want) {
		t.Errorf("%+v, want %+v", n, want)
	}
	u.trouble = "away"
	if get("/json", &n); n.Error != "away" || n.Speed != 0 || n.Hashes != 9 {
		t.Errorf("%+v", n)
	}
	var h [][2]float64
	if get("/history", &h); !reflect.DeepEqual(h, [][2]float64{{10, 0}, {11, 8}}) {
		t.Errorf("%v", h)
	}
	if w := get("/", nil); w.Code != 200 || !strings.Contains(w.Body.String(), `id="speed"`) {
		t.Error("no page")
	}
	if w := get("/x", nil); w.Code != 404 {
		t.Error(w.Code)
	}
}

package proxy

import (
	"bufio"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	logtest "github.com/sirupsen/logrus/hooks/test"

	"github.com/pikoproxy/piko/internal/limit"
)

func TestReliefClosesConnectionsThatRestAndNoOthers(t *testing.T) {
	log, lines := logtest.NewNullLogger()
	counts := prometheus.NewRegistry()
	f := newFixture(t, func(o *Options) { o.Report = limit.NewReporter(log, counts) })
	hold, arrived := make(chan struct{}), make(chan struct{}, 1)
	f.serveHTTP(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hold" {
			arrived <- struct{}{}
			<-hold
		}
		_, _ = io.WriteString(w, "hello")
	})
	ask := func(c net.Conn, path string) {
		if _, err := io.WriteString(c, "GET "+path+" HTTP/1.1\r\nHost: ep1.piko.test\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
	}
	hear := func(br *bufio.Reader) {
		t.Helper()
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		if body := readAll(t, resp); body != "hello" {
			t.Fatalf("answer %q", body)
		}
	}
	resting, rested := f.dial()
	ask(resting, "/")
	hear(rested)
	busy, answered := f.dial()
	ask(busy, "/hold")
	await(t, arrived, "the request")
	half, halved := f.dial()
	ask(half, "/")
	hear(halved)
	if _, err := io.WriteString(half, "GET / HTTP/1.1\r\nHost: "); err != nil {
		t.Fatal(err)
	}
	two := f.h2client()
	for range 2 {
		resp, err := two.Get("http://" + f.addr + "/_piko/none")
		if err != nil {
			t.Fatal(err)
		}
		_ = readAll(t, resp)
	}
	count := func() float64 {
		t.Helper()
		n := 0.0
		all, err := counts.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, family := range all {
			for _, m := range family.GetMetric() {
				for _, l := range m.GetLabel() {
					if l.GetValue() == string(limit.Resting) {
						n += m.GetCounter().GetValue()
					}
				}
			}
		}
		return n
	}
	waitForHead(t, f, half)

	f.server.Relieve()
	if n := count(); n != 0 {
		t.Errorf("%v connections were closed that had carried something a moment ago", n)
	}
	for limit := time.Now().Add(patience); count() < 2 && time.Now().Before(limit); {
		f.server.relieve(time.Now().Add(restEnough))
	}
	if _, err := rested.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("a connection that rests: %v", err)
	}
	f.server.relieve(time.Now().Add(restEnough))
	if n := count(); n != 2 {
		t.Errorf("%v connections were closed, want that of HTTP/1.1 and that of HTTP/2", n)
	}
	if len(lines.AllEntries()) != 2 {
		t.Errorf("%d lines in the log, want one for each connection", len(lines.AllEntries()))
	}
	close(hold)
	hear(answered)
	if _, err := io.WriteString(half, "ep1.piko.test\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	hear(halved)
}

// waitForHead waits until the proxy has read a part of a request from a connection.
func waitForHead(t *testing.T, f *fixture, client net.Conn) {
	t.Helper()
	for limit := time.Now().Add(patience); time.Now().Before(limit); runtime.Gosched() {
		f.server.mu.Lock()
		fronts := slices.Collect(maps.Keys(f.server.fronts))
		f.server.mu.Unlock()
		for _, front := range fronts {
			var all []net.Conn
			front.mu.Lock()
			for c := range front.plain {
				all = append(all, c.conn)
			}
			front.mu.Unlock()
			front.waiting.Range(func(c, _ any) bool {
				all = append(all, c.(net.Conn))
				return true
			})
			for _, c := range all {
				if c.RemoteAddr().String() == client.LocalAddr().String() && begun(c) {
					return
				}
			}
		}
	}
	t.Fatal("the beginning of a request did not arrive")
}

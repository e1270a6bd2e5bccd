package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pikoproxy/piko/internal/router"
	"github.com/pikoproxy/piko/internal/tunnel"
)

// oneShot answers the first request of a connection and drops the connection at the second one, as a service does whose
// idle limit ends just then.
func oneShot(served *atomic.Int32) func(net.Conn, *bufio.Reader) {
	return func(c net.Conn, br *bufio.Reader) {
		for i := range 2 {
			if _, err := readRequestHead(br); err != nil || i == 1 {
				return
			}
			served.Add(1)
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}
	}
}

func TestStreamThatDiedWhileIdleIsReplaced(t *testing.T) {
	var served atomic.Int32
	f := newFixture(t, nil)
	f.serveRaw(oneShot(&served))
	c := f.client()
	for i := range 6 {
		resp, err := c.Do(f.request("GET", "/", nil))
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("request %d: %v %v", i, resp, err)
		}
		readAll(t, resp)
	}
	if n := served.Load(); n != 6 {
		t.Errorf("%d requests were answered, want 6", n)
	}
}

// What may have had an effect is never sent twice.
func TestPostIsNotRepeated(t *testing.T) {
	patiently(t, func(time.Duration) error { // no stream is used again that has rested for longer than restLimit
		var served atomic.Int32
		f := newFixture(t, nil)
		s := f.serveRaw(oneShot(&served))
		c := f.client()
		for i, want := range []int{200, 502, 200} {
			resp, err := c.Do(f.request("POST", "/", nil))
			if err != nil || resp.StatusCode != want {
				return fmt.Errorf("request %d: %v %w, want %d", i, resp, err, want)
			}
			readAll(t, resp)
		}
		if n := len(s.opened()); n != 2 {
			return fmt.Errorf("%d streams", n)
		}
		return nil
	})
}

func TestRequestIsRepeatedOnAnotherUpstreamOnce(t *testing.T) {
	f := newFixture(t, nil)
	var mute, good atomic.Int32
	dead := f.serveRaw(func(c net.Conn, br *bufio.Reader) {
		readRequestHead(br)
		mute.Add(1)
	})
	s := f.serveHTTP(func(w http.ResponseWriter, r *http.Request) { good.Add(1) })
	client := f.client()
	for range 20 {
		resp, err := client.Do(f.request("PUT", "/", strings.NewReader("small body")))
		if err != nil || resp.StatusCode != 200 {
			t.Fatal(resp, err)
		}
		readAll(t, resp)
	}
	if mute.Load() == 0 || good.Load() != 20 {
		t.Errorf("%d requests met the mute service, %d were answered", mute.Load(), good.Load())
	}
	f.router.RemoveSession(s)
	mute.Store(0)
	resp, _, err := f.raw("GET / HTTP/1.1\r\nHost: ep1.piko.test\r\n\r\n")
	if err != nil || resp.StatusCode != 502 || resp.Header.Get("Piko-Error") != "PIKO-E4003" || mute.Load() != 1 {
		t.Errorf("%v %v after %d tries", resp, err, mute.Load())
	}
	f.router.RemoveSession(dead)
}

func TestNothingIsRepeatedBeyondTheBudget(t *testing.T) {
	f := newFixture(t, nil)
	f.router.Apply(router.Settings{RetryBudget: 0})
	var tries atomic.Int32
	mute := func(c net.Conn, br *bufio.Reader) {
		readRequestHead(br)
		tries.Add(1)
	}
	f.serveRaw(mute)
	f.serveRaw(mute)
	resp, _, err := f.raw("GET / HTTP/1.1\r\nHost: ep1.piko.test\r\n\r\n")
	if err != nil || resp.StatusCode != 502 || tries.Load() != 1 {
		t.Errorf("%v %v after %d tries", resp, err, tries.Load())
	}
}

func TestRefusalIsSilentWhateverTheMethod(t *testing.T) {
	f := newFixture(t, nil)
	draining := &tcpSession{id: "d", refusal: &tunnel.RefusedError{Code: tunnel.CodeDraining}, closing: make(chan struct{})}
	f.router.Add("ep1", draining, router.UpstreamOptions{Weight: 100, Protocol: tunnel.ProtocolHTTP})
	f.serveHTTP(func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
	client := f.client()
	large := strings.Repeat("x", 1<<20)
	for range 10 {
		resp, err := client.Do(f.request("POST", "/", strings.NewReader(large)))
		if err != nil || resp.StatusCode != 200 || len(readAll(t, resp)) != len(large) {
			t.Fatal(resp, err)
		}
	}
	if len(draining.opened()) == 0 {
		t.Error("the refusing session was never asked")
	}
}

// Only what may be sent twice goes out on a stream that the service may be about to close.
func TestWhatCantBeRepeatedAvoidsRestedStreams(t *testing.T) {
	for _, c := range []struct {
		method string
		length int64
		want   time.Duration
	}{
		{"GET", 0, 0}, {"PUT", 10, 0}, {"DELETE", 0, 0},
		{"POST", 0, restLimit}, {"POST", 10, restLimit}, {"PATCH", 0, restLimit},
		{"PUT", inlineLimit + 1, restLimit}, {"PUT", -1, restLimit},
	} {
		x := &exchange{r: &http.Request{Method: c.method, ContentLength: c.length}}
		switch {
		case c.length > 0:
			x.body = byLength
		case c.length < 0:
			x.body = byChunks
		}
		if got := x.rested(); got != c.want {
			t.Errorf("%s with %d bytes: %v, want %v", c.method, c.length, got, c.want)
		}
	}
}

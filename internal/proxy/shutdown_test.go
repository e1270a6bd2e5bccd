package proxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pikoproxy/piko/internal/router"
)

// What a client sends before it can know that the node is stopping is answered, on a connection that was idle and on one
// that nobody has read from yet. The answer says that it is the last one.
func TestShutdownAnswersWhatIsOnItsWay(t *testing.T) {
	patiently(t, func(time.Duration) error { return onItsWay(t) }) // within lastCall
}

func onItsWay(t *testing.T) error {
	f := newFixture(t, nil)
	f.serveHTTP(func(w http.ResponseWriter, r *http.Request) {})
	const request = "GET / HTTP/1.1\r\nHost: ep1.piko.test\r\n\r\n"
	idle, idleReader := f.dial()
	io.WriteString(idle, request)
	if resp, err := http.ReadResponse(idleReader, nil); err != nil || resp.StatusCode != 200 || resp.Close {
		t.Fatal(resp, err)
	}
	fresh, freshReader := f.dial()
	// The proxy accepts in order: when this one is answered, the one before has been accepted.
	if resp, _, err := f.raw("GET / HTTP/1.1\r\nHost: ep1.piko.test\r\nConnection: close\r\n\r\n"); err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.stopOnce()
	}()
	for told := false; !told; { // until the node is stopping
		resp, _, err := f.raw(request)
		if err != nil {
			t.Fatal(err)
		}
		told = resp.Close
	}
	var failed error
	for name, conn := range map[string]struct {
		net.Conn
		*bufio.Reader
	}{"idle": {idle, idleReader}, "fresh": {fresh, freshReader}} {
		io.WriteString(conn.Conn, request)
		resp, err := http.ReadResponse(conn.Reader, nil)
		if err != nil || resp.StatusCode != 200 || !resp.Close {
			failed = fmt.Errorf("%s: %v %w", name, resp, err)
		} else if _, err := conn.ReadByte(); !errors.Is(err, io.EOF) {
			failed = fmt.Errorf("%s: the connection is not closed: %w", name, err)
		}
	}
	await(t, done, "end of the shutdown")
	return failed
}

// A client that never sends anything does not hold a shutdown up.
func TestShutdownEndsSoonBesideIdleClients(t *testing.T) {
	if onlyNetHTTP {
		return // net/http gives new connections five seconds
	}
	f := newFixture(t, nil)
	c, _ := f.dial()
	idle, br := f.dial()
	io.WriteString(idle, "GET / HTTP/1.1\r\nHost: nobody.piko.test\r\n\r\n")
	if resp, err := http.ReadResponse(br, nil); err != nil || readAll(t, resp) == "" {
		t.Fatal(resp, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	began := time.Now()
	if err := f.server.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > patience/2 {
		t.Errorf("took %v", took)
	}
	if n, err := c.Read(make([]byte, 1)); n > 0 || err == nil {
		t.Error("the connection is open")
	}
}

// A listener that is closed while its connections live on is forgotten with the last of them, which comes soon, as answers
// ask for new connections.
func TestReplacedListenerIsForgotten(t *testing.T) {
	f := newFixture(t, nil)
	f.serveHTTP(func(w http.ResponseWriter, r *http.Request) {})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	over := make(chan error, 1)
	go func() { over <- f.server.Serve(context.Background(), l) }()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	br := bufio.NewReader(c)
	for _, last := range []bool{false, true} {
		if last {
			l.Close()
			if err := await(t, over, "end of Serve"); !errors.Is(err, net.ErrClosed) {
				t.Error(err)
			}
		}
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: ep1.piko.test\r\n\r\n")
		resp, err := http.ReadResponse(br, nil)
		if err != nil || resp.StatusCode != 200 || resp.Close != (last && !onlyNetHTTP) {
			t.Fatal(last, resp, err)
		}
		readAll(t, resp)
	}
	c.Close()
	f.server.retiring.Wait()
	f.server.mu.Lock()
	defer f.server.mu.Unlock()
	if n := len(f.server.fronts); n != 1 {
		t.Errorf("%d listeners are kept, want the one that is served", n)
	}
}

// A node that stops while another one serves the same socket, as systemd keeps it, loses no request, whatever its method,
// on new connections and on old ones.
// A listener may fail in the moment in which the server is shut down, and both end it.
func TestShutdownBesideAListenerThatFails(t *testing.T) {
	routes := router.New(router.Options{})
	for i := range 300 {
		s, err := New(Options{Router: routes})
		if err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan error, 1)
		go func() { served <- s.Serve(t.Context(), l) }()
		for begun := false; !begun; {
			s.mu.Lock()
			begun = len(s.fronts) > 0
			s.mu.Unlock()
			runtime.Gosched()
		}
		l.Close()
		for range i % 30 {
			runtime.Gosched()
		}
		if err := s.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		<-served
	}
}

func TestRestartOnOneSocketLosesNothing(t *testing.T) {
	f := newFixture(t, nil)
	f.serveHTTP(func(w http.ResponseWriter, r *http.Request) {})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	file, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	same, err := net.FileListener(file)
	file.Close()
	if err != nil {
		t.Fatal(err)
	}
	next, err := New(Options{Router: f.router, onlyNetHTTP: onlyNetHTTP})
	if err != nil {
		t.Fatal(err)
	}
	var servers, clients sync.WaitGroup
	servers.Go(func() { _ = f.server.Serve(context.Background(), l) })
	var asked atomic.Int64
	third := make(chan struct{})
	for i := range 30 {
		clients.Go(func() {
			tr := &http.Transport{DisableKeepAlives: i%2 == 0, IdleConnTimeout: lastCall / 3}
			defer tr.CloseIdleConnections()
			client := &http.Client{Transport: tr, Timeout: patience}
			for range 30 {
				r, err := http.NewRequest("POST", "http://"+l.Addr().String()+"/", nil)
				if err != nil {
					t.Error(err)
					return
				}
				r.Host = "ep1.piko.test"
				resp, err := client.Do(r)
				if err != nil {
					t.Error(err)
					return
				}
				if readAll(t, resp); resp.StatusCode != 200 {
					t.Error(resp.Status)
				}
				if asked.Add(1) == 300 {
					close(third)
				}
			}
		})
	}
	await(t, third, "a third of the requests")
	f.stopOnce()
	servers.Go(func() { _ = next.Serve(context.Background(), same) })
	clients.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := next.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	servers.Wait()
}

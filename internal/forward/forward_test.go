package forward

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"go.uber.org/goleak"

	"github.com/pikoproxy/piko"
	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/daemon"
	"github.com/pikoproxy/piko/internal/pikotest/fakenode"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// harness is a forwarder that runs, and the node that it reaches endpoints through.
type harness struct {
	*testing.T
	node  *fakenode.Node
	fwd   *Forwarder
	log   *logBuffer
	stop  context.CancelFunc
	ended chan error // gets what Run returns
}

type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// start runs a forwarder for the endpoint "e" at an address until the test ends.
func start(t *testing.T, address string, change func(*config.Forward)) *harness {
	t.Helper()
	h := &harness{T: t, node: fakenode.Start(t, "n1"), log: &logBuffer{}, ended: make(chan error, 1)}
	c := config.DefaultForward()
	c.Connect.URL = h.node.URL()
	c.DrainTimeout = config.Duration(time.Minute)
	c.Forwards = []config.ForwardEntry{{Listen: config.Address(address), Endpoint: "e"}}
	if change != nil {
		change(&c)
	}
	log := logrus.New()
	log.SetOutput(h.log)
	log.SetLevel(logrus.DebugLevel)
	ready := make(chan struct{})
	var err error
	if h.fwd, err = New(c, Options{Log: log, Ready: func() { close(ready) }}); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	h.stop = stop
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		h.ended <- h.fwd.Run(ctx)
	}()
	t.Cleanup(func() {
		stop()
		<-finished
		if t.Failed() {
			t.Log(h.log.String())
		}
	})
	select {
	case <-ready:
	case <-finished:
		t.Fatalf("the forwarder has ended before it was ready: %v", <-h.ended)
	}
	return h
}

// dial connects to the forward.
func (h *harness) dial() *net.TCPConn {
	h.Helper()
	c, err := net.Dial("tcp", h.fwd.current.Load().forwards[0].ln.Addr().String())
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	return c.(*net.TCPConn)
}

// aborted connects, and wants that to be aborted. The reset may even come before the connect has returned.
func (h *harness) aborted() {
	h.Helper()
	c, err := net.Dial("tcp", h.fwd.current.Load().forwards[0].ln.Addr().String())
	if err != nil {
		return
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	if b, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
		h.Errorf("local client reads %q and then %v", b, err)
	}
}

// offer runs an agent for the endpoint "e" until the test ends.
func (h *harness) offer(handle func(*piko.Conn)) {
	h.Helper()
	client := &piko.Client{URL: h.node.URL(), Connections: 1}
	l, err := client.Listen(h.Context(), "e", piko.WithProtocol(piko.TCP))
	if err != nil {
		h.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() { handle(c.(*piko.Conn)) })
		}
	})
	h.Cleanup(func() {
		_ = client.Close()
		running.Wait()
	})
}

func shout(c *piko.Conn) {
	defer func() { _ = c.Close() }()
	b, err := io.ReadAll(c)
	if err == nil {
		_, _ = c.Write([]byte(strings.ToUpper(string(b))))
	}
}

// ask sends text, ends the direction, and returns what comes back.
func ask(t *testing.T, c interface {
	io.ReadWriter
	CloseWrite() error
}, text string) string {
	t.Helper()
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	timeout := time.After(time.Minute)
	for !condition() {
		select {
		case <-timeout:
			t.Fatalf("waited in vain for: %s", what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func TestForwardHalfClosesBothWays(t *testing.T) {
	h := start(t, "127.0.0.1:0", nil)
	h.offer(shout)
	if got := ask(t, h.dial(), "over and back"); got != "OVER AND BACK" {
		t.Errorf("answer is %q", got)
	}
}

func TestUnixSocketIsForwarded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	h := start(t, "unix:"+path, nil)
	h.offer(shout)
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	if got := ask(t, c.(*net.UnixConn), "x"); got != "X" {
		t.Errorf("answer is %q", got)
	}
}

func TestMissingEndpointIsAnErrorOnTheLocalSide(t *testing.T) {
	h := start(t, "127.0.0.1:0", nil)
	h.aborted()
	for _, want := range []string{"endpoint can't be reached, connection aborted", "endpoint=e", "no available upstreams"} {
		eventually(t, "log with "+want, func() bool { return strings.Contains(h.log.String(), want) })
	}
	h.offer(shout)
	if got := ask(t, h.dial(), "now"); got != "NOW" {
		t.Errorf("answer is %q", got)
	}
}

func TestFloodOfFailuresDoesNotFloodTheLog(t *testing.T) {
	h := start(t, "127.0.0.1:0", nil)
	began := time.Now()
	for range 60 {
		h.aborted()
	}
	took := time.Since(began)
	most := 11 + int(took/(100*time.Millisecond)) // ten at once, and then one in a tenth of a second
	if n := strings.Count(h.log.String(), "connection aborted"); n == 0 || n > most {
		t.Errorf("60 failures in %v give %d lines, want %d at most", took, n, most)
	}
}

func TestBrokenConnectionIsBrokenOnTheOtherSideToo(t *testing.T) {
	h := start(t, "127.0.0.1:0", nil)
	got := make(chan error, 1)
	h.offer(func(c *piko.Conn) {
		b := make([]byte, 1)
		_, _ = io.ReadFull(c, b)
		if b[0] == 's' { // the service breaks
			_ = c.Reset()
			return
		}
		_, err := io.ReadAll(c) // the client breaks
		got <- err
		_ = c.Close()
	})
	c := h.dial()
	_, _ = c.Write([]byte("s"))
	if _, err := io.ReadAll(c); err == nil {
		t.Error("the local client reads a clean end of a broken service")
	}
	c = h.dial()
	_, _ = c.Write([]byte("c"))
	_ = c.SetLinger(0)
	_ = c.Close()
	if err := <-got; err == nil {
		t.Error("the service reads a clean end of a broken client")
	}
}

func TestDrainLetsOpenConnectionsFinish(t *testing.T) {
	h := start(t, "127.0.0.1:0", nil)
	h.offer(shout)
	c := h.dial()
	if _, err := c.Write([]byte("a")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the connection", func() bool { return h.fwd.current.Load().forwards[0].open.Load() == 1 })
	h.stop()
	eventually(t, "the drain", func() bool { return h.fwd.Ready() != nil })
	eventually(t, "a closed listener", func() bool {
		c, err := net.Dial("tcp", h.fwd.current.Load().forwards[0].ln.Addr().String())
		if err == nil {
			_ = c.Close()
		}
		return err != nil
	})
	if got := ask(t, c, "b"); got != "AB" {
		t.Errorf("answer is %q", got)
	}
	if err := <-h.ended; err != nil {
		t.Error(err)
	}
	h.ended <- nil
}

func TestDrainCutsWhatTakesTooLong(t *testing.T) {
	h := start(t, "127.0.0.1:0", func(c *config.Forward) { c.DrainTimeout = config.Duration(100 * time.Millisecond) })
	h.offer(shout)
	c := h.dial()
	eventually(t, "the connection", func() bool { return h.fwd.current.Load().forwards[0].open.Load() == 1 })
	h.stop()
	if b, err := io.ReadAll(c); err == nil {
		t.Errorf("local client reads %q and a clean end", b)
	}
	if err := <-h.ended; err != nil {
		t.Error(err)
	}
	h.ended <- nil
}

func TestListenerThatCannotBeOpenedLeavesNoneOpen(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	var opened []net.Listener
	c := config.DefaultForward()
	c.Admin.Listen = "127.0.0.1:0"
	c.Forwards = []config.ForwardEntry{
		{Listen: "127.0.0.1:0", Endpoint: "free"}, {Listen: config.Address(taken.Addr().String()), Endpoint: "taken"},
	}
	log := logrus.New()
	log.SetOutput(io.Discard)
	f, err := New(c, Options{Log: log, Listen: func(_, address string, _ bool) (net.Listener, error) {
		l, err := net.Listen("tcp", address)
		if err == nil {
			opened = append(opened, l)
		}
		return l, err
	}})
	if err != nil {
		t.Fatal(err)
	}
	err = f.Run(t.Context())
	if _, ok := errors.AsType[*net.OpError](err); !ok || !strings.Contains(err.Error(), `"taken"`) {
		t.Errorf("Run gives %v", err)
	}
	if len(opened) != 2 {
		t.Errorf("%d listeners were opened, want that of the console and one of a forward", len(opened))
	}
	for _, l := range opened { // what answers at its address now may be another process
		_ = l.(*net.TCPListener).SetDeadline(time.Unix(1, 0))
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%v is open: %v", l.Addr(), err)
		}
	}
}

func TestConsoleShowsHowTheForwarderFares(t *testing.T) {
	h := start(t, "127.0.0.1:0", func(c *config.Forward) { c.Admin.Listen = "127.0.0.1:0" })
	h.offer(shout)
	ask(t, h.dial(), "abc")
	client := &http.Client{Timeout: time.Minute}
	defer client.CloseIdleConnections()
	for path, want := range map[string]string{
		"/ready":   "ready",
		"/metrics": `piko_forward_sent_bytes_total{endpoint="e"} 3`,
		"/status":  `"endpoint":"e","open":0`,
	} {
		eventually(t, path, func() bool {
			res, err := client.Get("http://" + h.fwd.console.Addr().String() + path)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(res.Body)
			_ = res.Body.Close()
			return err == nil && res.StatusCode == http.StatusOK && strings.Contains(string(b), want)
		})
	}
}

func TestShortForm(t *testing.T) {
	for _, c := range []struct {
		args   []string
		listen string // empty: makes no sense
		usage  bool
	}{
		{[]string{"3000", "e"}, "127.0.0.1:3000", false},
		{[]string{":3000", "e"}, ":3000", false},
		{[]string{"unix:/run/s", "e"}, "unix:/run/s", false},
		{[]string{"3000"}, "", true},
		{[]string{"3000", "e", "f"}, "", true},
		{[]string{"nowhere", "e"}, "", false},
		{[]string{"3000", "not/a/name"}, "", false},
	} {
		p := Program()
		fs := flag.NewFlagSet("", flag.ContinueOnError)
		p.Flags(fs)
		if err := fs.Parse([]string{"--url", "http://piko.test:8000"}); err != nil {
			t.Fatal(err)
		}
		s, err := p.Load("", c.args)
		_, usage := errors.AsType[*daemon.UsageError](err)
		if (err != nil) != (c.listen == "") || usage != c.usage {
			t.Errorf("%q gives %v", c.args, err)
			continue
		}
		if err != nil {
			continue
		}
		got := s.(daemon.Loaded[config.Forward]).Values
		if len(got.Forwards) != 1 || string(got.Forwards[0].Listen) != c.listen || got.Connect.URL != "http://piko.test:8000" {
			t.Errorf("%q gives %+v", c.args, got.Forwards)
		}
		if err := s.Check(); err != nil {
			t.Errorf("%q: %v", c.args, err)
		}
	}
}

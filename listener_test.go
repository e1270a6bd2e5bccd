package piko_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pikoproxy/piko"
	"github.com/pikoproxy/piko/internal/pikotest/fakenode"
	"github.com/pikoproxy/piko/internal/tunnel"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newClient returns a client of a cluster that ends with the test.
func newClient(t *testing.T, url string) *piko.Client {
	t.Helper()
	c := &piko.Client{URL: url, ProxyURL: url, Logger: slog.New(slog.NewTextHandler(testWriter{t}, nil))}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSuffix(string(b), "\n"))
	return len(b), nil
}

func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func listen(t *testing.T, c *piko.Client, endpoint string, opts ...piko.ListenOption) *piko.Listener {
	t.Helper()
	l, err := c.Listen(soon(t), endpoint, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func open(t *testing.T, n *fakenode.Node, h tunnel.Header) *tunnel.Stream {
	t.Helper()
	st, err := n.Open(soon(t), h)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Reset() })
	patient(t, st)
	return st
}

// patient lets nothing wait on a connection for longer than a minute.
func patient(t *testing.T, c net.Conn) {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
}

// connect opens a stream that a listener accepts, and returns both ends.
func connect(t *testing.T, n *fakenode.Node, l *piko.Listener) (client *tunnel.Stream, service *piko.Conn) {
	t.Helper()
	opened := make(chan *tunnel.Stream, 1)
	go func() {
		defer close(opened)
		st, err := n.Open(soon(t), tunnel.Header{Endpoint: l.Addr().String()})
		if err != nil {
			t.Error(err)
			_ = l.Close() // nothing will come
			return
		}
		opened <- st
	}()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	st, ok := <-opened
	if !ok {
		t.FailNow()
	}
	t.Cleanup(func() { _, _ = st.Reset(), c.(*piko.Conn).Reset() })
	patient(t, st)
	patient(t, c)
	return st, c.(*piko.Conn)
}

// eventually waits until condition is true, for things that nobody announces.
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

// echo answers each connection with what it sent, upper-cased, after the client has ended its direction.
func echo(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			b, err := io.ReadAll(c)
			if err == nil {
				_, _ = c.Write([]byte(strings.ToUpper(string(b))))
			}
			_ = c.Close()
		}()
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

func TestListenerIsRoutableWhenListenReturns(t *testing.T) {
	n := fakenode.Start(t, "n1")
	l := listen(t, newClient(t, n.URL()), "My-Endpoint", piko.WithProtocol(piko.TCP), piko.WithWeight(7))
	go echo(l)
	if got, _ := n.Listens("my-endpoint"); got.Protocol != "tcp" || got.Weight != 7 {
		t.Errorf("node was told %+v", got)
	}
	if got := l.Nodes(); len(got) != 1 || got[0] != "n1" {
		t.Errorf("Nodes gives %q", got)
	}
	if l.Addr().String() != "my-endpoint" || l.Addr().Network() != "piko" {
		t.Errorf("Addr gives %v", l.Addr())
	}
	if got := ask(t, open(t, n, tunnel.Header{Endpoint: "my-endpoint", Protocol: "tcp"}), "hello"); got != "HELLO" {
		t.Errorf("answer is %q", got)
	}
}

func TestAcceptedConnKnowsTheClient(t *testing.T) {
	n := fakenode.Start(t, "n1")
	l := listen(t, newClient(t, n.URL()), "e")
	for _, client := range []string{"192.0.2.1:4321", "[2001:db8::1]:80", "somebody", ""} {
		opened := make(chan error, 1)
		go func() {
			_, err := n.Open(soon(t), tunnel.Header{Endpoint: "e", Protocol: "http", Client: client})
			if err != nil {
				_ = l.Close() // nothing will come
			}
			opened <- err
		}()
		conn, err := l.Accept()
		if err := errors.Join(err, <-opened); err != nil {
			t.Fatal(err)
		}
		if got := conn.RemoteAddr().String(); got != client {
			t.Errorf("client %q: RemoteAddr is %q", client, got)
		}
		if _, ok := conn.RemoteAddr().(*net.TCPAddr); ok != strings.Contains(client, ":") {
			t.Errorf("client %q: RemoteAddr is a %T", client, conn.RemoteAddr())
		}
		if got := conn.(*piko.Conn).Protocol(); got != "http" {
			t.Errorf("protocol is %q", got)
		}
		_ = conn.(*piko.Conn).Reset()
	}
}

func TestRefusedConnectionReachesTheNodeAsRefusal(t *testing.T) {
	n := fakenode.Start(t, "n1")
	l := listen(t, newClient(t, n.URL()), "e")
	go func() {
		in, err := l.AcceptIncoming()
		if err != nil {
			t.Error(err)
			return
		}
		if in.Endpoint() != "e" || in.Trace() != "00-trace" {
			t.Errorf("header is %q, %q", in.Endpoint(), in.Trace())
		}
		_ = in.Refuse(piko.CodeServiceUnreachable, "it sleeps")
	}()
	_, err := n.Open(soon(t), tunnel.Header{Endpoint: "e", Trace: "00-trace"})
	var refused *tunnel.RefusedError
	if !errors.As(err, &refused) || refused.Code != tunnel.CodeServiceUnreachable || refused.Reason != "it sleeps" {
		t.Errorf("Open gives %v", err)
	}
}

func TestStreamForAnEndpointThatIsNotOfferedIsRefused(t *testing.T) {
	n := fakenode.Start(t, "n1")
	c := newClient(t, n.URL())
	listen(t, c, "a")
	for _, endpoint := range []string{"b", "", "A"} {
		_, err := n.OpenAnyway(soon(t), tunnel.Header{Endpoint: endpoint})
		if r, ok := errors.AsType[*tunnel.RefusedError](err); !ok || r.Code != tunnel.CodeNotListening {
			t.Errorf("Open for %q gives %v", endpoint, err)
		}
	}
}

func TestFullListenerRefusesMore(t *testing.T) {
	n := fakenode.Start(t, "n1")
	l := listen(t, newClient(t, n.URL()), "e")
	ctx, cancel := context.WithCancel(soon(t))
	defer cancel()
	results := make(chan error)
	const most, more = 1024, 5 // most is how many may wait
	for range most + more {
		go func() {
			st, err := n.Open(ctx, tunnel.Header{Endpoint: "e"})
			if err == nil {
				_ = st.Reset()
			}
			results <- err
		}()
	}
	for range more {
		err := <-results
		if r, ok := errors.AsType[*tunnel.RefusedError](err); !ok || r.Code != tunnel.CodeOverloaded {
			t.Fatalf("Open gives %v", err)
		}
	}
	go func() {
		for {
			if in, err := l.AcceptIncoming(); err != nil {
				return
			} else if err := in.Refuse(piko.CodeDraining, ""); err != nil {
				t.Error(err)
			}
		}
	}()
	for range most {
		err := <-results
		if r, ok := errors.AsType[*tunnel.RefusedError](err); !ok || r.Code != piko.CodeDraining {
			t.Fatalf("Open gives %v", err)
		}
	}
}

func TestClosedListenerRefusesWhatWaitsAndKeepsWhatRuns(t *testing.T) {
	n := fakenode.Start(t, "n1")
	l := listen(t, newClient(t, n.URL()), "e")
	client, conn := connect(t, n, l)
	refused := make(chan error, 1)
	go func() {
		_, err := n.Open(soon(t), tunnel.Header{Endpoint: "e"})
		refused <- err
	}()
	in, err := l.AcceptIncoming() // proves that the second stream has arrived; it is put off until after Close
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	_ = in.Refuse(piko.CodeOverloaded, "")
	var r *tunnel.RefusedError
	if err := <-refused; !errors.As(err, &r) {
		t.Errorf("Open gives %v", err)
	}
	n.AwaitListen("e", false)
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept gives %v", err)
	}
	go func() {
		_, _ = conn.Write([]byte("still here"))
		_ = conn.Close()
	}()
	if b, err := io.ReadAll(client); err != nil || string(b) != "still here" {
		t.Errorf("client reads %q, %v", b, err)
	}
}

func TestEndpointCanBeListenedOnAgain(t *testing.T) {
	n := fakenode.Start(t, "n1")
	c := newClient(t, n.URL())
	for range 20 {
		l := listen(t, c, "e")
		if _, err := c.Listen(soon(t), "E"); err == nil {
			t.Fatal("one client listens twice on one endpoint")
		}
		_ = l.Close()
	}
	l := listen(t, c, "e")
	go echo(l)
	n.AwaitListen("e", true)
	if got := ask(t, open(t, n, tunnel.Header{Endpoint: "e"}), "x"); got != "X" {
		t.Errorf("answer is %q", got)
	}
}

func TestListenSaysWhyItCannot(t *testing.T) {
	for name, c := range map[string]struct {
		node      func(*fakenode.Node)
		client    func(*piko.Client)
		endpoint  string
		impatient bool // gives up after the first attempt
		want      func(error) bool
	}{
		"bad name":     {endpoint: "no/slash", want: func(err error) bool { return err != nil }},
		"bad url":      {client: func(c *piko.Client) { c.URL = "localhost:8001" }, want: func(err error) bool { return err != nil }},
		"token in url": {client: func(c *piko.Client) { c.URL = "http://u:p@h" }, want: func(err error) bool { return !strings.Contains(err.Error(), "p@") }},
		"unauthorized": {node: func(n *fakenode.Node) { n.SetStatus(http.StatusUnauthorized) },
			want: func(err error) bool {
				s, ok := errors.AsType[*piko.StatusError](err)
				return ok && s.Status == 401 && s.Code == "PIKO-E0000" && s.Message == "told to answer so" &&
					errors.Is(err, piko.ErrUnauthorized)
			}},
		"not permitted": {node: func(n *fakenode.Node) { n.Refuse("e", tunnel.CodeNotPermitted) },
			want: func(err error) bool {
				r, ok := errors.AsType[*piko.RefusedError](err)
				return ok && r.Endpoint == "e" && r.Code == tunnel.CodeNotPermitted && errors.Is(err, piko.ErrUnauthorized)
			}},
		"no token": {client: func(c *piko.Client) { c.TokenSource = piko.TokenFile("/nonexistent") },
			want: func(err error) bool { return strings.Contains(err.Error(), "/nonexistent") }},
		"draining for ever": {node: func(n *fakenode.Node) { n.SetStatus(http.StatusServiceUnavailable) }, impatient: true,
			want: func(err error) bool {
				s, ok := errors.AsType[*piko.StatusError](err)
				return ok && s.Status == 503 && errors.Is(err, context.Canceled)
			}},
		"nobody there": {client: func(c *piko.Client) { c.URL = "http://127.0.0.1:1" }, impatient: true,
			want: func(err error) bool {
				_, ok := errors.AsType[*net.OpError](err)
				return ok && errors.Is(err, context.Canceled)
			}},
	} {
		t.Run(name, func(t *testing.T) {
			n := fakenode.Start(t, "n1")
			client := newClient(t, n.URL())
			if c.node != nil {
				c.node(n)
			}
			if c.client != nil {
				c.client(client)
			}
			if c.endpoint == "" {
				c.endpoint = "e"
			}
			ctx, giveUp := context.WithCancel(soon(t))
			defer giveUp()
			if c.impatient {
				client.Connections = 1
				var attempts atomic.Int64
				client.TokenSource = func(context.Context) (string, error) {
					if attempts.Add(1) == 2 {
						giveUp() // it is known by now how the first one ended
					}
					return "", nil
				}
			}
			_, err := client.Listen(ctx, c.endpoint)
			if err == nil || !c.want(err) {
				t.Errorf("Listen gives %v", err)
			}
		})
	}
}

func TestListenTriesAgainAtOnceAfterARefusedToken(t *testing.T) {
	n := fakenode.Start(t, "n1")
	c := newClient(t, n.URL())
	c.Connections = 1
	n.SetStatus(http.StatusForbidden)
	start := time.Now()
	for range 12 { // in vain, after which pauses have become so long that all of them take the better part of a minute
		if _, err := c.Listen(soon(t), "e"); !errors.Is(err, piko.ErrUnauthorized) {
			t.Fatalf("Listen gives %v", err)
		}
	}
	n.SetStatus(0)
	listen(t, c, "e")
	if d := time.Since(start); d > 20*time.Second {
		t.Errorf("it all took %v, so Listen waited for old pauses", d)
	}
}

package piko_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/pikoproxy/piko"
	"github.com/pikoproxy/piko/internal/pikotest/fakenode"
	"github.com/pikoproxy/piko/internal/tunnel"
)

func TestDialReachesAnEndpointAndHalfCloses(t *testing.T) {
	n := fakenode.Start(t, "n1")
	c := newClient(t, n.URL())
	go echo(listen(t, c, "e", piko.WithProtocol(piko.TCP)))
	conn, err := c.Dial(soon(t), "E")
	if err != nil {
		t.Fatal(err)
	}
	patient(t, conn)
	if got := ask(t, conn, "over and back"); got != "OVER AND BACK" {
		t.Errorf("answer is %q", got)
	}
	if conn.RemoteAddr().String() != "e" || conn.Protocol() != "tcp" {
		t.Errorf("RemoteAddr is %v, Protocol %q", conn.RemoteAddr(), conn.Protocol())
	}
	_ = conn.Close()
}

func TestResetOfADialedConnectionReachesTheService(t *testing.T) {
	n := fakenode.Start(t, "n1")
	c := newClient(t, n.URL())
	l := listen(t, c, "e")
	accepted := make(chan net.Conn)
	go func() {
		defer close(accepted)
		conn, err := l.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		accepted <- conn
	}()
	conn, err := c.Dial(soon(t), "e")
	if err != nil {
		t.Fatal(err)
	}
	service, ok := <-accepted
	if !ok {
		t.FailNow()
	}
	patient(t, service)
	if _, err := conn.Write([]byte("half of it")); err != nil {
		t.Fatal(err)
	}
	_ = conn.Reset()
	if b, err := io.ReadAll(service); err == nil {
		t.Errorf("service reads %q and a clean end", b)
	}
	_ = service.Close()
}

func TestDialSaysWhyItCannot(t *testing.T) {
	foreign := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "<html>no backend</html>", http.StatusBadGateway)
	}))
	t.Cleanup(foreign.Close)
	for name, c := range map[string]struct {
		prepare func(*fakenode.Node, *piko.Client)
		want    func(error) bool
	}{
		"nobody listens": {func(*fakenode.Node, *piko.Client) {}, func(err error) bool {
			return errors.Is(err, piko.ErrNoUpstream) && !errors.Is(err, piko.ErrUnauthorized) &&
				strings.Contains(err.Error(), `"e"`) && strings.Contains(err.Error(), "no available upstreams")
		}},
		"a balancer without a node": {func(_ *fakenode.Node, c *piko.Client) { c.ProxyURL = foreign.URL }, func(err error) bool {
			s, ok := errors.AsType[*piko.StatusError](err)
			return ok && s.Status == 502 && s.Message == "" && !errors.Is(err, piko.ErrNoUpstream)
		}},
		"bad token": {func(n *fakenode.Node, _ *piko.Client) { n.SetStatus(http.StatusUnauthorized) }, func(err error) bool {
			return errors.Is(err, piko.ErrUnauthorized)
		}},
		"token with a line break": {func(_ *fakenode.Node, c *piko.Client) { c.Token = "a\r\nb" }, func(err error) bool {
			return !strings.Contains(err.Error(), "\n")
		}},
		"no token": {func(_ *fakenode.Node, c *piko.Client) {
			c.TokenSource = func(context.Context) (string, error) { return "", io.ErrUnexpectedEOF }
		}, func(err error) bool { return errors.Is(err, io.ErrUnexpectedEOF) }},
		"nobody there": {func(_ *fakenode.Node, c *piko.Client) { c.ProxyURL = "http://127.0.0.1:1" }, func(err error) bool {
			_, ok := errors.AsType[*net.OpError](err)
			return ok
		}},
		"bad url": {func(_ *fakenode.Node, c *piko.Client) { c.ProxyURL = "ftp://x" }, func(err error) bool {
			return strings.Contains(err.Error(), "ftp")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			n := fakenode.Start(t, "n1")
			client := newClient(t, n.URL())
			c.prepare(n, client)
			conn, err := client.Dial(soon(t), "e")
			if err == nil {
				_ = conn.Close()
			}
			if err == nil || !c.want(err) {
				t.Errorf("Dial gives %v", err)
			}
		})
	}
}

func TestDialPresentsTokenAndTenant(t *testing.T) {
	got := make(chan http.Header, 1)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got <- r.Header
		w.WriteHeader(http.StatusTeapot)
	}))
	t.Cleanup(s.Close)
	c := &piko.Client{ProxyURL: s.URL + "/prefix", Token: "secret", TenantID: "acme"}
	if _, err := c.Dial(soon(t), "e"); err == nil {
		t.Error("a teapot is taken for a node")
	}
	h := <-got
	if h.Get("Authorization") != "Bearer secret" || h.Get("X-Piko-Tenant-Id") != "acme" {
		t.Errorf("headers are %v", h)
	}
}

// serve runs a TCP service and returns its address.
func serve(t *testing.T, handle func(net.Conn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go handle(c)
		}
	}()
	return ln.Addr().String()
}

func TestListenAndForwardBringsConnectionsToTheService(t *testing.T) {
	n := fakenode.Start(t, "n1")
	c := newClient(t, n.URL())
	address := serve(t, func(c net.Conn) {
		b, _ := io.ReadAll(c)
		_, _ = c.Write([]byte(strings.ToUpper(string(b))))
		_ = c.Close()
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.ListenAndForward(ctx, "e", address, piko.WithProtocol(piko.TCP)) }()
	n.AwaitListen("e", true)
	if got := ask(t, open(t, n, tunnel.Header{Endpoint: "e"}), "x"); got != "X" {
		t.Errorf("answer is %q", got)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("ListenAndForward gives %v", err)
	}
	n.AwaitListen("e", false)
}

func TestListenAndForwardRefusesWhenTheServiceIsDead(t *testing.T) {
	n := fakenode.Start(t, "n1")
	c := newClient(t, n.URL())
	ended := make(chan error, 1)
	go func() { ended <- c.ListenAndForward(t.Context(), "e", "unix:/nonexistent/socket") }()
	n.AwaitListen("e", true)
	_, err := n.Open(soon(t), tunnel.Header{Endpoint: "e"})
	if r, ok := errors.AsType[*tunnel.RefusedError](err); !ok || r.Code != piko.CodeServiceUnreachable {
		t.Errorf("Open gives %v", err)
	}
	_ = c.Close()
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("ListenAndForward gives %v", err)
	}
	for _, address := range []string{"", "3000", "unix:", "host"} {
		if err := (&piko.Client{}).ListenAndForward(t.Context(), "e", address); err == nil {
			t.Errorf("address %q is taken", address)
		}
	}
}

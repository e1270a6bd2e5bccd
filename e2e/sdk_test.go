package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pikoproxy/piko"
)

// program is what somebody writes who uses the SDK: a client of the node, closed when the test is over.
func (n *node) program(t testing.TB) *piko.Client {
	c := &piko.Client{URL: "http://" + n.upstream, ProxyURL: "http://" + n.proxy}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// soon bounds what should take no time.
func soon(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), settle)
	t.Cleanup(cancel)
	return ctx
}

func offerSDK(t testing.TB, c *piko.Client, endpoint string, o ...piko.ListenOption) *piko.Listener {
	t.Helper()
	l, err := c.Listen(soon(t), endpoint, o...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func TestSDKListenerIsRoutableWhenListenReturns(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{Proxy: `endpoint_wait = "0s"`})
	program, client := n.program(t), n.client(t)
	for i := range 20 {
		word := fmt.Sprint("sdk-", i)
		l := offerSDK(t, program, word)
		serveOn(t, &http.Server{Handler: say(word), ReadHeaderTimeout: time.Minute}, l)
		if a := get(t, client, at(word, "/")); a.body != word {
			t.Fatalf("the first request after Listen: status %d %s: want it answered", a.StatusCode, a.body)
		}
	}
	if _, err := program.Listen(soon(t), "sdk-0"); err == nil {
		t.Error("one client listens twice on one endpoint: want an error")
	}
}

func TestSDKListenerOutlivesTheNode(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{})
	l := offerSDK(t, n.program(t), "e")
	serveOn(t, &http.Server{Handler: say("ok"), ReadHeaderTimeout: time.Minute}, l)
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		n.signal(t, sig)
		n.exit(t, settle)
		n.run(t)
		n.awaitEndpoint(t, "e", -1)
		if a := get(t, n.client(t), at("e", "/")); a.body != "ok" {
			t.Errorf("after %s: status %d %s", sig, a.StatusCode, a.body)
		}
	}
}

func TestSDKListenerThatIsClosedOffersNothing(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{Proxy: `endpoint_wait = "0s"`})
	program := n.program(t)
	l, kept := offerSDK(t, program, "closed"), offerSDK(t, program, "kept")
	serveOn(t, &http.Server{Handler: say("ok"), ReadHeaderTimeout: time.Minute}, kept)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	n.awaitEndpoint(t, "closed", 0)
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept after close: %v: want net.ErrClosed", err)
	}
	if a := get(t, n.client(t), at("kept", "/")); a.body != "ok" {
		t.Errorf("the other listener: status %d %s", a.StatusCode, a.body)
	}
}

func TestSDKDialReachesAListener(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{Proxy: `endpoint_wait = "0s"`})
	l := offerSDK(t, n.program(t), "e", piko.WithProtocol(piko.TCP))
	var handlers sync.WaitGroup
	handlers.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			handlers.Go(func() {
				b, err := io.ReadAll(c)
				_, _ = fmt.Fprintf(c, "heard %s %v", b, err)
				_ = c.Close()
			})
		}
	})
	t.Cleanup(handlers.Wait)
	t.Cleanup(func() { _ = l.Close() })
	program := n.program(t)
	c, err := program.Dial(soon(t), "e")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	mustWrite(t, c, "a question")
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(c); err != nil || string(b) != "heard a question <nil>" {
		t.Errorf("read %q, %v: want the answer to all that was said", b, err)
	}
	if _, err := program.Dial(soon(t), "absent"); !errors.Is(err, piko.ErrNoUpstream) {
		t.Errorf("dial to nobody: %v: want ErrNoUpstream", err)
	}
	slow, err := program.Dial(soon(t), "e")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = slow.Close() }()
	if err := slow.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	var timeout net.Error
	if _, err := slow.Read(make([]byte, 1)); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("read past the deadline: %v: want a timeout", err)
	}
}

func TestSDKListenAndForward(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{})
	program := n.program(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	service := serveTCP(t, echo)
	go func() { done <- program.ListenAndForward(ctx, "e", service, piko.WithProtocol(piko.TCP)) }()
	n.awaitEndpoint(t, "e", -1)
	c, err := program.Dial(soon(t), "e")
	if err != nil {
		t.Fatal(err)
	}
	mustWrite(t, c, "ping")
	mustRead(t, c, "ping")
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	cancel()
	if err := wait(t, "ListenAndForward returns", settle, done); !errors.Is(err, context.Canceled) {
		t.Errorf("it returned %v: want the end of its context", err)
	}
}

func TestSDKShutdownFinishesWhatRuns(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{})
	program := n.program(t)
	l := offerSDK(t, program, "e")
	began := make(chan struct{}, 1)
	serveOn(t, &http.Server{Handler: slow(began), ReadHeaderTimeout: time.Minute}, l)
	done := inFlight(t, n.client(t), at("e", "/late"))
	wait(t, "the service has the request", settle, began)
	// What is idle between requests is not running, so this ends soon after the request.
	if err := program.Shutdown(soon(t)); err != nil {
		t.Errorf("shutdown: %v", err)
	}
	if err := wait(t, "the request ends", settle, done); err != nil {
		t.Errorf("the request that ran: %v: want it completed", err)
	}
}

func TestSDKTokens(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{Upstream: withKey, Proxy: withKey})
	program := n.program(t)
	program.Token = sign(t, claims{Endpoints: []string{"mine"}})
	offerSDK(t, program, "mine", piko.WithProtocol(piko.TCP))
	var refused *piko.RefusedError
	if _, err := program.Listen(soon(t), "other"); !errors.As(err, &refused) && !errors.Is(err, piko.ErrUnauthorized) {
		t.Errorf("listen on an endpoint the token does not name: %v: want it refused", err)
	}
	if _, err := program.Dial(soon(t), "other"); !errors.Is(err, piko.ErrUnauthorized) {
		t.Errorf("dial an endpoint the token does not name: %v: want ErrUnauthorized", err)
	}
	stranger := n.program(t)
	if _, err := stranger.Listen(soon(t), "e"); !errors.Is(err, piko.ErrUnauthorized) {
		t.Errorf("listen without a token: %v: want ErrUnauthorized", err)
	}
	if _, err := stranger.Dial(soon(t), "mine"); !errors.Is(err, piko.ErrUnauthorized) {
		t.Errorf("dial without a token: %v: want ErrUnauthorized", err)
	}
}

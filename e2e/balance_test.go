package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

func TestRequestsAreSharedOut(t *testing.T) {
	parallel(t)
	n := startNode(t, nodeOptions{})
	var counts [3]atomic.Int32
	for i := range counts {
		startAgent(t, n, agentOptions{}, offer{Endpoint: "e", Addr: serve(t, func(http.ResponseWriter, *http.Request) {
			counts[i].Add(1)
		})})
		n.awaitEndpoint(t, "e", i+1)
	}
	c := n.client(t)
	if errs := load(t, 8, 3000, func() error {
		a, err := try(c, request(t, http.MethodGet, at("e", "/"), nil))
		if err == nil && a.StatusCode != 200 {
			err = fmt.Errorf("status %d: %s", a.StatusCode, a.body)
		}
		return err
	}); len(errs) > 0 {
		t.Errorf("%d of 3000 requests failed: %v", len(errs), errs[0])
	}
	for i := range counts {
		if got := counts[i].Load(); got < 300 {
			t.Errorf("agent %d got %d of 3000 requests: want about a third, and a tenth at least", i, got)
		}
	}
}

// TestDeadServiceBesideALivingOne is not parallel: it is about the first second.
func TestDeadServiceBesideALivingOne(t *testing.T) {
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		t.Run(method, func(t *testing.T) {
			n := startNode(t, nodeOptions{})
			startAgent(t, n, agentOptions{}, offer{Endpoint: "e", Addr: serve(t, say("alive"))})
			startAgent(t, n, agentOptions{}, offer{Endpoint: "e", Addr: freeAddress(t)})
			n.awaitEndpoint(t, "e", 2)
			c := n.client(t)
			began := time.Now()
			var failed, late atomic.Int32
			load(t, 2, 1000, func() error {
				a, err := try(c, request(t, method, at("e", "/"), strings.NewReader("body")))
				if err != nil || a.body != "alive" {
					failed.Add(1)
					if time.Since(began) > bound(time.Second) {
						late.Add(1)
					}
				}
				return nil
			})
			// A service that refuses connections took nothing, so another can always answer instead.
			if failed.Load() > 0 || late.Load() > 0 {
				t.Errorf("%d of 1000 requests failed, %d of them after the first second: want none",
					failed.Load(), late.Load())
			}
		})
	}
}

// TestServiceThatDiesUnderLoad is not parallel: it is about the first second.
func TestServiceThatDiesUnderLoad(t *testing.T) {
	n := startNode(t, nodeOptions{})
	startAgent(t, n, agentOptions{}, offer{Endpoint: "e", Addr: serve(t, say("alive"))})
	l := listen(t)
	mortal := &http.Server{Handler: say("alive"), ReadHeaderTimeout: time.Minute}
	serveOn(t, mortal, l)
	startAgent(t, n, agentOptions{}, offer{Endpoint: "e", Addr: l.Addr().String()})
	n.awaitEndpoint(t, "e", 2)
	c := n.client(t)
	var done, failed, late atomic.Int32
	var died atomic.Int64
	var last atomic.Value
	load(t, 4, 2000, func() error {
		if done.Add(1) == 500 {
			died.Store(time.Now().UnixNano())
			return mortal.Close()
		}
		a, err := try(c, request(t, http.MethodGet, at("e", "/"), nil))
		if err == nil && a.StatusCode != 200 {
			err = errors.New(a.body)
		}
		if err != nil {
			failed.Add(1)
			last.Store(err.Error())
			if at := died.Load(); at != 0 && time.Now().UnixNano()-at > int64(bound(time.Second)) {
				late.Add(1)
			}
		}
		return nil
	})
	if failed.Load() > 8 || late.Load() > 0 {
		t.Errorf("%d of 2000 requests failed, %d of them later than a second after the death (%v): want only those it had",
			failed.Load(), late.Load(), last.Load())
	}
}

func TestRequestWaitsForAnEndpointThatIsComingBack(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{Proxy: `endpoint_wait = "1m"`})
	service := serve(t, say("back"))
	agent := startAgent(t, n, agentOptions{}, offer{Endpoint: "e", Addr: service})
	c := n.client(t)
	if a := get(t, c, at("e", "/")); a.body != "back" {
		t.Fatalf("status %d %s", a.StatusCode, a.body)
	}
	agent.signal(t, syscall.SIGTERM)
	if code := agent.exit(t, settle); code != 0 {
		t.Errorf("agent exits %d: want 0", code)
	}
	n.awaitEndpoint(t, "e", 0)
	answered := make(chan answer, 1)
	go func() {
		a, err := try(c, request(t, http.MethodGet, at("e", "/"), nil))
		if err != nil {
			t.Errorf("request: %v", err)
		}
		answered <- a
	}()
	startAgent(t, n, agentOptions{}, offer{Endpoint: "e", Addr: service})
	if a := wait(t, "the held request is answered", settle, answered); a.body != "back" {
		t.Errorf("the held request got %q: want the answer of the agent that came", a.body)
	}
}

func TestTCPGoesToAnotherAgentWhenAServiceRefuses(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{})
	startAgent(t, n, agentOptions{}, offer{Endpoint: "e", Addr: serveTCP(t, echo), Protocol: "tcp"})
	startAgent(t, n, agentOptions{}, offer{Endpoint: "e", Addr: freeAddress(t), Protocol: "tcp"})
	n.awaitEndpoint(t, "e", 2)
	address, _ := startForward(t, n, "e")
	for range 30 {
		c := connect(t, address)
		mustWrite(t, c, "ping")
		mustRead(t, c, "ping")
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSilentAgentIsFound takes 25 s, nearly all of them waiting.
func TestSilentAgentIsFound(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{})
	service := serve(t, say("alive"))
	frozen := startAgent(t, n, agentOptions{}, offer{Endpoint: "e", Addr: service})
	frozen.signal(t, syscall.SIGSTOP)
	await(t, "the session of an agent that stands still is gone", bound(27*time.Second), func() error {
		have, err := n.endpoints()
		if err == nil && have["e"] != 0 {
			err = fmt.Errorf("%d sessions", have["e"])
		}
		return err
	})
	frozen.signal(t, syscall.SIGCONT)
	n.awaitEndpoint(t, "e", -1)
	if a := get(t, n.client(t), at("e", "/")); a.body != "alive" {
		t.Errorf("after it woke: status %d %s", a.StatusCode, a.body)
	}
}

// TestSilentNodeIsFound takes 25 s, nearly all of them waiting.
func TestSilentNodeIsFound(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{})
	admin := freeAddress(t)
	agent := startAgent(t, n, agentOptions{More: fmt.Sprintf("[admin]\nlisten = %q", admin)},
		offer{Endpoint: "e", Addr: serve(t, say("alive"))})
	agent.awaitReady(t, admin)
	n.signal(t, syscall.SIGSTOP)
	await(t, "the agent knows that its node stands still", bound(27*time.Second), func() error {
		status, _, err := fetch("http://" + admin + "/ready")
		if err == nil && status != http.StatusServiceUnavailable {
			err = fmt.Errorf("status %d", status)
		}
		return err
	})
	n.signal(t, syscall.SIGCONT)
	n.awaitEndpoint(t, "e", 1)
	if a := get(t, n.client(t), at("e", "/")); a.body != "alive" {
		t.Errorf("after it woke: status %d %s", a.StatusCode, a.body)
	}
}

func TestConnectionsToTheServiceAreReused(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{})
	l := listen(t)
	var opened atomic.Int32
	s := &http.Server{Handler: say("ok"), ReadHeaderTimeout: time.Minute, ConnState: func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			opened.Add(1)
		}
	}}
	serveOn(t, s, l)
	startAgent(t, n, agentOptions{}, offer{Endpoint: "e", Addr: l.Addr().String()})
	c := n.client(t)
	for range 200 {
		if a := get(t, c, at("e", "/")); a.body != "ok" {
			t.Fatalf("status %d %s", a.StatusCode, a.body)
		}
	}
	if got := opened.Load(); got > 50 {
		t.Errorf("200 requests, one after another, took %d connections to the service: want them reused", got)
	}
	// A service that closes idle connections between requests must not be seen by clients.
	for i := range 20 {
		s.SetKeepAlivesEnabled(false)
		s.SetKeepAlivesEnabled(true)
		if a := get(t, c, at("e", "/")); a.body != "ok" {
			t.Fatalf("request %d after the service closed its idle connections: status %d %s", i, a.StatusCode, a.body)
		}
	}
}

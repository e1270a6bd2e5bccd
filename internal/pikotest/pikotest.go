// Package pikotest runs whole nodes, agents and forwarders inside a test, each in one call, for tests that need more
// than the package they are about. Everything listens on 127.0.0.1, on ports that were free, and ends with the test.
//
//	n := pikotest.StartNode(t)
//	pikotest.StartAgent(t, n, pikotest.HTTP("web", pikotest.Serve(t, handler)))
//	resp, err := n.Client().Get("http://web.piko.test/")
//
// What goes wrong in a part fails the test, and what the parts log is shown then. All methods may be called from any
// goroutine. For a node that misbehaves on purpose there is package fakenode; for real processes, the module in e2e.
package pikotest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/pikoproxy/piko"
	"github.com/pikoproxy/piko/internal/agent"
	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/forward"
	"github.com/pikoproxy/piko/internal/server"
)

// Patience is how long the helpers wait for what should happen soon before they fail the test.
const Patience = 40 * time.Second

// Node is a running node.
type Node struct {
	// Server is the node itself.
	Server *server.Server
	// Proxy, Upstream and Admin are the addresses of its listeners, as host:port.
	Proxy, Upstream, Admin string

	t    testing.TB
	part *part
}

// StartNode runs a node with the default settings, except that it never holds a request for an endpoint that is not
// there, and drains for two seconds at most. Each edit may change the settings further.
func StartNode(t testing.TB, edits ...func(*config.Pikod)) *Node {
	t.Helper()
	c := config.DefaultPikod()
	c.Proxy.Listen, c.Upstream.Listen, c.Admin.Listen = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	c.Proxy.EndpointWait = 0
	c.DrainTimeout = config.Duration(2 * time.Second)
	for _, edit := range edits {
		edit(&c)
	}
	ready := make(chan struct{})
	s, err := server.New(c, server.Options{Log: logger(t), Version: "test", Ready: func() { close(ready) }})
	if err != nil {
		t.Fatalf("node: %v", err)
	}
	if err := s.Listen(); err != nil {
		t.Fatalf("node: %v", err)
	}
	n := &Node{Server: s, t: t, Proxy: address(s, "proxy"), Upstream: address(s, "upstream"), Admin: address(s, "admin")}
	n.part = run(t, "node", s.Run)
	n.part.await(t, ready)
	return n
}

// Stop drains the node and waits until nothing of it is left. It happens at the end of the test anyway.
func (n *Node) Stop() { n.part.stop() }

// AwaitEndpoint waits until the endpoint is routable at the node. It asks the admin listener, so that must be on.
func (n *Node) AwaitEndpoint(endpoint string) {
	n.t.Helper()
	client := &http.Client{Timeout: Patience, Transport: &http.Transport{DisableKeepAlives: true}}
	Eventually(n.t, "endpoint "+endpoint+" is routable", func() error {
		resp, err := client.Get("http://" + n.Admin + "/status/upstream/endpoints")
		if err != nil {
			return err
		}
		defer func() { _ = resp.Body.Close() }()
		have := map[string]int{}
		if err := json.NewDecoder(io.LimitReader(resp.Body, 16<<20)).Decode(&have); err != nil {
			return err
		}
		if have[strings.ToLower(endpoint)] == 0 {
			return fmt.Errorf("the node has %d others", len(have))
		}
		return nil
	})
}

// Client gives an HTTP client that takes every host to the node's proxy listener. Its connections are closed with the
// test.
func (n *Node) Client() *http.Client {
	transport := &http.Transport{
		DisableCompression: true,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, network, n.Proxy)
		},
	}
	n.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: time.Minute}
}

// SDK gives a client of the public SDK that speaks to the node. It is closed with the test.
func (n *Node) SDK() *piko.Client {
	c := &piko.Client{URL: "http://" + n.Upstream, ProxyURL: "http://" + n.Proxy}
	n.t.Cleanup(func() { _ = c.Close() })
	return c
}

// HTTP is a listener that leads an endpoint to an HTTP service.
func HTTP(endpoint, address string) config.Listener { return offer(endpoint, address, "http") }

// TCP is a listener that leads an endpoint to a TCP service.
func TCP(endpoint, address string) config.Listener { return offer(endpoint, address, "tcp") }

func offer(endpoint, address, protocol string) config.Listener {
	l := config.DefaultListener()
	l.Endpoint, l.Addr, l.Protocol = endpoint, config.ServiceAddress(address), protocol
	return l
}

// Agent is a running agent.
type Agent struct {
	// Agent is the agent itself.
	Agent *agent.Agent

	part *part
}

// StartAgent runs an agent that offers the listeners through the node, and waits until all of them are routable.
func StartAgent(t testing.TB, n *Node, listeners ...config.Listener) *Agent {
	t.Helper()
	c := config.DefaultAgent()
	c.DrainTimeout = config.Duration(2 * time.Second)
	c.Connect.URL = "http://" + n.Upstream
	c.Listeners = listeners
	a, err := agent.New(c, agent.Options{Log: logger(t)})
	if err != nil {
		t.Fatalf("agent: %v", err)
	}
	p := run(t, "agent", a.Run)
	for _, l := range listeners {
		n.AwaitEndpoint(l.Endpoint)
	}
	return &Agent{Agent: a, part: p}
}

// Stop drains the agent and waits until nothing of it is left. It happens at the end of the test anyway.
func (a *Agent) Stop() { a.part.stop() }

// StartForward runs a forwarder that leads to the endpoint and gives the address at which it listens.
func StartForward(t testing.TB, n *Node, endpoint string) string {
	t.Helper()
	// The forwarder tells nobody which port it was given, so the socket is opened here.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := config.DefaultForward()
	c.DrainTimeout = config.Duration(2 * time.Second)
	c.Connect.URL = "http://" + n.Proxy
	c.Forwards = []config.ForwardEntry{{Listen: config.Address(l.Addr().String()), Endpoint: endpoint}}
	ready := make(chan struct{})
	f, err := forward.New(c, forward.Options{
		Log: logger(t), Version: "test", Ready: func() { close(ready) },
		Listen: func(string, string, bool) (net.Listener, error) { return l, nil },
	})
	if err != nil {
		t.Fatalf("forward: %v", err)
	}
	run(t, "forward", f.Run).await(t, ready)
	return l.Addr().String()
}

// Serve runs an HTTP service and gives its address.
func Serve(t testing.TB, h http.Handler) string {
	t.Helper()
	l := listen(t)
	s := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l)
	}()
	t.Cleanup(func() {
		_ = s.Close()
		<-done
	})
	return l.Addr().String()
}

// ServeTCP runs a TCP service that gives each connection to f and closes it afterwards. At the end of the test it waits
// for every f, so f must return when its connection breaks.
func ServeTCP(t testing.TB, f func(*net.TCPConn)) string {
	t.Helper()
	l := listen(t)
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer func() { _ = c.Close() }()
				f(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		all.Wait()
	})
	return l.Addr().String()
}

// Echo is a TCP service that says what it hears, and ends when the client has said all.
func Echo(c *net.TCPConn) { _, _ = io.Copy(c, c) }

// Eventually calls check until it gives nil. The test fails with its last error when that takes longer than Patience.
func Eventually(t testing.TB, what string, check func() error) {
	t.Helper()
	deadline := time.After(Patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: not within %s: %s", what, Patience, err)
		}
	}
}

// part is something that runs until it is stopped.
type part struct {
	name   string
	cancel context.CancelFunc
	done   chan struct{} // closed when it has ended
}

func run(t testing.TB, name string, f func(context.Context) error) *part {
	ctx, cancel := context.WithCancel(context.Background())
	p := &part{name: name, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		if err := f(ctx); err != nil {
			t.Errorf("%s: %s", name, err)
		}
	}()
	t.Cleanup(p.stop)
	return p
}

func (p *part) stop() {
	p.cancel()
	<-p.done
}

// await waits until ready is closed.
func (p *part) await(t testing.TB, ready <-chan struct{}) {
	t.Helper()
	select {
	case <-ready:
	case <-p.done:
		t.Fatalf("the %s has ended before it was ready", p.name)
	case <-time.After(Patience):
		t.Fatalf("the %s is not ready after %s", p.name, Patience)
	}
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func address(s *server.Server, name string) string {
	if a := s.Addr(name); a != nil {
		return a.String()
	}
	return ""
}

// logger writes to the log of the test.
func logger(t testing.TB) *logrus.Logger {
	log := logrus.New()
	log.SetLevel(logrus.DebugLevel)
	log.SetOutput(lines{t})
	return log
}

type lines struct{ t testing.TB }

// Write shows one line, or more, with the test.
func (l lines) Write(b []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// Package fakenode is a node as seen by an agent or a forwarder, for tests of these: it has the real tunnel and nothing
// behind it. A test can make it refuse, drain, vanish and come back, and opens streams through it as a client would.
//
// All methods may be called from any goroutine. What goes wrong in the node itself fails the test.
package fakenode

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pikoproxy/piko/internal/pikotest/ports"
	"github.com/pikoproxy/piko/internal/relay"
	"github.com/pikoproxy/piko/internal/tunnel"
	"github.com/pikoproxy/piko/internal/websocket"
)

// patience is how long the Await methods wait before they fail the test.
const patience = 40 * time.Second

// Node is one fake node. Its agents' and clients' ports are one.
type Node struct {
	ID   string
	Zone string // told to agents; to be set before they come

	t        testing.TB
	ctx      context.Context
	port     *ports.Port    // kept while the node is killed, too
	handlers sync.WaitGroup // of the server

	mu       sync.Mutex // guards the following
	server   *http.Server
	killed   bool // a handshake that ends now comes too late
	sessions map[*tunnel.Session]map[string]tunnel.Listen
	refuse   map[string]string // endpoint -> code
	status   int               // of handshakes; 0: they succeed
	tokens   []string          // presented, in order
	dials    int               // handshakes tried
	drains   int               // agents' drain messages
	changed  chan struct{}     // closed and replaced at each change
}

// Start runs a node until the test ends.
func Start(t testing.TB, id string) *Node {
	n := New(context.WithoutCancel(t.Context()), id)
	n.t = t
	t.Cleanup(func() {
		n.Kill()
		n.port.Release()
	})
	return n
}

// New runs a node until Kill is called, for examples, which have no test. The Await methods need one.
func New(ctx context.Context, id string) *Node {
	port, err := ports.Keep()
	if err != nil {
		panic(fmt.Sprintf("node %s: %v", id, err))
	}
	n := &Node{ID: id, ctx: ctx, port: port,
		sessions: map[*tunnel.Session]map[string]tunnel.Listen{}, refuse: map[string]string{}, changed: make(chan struct{})}
	n.Restart()
	return n
}

// URL is where agents and clients connect.
func (n *Node) URL() string { return "http://" + n.port.Addr }

// Restart makes a node that was killed listen again, at the same address.
func (n *Node) Restart() {
	ln, err := net.Listen("tcp", n.port.Addr)
	if err != nil {
		panic(fmt.Sprintf("node %s: %v", n.ID, err))
	}
	server := &http.Server{Handler: n, ReadHeaderTimeout: patience}
	n.mu.Lock()
	n.server, n.killed = server, false
	n.mu.Unlock()
	n.handlers.Go(func() { _ = server.Serve(ln) })
}

// Kill makes the node vanish like a killed process: its sockets are reset.
func (n *Node) Kill() {
	n.mu.Lock()
	server := n.server
	n.killed = true
	n.mu.Unlock()
	_ = server.Close()
	for _, s := range n.all() {
		_ = s.CloseNow(errors.New("killed"))
	}
	n.handlers.Wait()
}

// ServeHTTP serves agents and clients.
func (n *Node) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n.mu.Lock()
	if n.killed { // by way of a balancer, or too late for Kill to wait for it
		n.mu.Unlock()
		panic(http.ErrAbortHandler)
	}
	n.handlers.Add(1)
	defer n.handlers.Done()
	n.dials++
	n.tokens = append(n.tokens, strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "))
	status := n.status
	n.notifyLocked()
	n.mu.Unlock()
	if status != 0 {
		w.Header().Set("Piko-Error", "PIKO-E0000")
		w.WriteHeader(status)
		_, _ = w.Write([]byte(`{"error":"told to answer so"}`))
		return
	}
	if endpoint, ok := strings.CutPrefix(r.URL.Path, "/_piko/v1/tcp/"); ok {
		n.serveTCP(w, r, endpoint)
		return
	}
	s, err := tunnel.AcceptNative(w, r, tunnel.NodeOptions{NodeID: n.ID, Zone: n.Zone, Handler: n, MaxStreams: 8192, OpenTimeout: patience})
	if err != nil {
		return
	}
	killed := false
	n.update(func() {
		killed = n.killed
		if n.sessions[s] == nil {
			n.sessions[s] = map[string]tunnel.Listen{}
		}
	})
	if killed {
		_ = s.CloseNow(errors.New("killed"))
	}
	n.handlers.Go(func() {
		<-s.Done()
		n.update(func() { delete(n.sessions, s) })
	})
}

func (n *Node) serveTCP(w http.ResponseWriter, r *http.Request, endpoint string) {
	st, err := n.Open(n.ctx, tunnel.Header{Endpoint: endpoint, Protocol: tunnel.ProtocolTCP, Client: r.RemoteAddr})
	if err != nil {
		w.Header().Set("Piko-Error", "PIKO-E3001")
		w.WriteHeader(http.StatusBadGateway)
		_, _ = w.Write([]byte(`{"error":"no available upstreams"}`))
		return
	}
	ws, err := websocket.Accept(w, r, websocket.AcceptOptions{})
	if err != nil {
		_ = st.Reset()
		return
	}
	_, _ = relay.Relay(n.ctx, ws, st, relay.Options{})
}

// Listen implements tunnel.Handler.
func (n *Node) Listen(s *tunnel.Session, l tunnel.Listen) {
	n.mu.Lock()
	code := n.refuse[l.Endpoint]
	ended := false
	select {
	case <-s.Done():
		ended = true // and forgotten, perhaps
	default:
	}
	if code == "" && !ended {
		if n.sessions[s] == nil {
			n.sessions[s] = map[string]tunnel.Listen{}
		}
		n.sessions[s][l.Endpoint] = l
	}
	n.notifyLocked()
	n.mu.Unlock()
	if code != "" {
		_ = s.Refuse(l.Endpoint, code, "told to refuse")
		return
	}
	_ = s.Listening(l.Endpoint)
}

// Unlisten implements tunnel.Handler.
func (n *Node) Unlisten(s *tunnel.Session, endpoint string) {
	n.update(func() { delete(n.sessions[s], endpoint) })
}

// Token implements tunnel.Handler.
func (n *Node) Token(_ *tunnel.Session, bearer string) {
	n.update(func() { n.tokens = append(n.tokens, bearer) })
}

// Drain implements tunnel.Handler. What the agent offers on the session is not routed any more, as with a real node.
func (n *Node) Drain(s *tunnel.Session, _ tunnel.Drain) {
	n.update(func() {
		n.drains++
		clear(n.sessions[s])
	})
}

// DrainAgents asks all agents to go elsewhere.
func (n *Node) DrainAgents(deadline time.Time) {
	for _, s := range n.all() {
		_ = s.Drain("told to drain", deadline)
	}
}

// Refuse makes the node refuse an endpoint from now on; an empty code accepts it again.
func (n *Node) Refuse(endpoint, code string) { n.update(func() { n.refuse[endpoint] = code }) }

// TakeBack refuses an endpoint that agents are listening on.
func (n *Node) TakeBack(endpoint, code string) {
	n.Refuse(endpoint, code)
	for _, s := range n.all() {
		n.update(func() { delete(n.sessions[s], endpoint) })
		_ = s.Refuse(endpoint, code, "taken back")
	}
}

// SetStatus makes the node answer handshakes with a status; 0 lets them succeed again.
func (n *Node) SetStatus(status int) { n.update(func() { n.status = status }) }

// Open opens a stream for an endpoint on any session that listens on it.
func (n *Node) Open(ctx context.Context, h tunnel.Header) (*tunnel.Stream, error) {
	n.mu.Lock()
	var session *tunnel.Session
	for s, listens := range n.sessions {
		if _, ok := listens[h.Endpoint]; ok {
			session = s
		}
	}
	n.mu.Unlock()
	if session == nil {
		return nil, errors.New("nobody listens on " + h.Endpoint)
	}
	return session.Open(ctx, h)
}

// OpenAnyway opens a stream on any session, whether it listens on the endpoint or not. Sessions that listen on something
// come first: an agent ends those at once with which it has met the same node again.
func (n *Node) OpenAnyway(ctx context.Context, h tunnel.Header) (*tunnel.Stream, error) {
	n.mu.Lock()
	var session *tunnel.Session
	for s, listens := range n.sessions {
		if session == nil || len(listens) > 0 {
			session = s
		}
	}
	n.mu.Unlock()
	if session == nil {
		return nil, errors.New("no session")
	}
	return session.Open(ctx, h)
}

// Sessions returns the number of sessions.
func (n *Node) Sessions() int { return len(n.all()) }

// Dials returns how many connections were made, the refused ones included.
func (n *Node) Dials() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dials
}

// Drains returns how many agents have announced that they stop.
func (n *Node) Drains() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.drains
}

// Tokens returns the bearer tokens that were presented, in order.
func (n *Node) Tokens() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.tokens)
}

// Listens returns what a session listens on an endpoint with, if one does.
func (n *Node) Listens(endpoint string) (tunnel.Listen, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, listens := range n.sessions {
		if l, ok := listens[endpoint]; ok {
			return l, true
		}
	}
	return tunnel.Listen{}, false
}

// Await waits until condition is true, and looks again at each change of the node.
func (n *Node) Await(what string, condition func() bool) {
	n.t.Helper()
	timeout := time.After(patience)
	for {
		n.mu.Lock()
		changed := n.changed
		n.mu.Unlock()
		if condition() {
			return
		}
		select {
		case <-changed:
		case <-timeout:
			n.t.Fatalf("node %s: waited %v for: %s", n.ID, patience, what)
		}
	}
}

// AwaitListen waits until an endpoint is listened on, or is not any more.
func (n *Node) AwaitListen(endpoint string, want bool) {
	n.t.Helper()
	n.Await("listen on "+endpoint, func() bool {
		_, is := n.Listens(endpoint)
		return is == want
	})
}

func (n *Node) all() []*tunnel.Session {
	n.mu.Lock()
	defer n.mu.Unlock()
	var all []*tunnel.Session
	for s := range n.sessions {
		all = append(all, s)
	}
	return all
}

func (n *Node) update(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
	n.notifyLocked()
}

func (n *Node) notifyLocked() {
	close(n.changed)
	n.changed = make(chan struct{})
}

// Balancer leads each new connection to the next of several nodes.
type Balancer struct {
	URL string

	mu   sync.Mutex
	next int
}

// Balance starts a balancer that runs until the test ends.
func Balance(t testing.TB, nodes ...*Node) *Balancer {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &Balancer{URL: "http://" + ln.Addr().String()}
	server := &http.Server{ReadHeaderTimeout: patience, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.mu.Lock()
		n := nodes[b.next%len(nodes)]
		b.next++
		b.mu.Unlock()
		n.ServeHTTP(w, r)
	})}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(ln) })
	t.Cleanup(func() {
		_ = server.Close()
		serving.Wait()
	})
	return b
}

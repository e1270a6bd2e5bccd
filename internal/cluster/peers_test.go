package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"go.uber.org/goleak"

	"github.com/pikoproxy/piko/internal/cluster"
	"github.com/pikoproxy/piko/internal/pikotest/ports"
	"github.com/pikoproxy/piko/internal/tunnel"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 40 * time.Second

// member is a node in this process: real sockets, real TLS, and a table that the test fills.
type member struct {
	*cluster.Peers
	t     *testing.T
	node  cluster.Node
	local *cluster.Local
	table *cluster.Table
	stop  func()

	mu   sync.Mutex
	open func(ctx context.Context, peer string, h tunnel.Header) (cluster.Conn, error)
}

// newMember runs a node until the end of the test.
func newMember(t *testing.T, id, incarnation, name string, keys *keys) *member {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return newMemberOn(t, l, id, incarnation, name, keys)
}

func newMemberOn(t *testing.T, l net.Listener, id, incarnation, name string, keys *keys) *member {
	t.Helper()
	m := &member{
		t: t, local: cluster.NewLocal(), table: cluster.NewTable(),
		node: cluster.Node{ID: id, Incarnation: incarnation, Addr: l.Addr().String(), State: cluster.Up},
	}
	log := logrus.New()
	log.SetOutput(io.Discard)
	var err error
	m.Peers, err = cluster.NewPeers(cluster.Options{
		Node: m.node, Cluster: name, Local: m.local, Table: m.table, Server: keys.server, Client: keys.client,
		Open: m.openLocal, Sessions: func() int { return 7 }, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var wg sync.WaitGroup
	wg.Go(func() { _ = m.Run(ctx) })
	wg.Go(func() {
		if err := m.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("serve: %v", err)
		}
	})
	m.stop = func() { cancel(); wg.Wait() }
	t.Cleanup(m.stop)
	return m
}

func (m *member) openLocal(ctx context.Context, peer string, h tunnel.Header) (cluster.Conn, error) {
	m.mu.Lock()
	open := m.open
	m.mu.Unlock()
	if open == nil {
		return nil, &tunnel.RefusedError{Code: tunnel.CodeNotListening, Reason: "nobody"}
	}
	return open(ctx, peer, h)
}

func (m *member) answer(open func(context.Context, string, tunnel.Header) (cluster.Conn, error)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.open = open
}

// meet tells a node of others, as the directory would.
func (m *member) meet(others ...*member) {
	for _, o := range others {
		m.table.Meet(o.node)
	}
}

func introduce(all ...*member) {
	for _, a := range all {
		for _, b := range all {
			if a != b {
				a.meet(b)
			}
		}
	}
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(patience)
	for !f() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("not in time: %s", what)
		}
	}
}

func (m *member) remote(o *member) *cluster.Remote {
	m.t.Helper()
	r, ok := m.table.Node(o.node.ID)
	if !ok {
		m.t.Fatalf("%s does not know %s", m.node.ID, o.node.ID)
	}
	return r
}

// sees waits until m knows that o holds just these keys.
func (m *member) sees(o *member, want map[string]int) {
	m.t.Helper()
	what := fmt.Sprintf("%s sees %.200s at %s", m.node.ID, fmt.Sprint(want), o.node.ID)
	eventually(m.t, what, func() bool {
		keys, _ := m.table.Size(o.node.ID) // to copy many all the time would hold up what is waited for
		return keys == len(want) && maps.Equal(m.table.Weights(o.node.ID), want)
	})
}

// known asks once whether the others have what a node holds now, which may take them two seconds.
func (m *member) known() (all bool) {
	m.t.Helper()
	answer := make(chan bool, 1)
	m.WhenKnown(func(known bool) { answer <- known })
	select {
	case all = <-answer:
	case <-time.After(patience):
		m.t.Fatal("nobody called back")
	}
	return all
}

// service is what an agent would be: a socket pair whose far end is echoed.
func service(t *testing.T) func(context.Context, string, tunnel.Header) (cluster.Conn, error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				_, err := io.Copy(c, c)
				if err == nil {
					_, err = io.WriteString(c, "!")
				}
				if err != nil {
					_ = c.(*net.TCPConn).SetLinger(0)
				}
				_ = c.Close()
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	return func(ctx context.Context, _ string, _ tunnel.Header) (cluster.Conn, error) {
		var d net.Dialer
		c, err := d.DialContext(ctx, "tcp", l.Addr().String())
		if err != nil {
			return nil, err
		}
		return socket{c.(*net.TCPConn)}, nil
	}
}

// openAt opens a stream at another node, on which nothing waits for longer than a test does. A request that comes before the
// first session waits for that, but only for a second.
func (m *member) openAt(o *member, h tunnel.Header) (st *tunnel.Stream, err error) {
	m.t.Helper()
	eventually(m.t, "a session with "+o.node.ID, func() bool {
		st, err = m.Peer(m.remote(o)).Open(m.t.Context(), h)
		return !errors.Is(err, tunnel.ErrSessionClosed)
	})
	if err == nil {
		err = st.SetDeadline(time.Now().Add(patience))
	}
	return st, err
}

type socket struct{ *net.TCPConn }

func (s socket) Reset() error {
	_ = s.SetLinger(0)
	return s.Close()
}

func TestWhatANodeHoldsReachesTheOthers(t *testing.T) {
	k := newKeys(t)
	a, b, c := newMember(t, "a", "1", "piko", k), newMember(t, "b", "1", "piko", k), newMember(t, "c", "1", "piko", k)
	a.local.Add("before", 2)
	introduce(a, b, c)
	b.sees(a, map[string]int{"before": 2})
	a.local.Add("e", 3)
	eventually(t, "the others know", a.known)
	for _, m := range []*member{b, c} {
		if got := m.table.Weights("a"); !maps.Equal(got, map[string]int{"before": 2, "e": 3}) {
			t.Errorf("%s was said to know, and has %v", m.node.ID, got)
		}
	}
	a.local.Add("before", -2)
	c.sees(a, map[string]int{"e": 3})
	eventually(t, "the number of sessions", func() bool { return b.remote(a).Sessions() == 7 })
	a.SetState(cluster.Draining)
	eventually(t, "the state", func() bool { return b.remote(a).Standing() == cluster.Leaving })
}

// A snapshot of many keys takes many messages, and so does one big change.
func TestManyKeys(t *testing.T) {
	k := newKeys(t)
	a, b := newMember(t, "a", "1", "piko", k), newMember(t, "b", "1", "piko", k)
	want := map[string]int{}
	add := func(n int) {
		for range n {
			key := fmt.Sprintf("tenant/endpoint-%d-%s", len(want), strings.Repeat("x", 60))
			want[key] = 1
			a.local.Add(key, 1)
		}
	}
	add(5000)
	introduce(a, b)
	b.sees(a, want)
	add(5000)
	b.sees(a, want)
}

// The directory says who exists. What an unknown node pushes waits until it is known.
func TestAStrangerIsHeardOnceTheDirectoryKnowsIt(t *testing.T) {
	k := newKeys(t)
	a, b := newMember(t, "a", "1", "piko", k), newMember(t, "b", "1", "piko", k)
	a.local.Add("e", 1)
	a.meet(b)
	eventually(t, "a reaches b", func() bool { return a.Probe(t.Context(), b.node.Addr, "1") == nil })
	if n := b.table.Nodes(); len(n) != 0 {
		t.Errorf("b has met %v by itself", n)
	}
	b.meet(a)
	b.sees(a, map[string]int{"e": 1})
}

func TestStreamsReachTheOtherNodesAgents(t *testing.T) {
	k := newKeys(t)
	a, b := newMember(t, "a", "1", "piko", k), newMember(t, "b", "1", "piko", k)
	introduce(a, b)
	var header tunnel.Header
	serve := service(t)
	b.answer(func(ctx context.Context, peer string, h tunnel.Header) (cluster.Conn, error) {
		if peer != "a" {
			t.Errorf("the stream came from %q", peer)
		}
		header = h
		return serve(ctx, peer, h)
	})
	want := tunnel.Header{Endpoint: "t/e", Protocol: tunnel.ProtocolTCP, Client: "192.0.2.1:5", Trace: "00-1"}
	st, err := a.openAt(b, want)
	if err != nil {
		t.Fatal(err)
	}
	if header != want {
		t.Errorf("header = %+v, want %+v", header, want)
	}
	text := strings.Repeat("half-close passes through. ", 10_000)
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := io.WriteString(st, text)
		if err := errors.Join(err, st.CloseWrite()); err != nil {
			t.Errorf("write: %v", err)
		}
	})
	got, err := io.ReadAll(st)
	wg.Wait()
	if err != nil || string(got) != text+"!" {
		t.Errorf("read %d bytes and %v, want %d", len(got), err, len(text)+1)
	}
	_ = st.Close()
}

func TestRefusalsAndResetsPassThrough(t *testing.T) {
	k := newKeys(t)
	a, b := newMember(t, "a", "1", "piko", k), newMember(t, "b", "1", "piko", k)
	introduce(a, b)
	open := func() (*tunnel.Stream, error) {
		return a.openAt(b, tunnel.Header{Endpoint: "e", Protocol: tunnel.ProtocolTCP})
	}
	if _, err := open(); !refusedWith(err, tunnel.CodeNotListening) {
		t.Errorf("error = %v, want the refusal of the far node", err)
	}
	b.answer(func(ctx context.Context, _ string, _ tunnel.Header) (cluster.Conn, error) {
		<-ctx.Done() // an agent that does not answer
		return nil, ctx.Err()
	})
	attempts := 0
	eventually(t, "a refusal in time, which is 0.2 s before a gives up", func() bool {
		attempts++
		_, err := open()
		return refusedWith(err, tunnel.CodeServiceUnreachable)
	})
	if d := a.remote(b).Doubt(); d != "" && attempts == 1 {
		t.Errorf("the node counts as %s because of its agent", d)
	}
	var kept cluster.Conn
	serve := service(t)
	b.answer(func(ctx context.Context, p string, h tunnel.Header) (cluster.Conn, error) {
		c, err := serve(ctx, p, h)
		kept = c
		return c, err
	})
	st, err := open()
	if err != nil {
		t.Fatal(err)
	}
	_ = kept.Reset()
	if _, err := io.ReadAll(st); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a stream that broke at the far end ends with %v, want it broken off", err)
	}
	_ = st.Close()
}

func refusedWith(err error, code string) bool {
	r, ok := errors.AsType[*tunnel.RefusedError](err)
	return ok && r.Code == code
}

func TestADeadNodeIsDownAndComesBack(t *testing.T) {
	k := newKeys(t)
	port, err := ports.Keep()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(port.Release)
	l, err := net.Listen("tcp", port.Addr)
	if err != nil {
		t.Fatal(err)
	}
	a, b := newMember(t, "a", "1", "piko", k), newMemberOn(t, l, "b", "1", "piko", k)
	introduce(a, b)
	b.local.Add("e", 1)
	a.sees(b, map[string]int{"e": 1})
	remote := a.remote(b)
	b.stop()
	eventually(t, "b is down", func() bool { return remote.Doubt() == cluster.Down })
	if _, err := a.Peer(remote).Open(t.Context(), tunnel.Header{Endpoint: "e"}); !errors.Is(err, tunnel.ErrSessionClosed) {
		t.Errorf("error = %v, want that there is no session", err)
	}
	if a.Probe(t.Context(), b.node.Addr, "1") == nil {
		t.Error("a dead node answered")
	}
	if !a.known() {
		t.Error("a node that is down was waited for")
	}
	if l, err = net.Listen("tcp", b.node.Addr); err != nil {
		t.Fatal(err)
	}
	again := newMemberOn(t, l, "b", "2", "piko", k)
	if a.Probe(t.Context(), b.node.Addr, "1") == nil {
		t.Error("another incarnation passed for the old one")
	}
	if err := a.Probe(t.Context(), b.node.Addr, "2"); err != nil {
		t.Errorf("probe: %v", err)
	}
	again.local.Add("f", 1)
	introduce(a, again)
	a.sees(again, map[string]int{"f": 1})
	eventually(t, "b is back, and in no doubt", func() bool { return a.remote(again).Doubt() == "" })
}

func TestNobodyElseGetsIn(t *testing.T) {
	k := newKeys(t)
	a := newMember(t, "a", "1", "piko", k)
	a.local.Add("e", 1)
	strangers := map[string]*member{
		"another secret":  newMember(t, "x", "1", "piko", newKeys(t)),
		"another cluster": newMember(t, "y", "1", "other", k),
	}
	for name, s := range strangers {
		if err := s.Probe(t.Context(), a.node.Addr, "1"); err == nil {
			t.Errorf("%s: a node answered", name)
		}
	}
}

// Streams that run are not cut by a node that stops, and new ones are refused meanwhile.
func TestShutdownWaitsForStreams(t *testing.T) {
	k := newKeys(t)
	a, b := newMember(t, "a", "1", "piko", k), newMember(t, "b", "1", "piko", k)
	introduce(a, b)
	b.answer(service(t))
	peer := a.Peer(a.remote(b))
	st, err := a.openAt(b, tunnel.Header{Endpoint: "e", Protocol: tunnel.ProtocolTCP})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan int, 1)
	go func() { ended <- b.Shutdown(context.WithoutCancel(t.Context())) }()
	eventually(t, "new streams are refused", func() bool {
		st, err := peer.Open(t.Context(), tunnel.Header{Endpoint: "e", Protocol: tunnel.ProtocolTCP})
		if err == nil {
			_ = st.Reset()
		}
		return err != nil
	})
	if _, err := io.WriteString(st, "x"); err != nil {
		t.Errorf("write on the stream that runs: %v", err)
	}
	_ = st.CloseWrite()
	if got, err := io.ReadAll(st); err != nil || string(got) != "x!" {
		t.Errorf("the stream that ran ended with %q, %v", got, err)
	}
	_ = st.Close()
	if n := <-ended; n != 0 {
		t.Errorf("%d sessions were cut", n)
	}
}

func TestANodeFindsThatAnotherOfItsNameLives(t *testing.T) {
	k := newKeys(t)
	living, twin := newMember(t, "a", "a1", "piko", k), newMember(t, "a", "a2", "piko", k)
	if err := twin.Probe(t.Context(), living.node.Addr, "a1"); err != nil {
		t.Errorf("the one that lives is taken for dead: %v", err)
	}
	if err := twin.Probe(t.Context(), living.node.Addr, "a0"); err == nil {
		t.Error("a former life of it is taken for alive")
	}
}

package router_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pikoproxy/piko/internal/cluster"
	"github.com/pikoproxy/piko/internal/router"
	"github.com/pikoproxy/piko/internal/tunnel"
)

// others are nodes that a test makes up.
type others struct {
	*cluster.Table
	mu       sync.Mutex
	sessions map[string]*session
	seq      uint64
}

func newOthers() *others { return &others{Table: cluster.NewTable(), sessions: map[string]*session{}} }

func (o *others) Session(r *cluster.Remote) router.Session { return o.session(r.Node().ID) }

func (o *others) session(id string) *session {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.sessions[id] == nil {
		o.sessions[id] = newSession(id)
	}
	return o.sessions[id]
}

// hold makes a node hold just these keys.
func (o *others) hold(id string, weights map[string]int) *cluster.Remote {
	return o.holdIn(id, "", weights)
}

func (o *others) holdIn(id, zone string, weights map[string]int) *cluster.Remote {
	r := o.Meet(cluster.Node{ID: id, Incarnation: "1", State: cluster.Up, Zone: zone})
	o.seq++
	o.Replace(id, "1", o.seq, weights)
	return r
}

// with returns a router among the nodes, told of all that happens to them.
func (o *others) with(s router.Settings, zone string) *router.Router {
	r := router.New(router.Options{Remotes: o, Settings: s, Zone: zone})
	o.OnHeld(r.Held)
	o.OnLost(r.Lost)
	o.OnTouched(r.Touched)
	o.OnNodes(r.NodesChanged)
	return r
}

func TestRequestsSpreadOverNodesByWhatTheyHold(t *testing.T) {
	o := newOthers()
	r := o.with(router.Settings{}, "")
	r.Add("e", newSession("local"), router.UpstreamOptions{})
	o.hold("n2", map[string]int{"e": 9})
	if got := shares(t, r, tcpRequest("e"), 2000); got["n2"] < 0.87 || got["n2"] > 0.93 {
		t.Errorf("the node with nine of ten sessions got %.2f of the requests", got["n2"])
	}
	o.hold("n2", map[string]int{"e": 1})
	o.hold("n3", map[string]int{"e": 2})
	if got := shares(t, r, tcpRequest("e"), 2000); got["n3"] < 0.45 || got["n3"] > 0.55 {
		t.Errorf("shares = %v, want half for n3", got)
	}
	if x, _ := r.Explain("e"); len(x.Upstreams) != 3 || !x.Upstreams[1].Remote {
		t.Errorf("explanation has %+v", x.Upstreams)
	}
}

// The key with its tenant goes to the node, and the endpoint alone to an agent.
func TestANodeIsToldTheKey(t *testing.T) {
	o := newOthers()
	r := o.with(router.Settings{}, "")
	o.hold("n2", map[string]int{"t/e": 1})
	req := tcpRequest("e")
	req.Key = "t/e"
	defer end(open(t, r, req))
	if h := o.session("n2").conn(t, 0).header; h.Endpoint != "t/e" {
		t.Errorf("the node was asked for %q", h.Endpoint)
	}
	local := newSession("local")
	r.Add("t/e", local, router.UpstreamOptions{})
	s, err := r.OpenLocal(t.Context(), "n9", tunnel.Header{Endpoint: "t/e", Protocol: tunnel.ProtocolTCP})
	if err != nil {
		t.Fatal(err)
	}
	defer end(s)
	if h := local.conn(t, 0).header; h.Endpoint != "e" {
		t.Errorf("the agent was asked for %q", h.Endpoint)
	}
}

func TestNodesThatGoComeAfterThoseThatStay(t *testing.T) {
	o := newOthers()
	r := o.with(router.Settings{}, "")
	good, drains, orphan, down := o.hold("good", map[string]int{"e": 1}), o.hold("drains", map[string]int{"e": 50}),
		o.hold("orphan", map[string]int{"e": 50}), o.hold("down", map[string]int{"e": 50})
	o.SetDraining("drains", "1")
	orphan.SetOrphan(true)
	down.SetDown(true)
	for _, want := range []string{"good", "drains", "orphan"} {
		if got := shares(t, r, tcpRequest("e"), 30); got[want] < 0.999 {
			t.Errorf("shares = %v, want all for %s", got, want)
		}
		map[string]*cluster.Remote{"good": good, "drains": drains, "orphan": orphan}[want].SetDown(true)
	}
	_, err := r.Open(t.Context(), tcpRequest("e"))
	wantError(t, err, router.ErrNoUpstream)
	drains.SetDown(false)
	if got := sessionOf(t, r, tcpRequest("e")); got != "drains" {
		t.Errorf("the request went to %s", got)
	}
}

func TestANearNodeIsPreferredUntilItIsBusier(t *testing.T) {
	o := newOthers()
	r := o.with(router.Settings{}, "z1")
	o.holdIn("near", "z1", map[string]int{"e": 10})
	o.holdIn("far", "z2", map[string]int{"e": 10})
	if got := shares(t, r, tcpRequest("e"), 100); got["near"] < 0.999 {
		t.Errorf("shares = %v, want all for the near one", got)
	}
	held := map[string]int{}
	for range 100 {
		s := open(t, r, tcpRequest("e"))
		defer end(s)
		held[s.Upstream().Session().ID()]++
	}
	if held["far"] < 25 || held["far"] > 45 {
		t.Errorf("with 100 streams open the nodes have %v, want 60 to 75 near", held)
	}
}

// One stream used for all requests would lead them all to the same agent of the far node.
func TestStreamsToANodeAreUsedInTurn(t *testing.T) {
	o := newOthers()
	r := o.with(router.Settings{}, "")
	o.hold("n2", map[string]int{"e": 9})
	used := map[router.Conn]int{}
	for range 450 {
		s := open(t, r, httpRequest("e"))
		used[s.Conn()]++
		s.Release()
	}
	if len(used) != 9 {
		t.Errorf("%d streams were used, want one for each of the nine sessions", len(used))
	}
	for _, n := range used {
		if n != 50 {
			t.Errorf("a stream was used %d times of 450, want 50", n)
		}
	}
	o.hold("n2", map[string]int{"e": 1000}) // more than there will be streams
	clear(used)
	for range 10_000 {
		s := open(t, r, httpRequest("e"))
		used[s.Conn()]++
		s.Release()
	}
	if n := len(used); n < 100 || n > 140 {
		t.Errorf("10,000 exchanges used %d streams, want about 100 each", n)
	}
}

func TestStreamsOfPeersSpreadEvenly(t *testing.T) {
	r := newOthers().with(router.Settings{}, "")
	sessions := []*session{newSession("a"), newSession("b"), newSession("c")}
	for _, s := range sessions {
		r.Add("e", s, router.UpstreamOptions{})
	}
	var kept []*router.Stream
	for range 9 {
		s, err := r.OpenLocal(t.Context(), "n9", httpRequest("e").Header)
		if err != nil {
			t.Fatal(err)
		}
		kept = append(kept, s)
	}
	for _, s := range sessions {
		if n := s.opened.Load(); n != 3 {
			t.Errorf("session %s has %d of the 9 streams", s.id, n)
		}
	}
	// They are busy or not, nobody here knows: they do not count as load.
	if got := shares(t, r, tcpRequest("e"), 900); got["a"] < 0.25 || got["a"] > 0.42 {
		t.Errorf("shares of local requests = %v", got)
	}
	for _, s := range kept {
		end(s)
	}
}

// An agent that leaves waits for its streams; those that are idle elsewhere must not hold it up.
func TestIdleStreamsEndWhenSomethingChangesBehindThem(t *testing.T) {
	o := newOthers()
	r := o.with(router.Settings{}, "")
	o.hold("n2", map[string]int{"e": 2})
	idle := func() *conn {
		t.Helper()
		s := open(t, r, httpRequest("e"))
		c := s.Conn().(*conn)
		s.Release()
		return c
	}
	first := idle()
	o.seq++
	o.Apply("n2", "1", cluster.Delta{From: o.seq - 1, To: o.seq, Weights: map[string]int{"e": 2}}) // one came, one left
	if first.ended() == "open" {
		t.Error("an idle stream survived a change of the sessions behind it")
	}
	s := open(t, r, httpRequest("e"))
	c := s.Conn().(*conn)
	o.seq++
	o.Apply("n2", "1", cluster.Delta{From: o.seq - 1, To: o.seq, Weights: map[string]int{"e": 1}})
	if c.ended() != "open" {
		t.Error("a stream in use was ended")
	}
	s.Release()
	if c.ended() == "open" {
		t.Error("a stream from before the change was kept")
	}
	second := idle()
	o.SetDraining("n2", "1")
	if second.ended() == "open" {
		t.Error("an idle stream to a draining node was kept")
	}
	if third := idle(); third.ended() == "open" {
		t.Error("a stream to a draining node was put into the pool")
	}
}

func TestWhatANodeRefusesGoesElsewhere(t *testing.T) {
	o := newOthers()
	r := o.with(router.Settings{EjectAfter: 1}, "")
	o.hold("n2", map[string]int{"e": 50})
	o.session("n2").answer = refusing(tunnel.CodeNotListening)
	r.Add("e", newSession("local"), router.UpstreamOptions{})
	for range 20 {
		if got := sessionOf(t, r, tcpRequest("e")); got != "local" {
			t.Fatalf("the request went to %s", got)
		}
	}
	if x, _ := r.Explain("e"); x.Upstreams[1].State != "healthy" {
		t.Errorf("a stale route counts as a fault: %+v", x.Upstreams[1])
	}
	o.hold("n3", map[string]int{"h2": 1})
	o.session("n3").answer = refusing(tunnel.CodeInvalid)
	req := httpRequest("h2")
	req.Header.Protocol = tunnel.ProtocolH2
	_, err := r.Open(t.Context(), req)
	wantError(t, err, router.ErrProtocol)
}

func TestARequestWaitsForAnEndpointThatMovesBetweenNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOthers()
		r := o.with(router.Settings{EndpointWait: 5 * time.Second}, "")
		grownUp(r)
		o.hold("n2", map[string]int{"e": 1})
		o.hold("n2", nil)
		var got string
		var wg sync.WaitGroup
		wg.Go(func() { got = sessionOf(t, r, tcpRequest("e")) })
		synctest.Wait()
		o.hold("n3", map[string]int{"e": 1})
		wg.Wait()
		if got != "n3" {
			t.Errorf("the request went to %q", got)
		}

		// The route is there and the node is not, for a moment.
		remote := o.hold("n3", map[string]int{"e": 1})
		remote.SetDown(true)
		start := time.Now()
		time.AfterFunc(time.Second, func() { remote.SetDown(false) })
		if got := sessionOf(t, r, tcpRequest("e")); got != "n3" || time.Since(start) > 1200*time.Millisecond {
			t.Errorf("the request went to %q after %v", got, time.Since(start))
		}
		remote.SetDown(true)
		pass(time.Minute)
		start = time.Now()
		if _, err := r.Open(t.Context(), tcpRequest("e")); !errors.Is(err, router.ErrNoUpstream) || time.Since(start) > 0 {
			t.Errorf("a node that was down for a minute: %v after %v", err, time.Since(start))
		}
	})
}

func TestRemoteUpstreamsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOthers()
		r := o.with(router.Settings{}, "")
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = r.Run(ctx) })
		weights := map[string]int{}
		for i := range 100 {
			weights[fmt.Sprint("e", i)] = 1
		}
		o.hold("n2", weights)
		var conns []*conn
		for key := range weights {
			s := open(t, r, httpRequest(key))
			conns = append(conns, s.Conn().(*conn))
			s.Release()
		}
		pass(5 * time.Minute)
		if slices.ContainsFunc(conns, func(c *conn) bool { return c.ended() == "open" }) {
			t.Error("idle streams were kept for minutes")
		}
		if got := sessionOf(t, r, httpRequest("e1")); got != "n2" {
			t.Errorf("after it was forgotten, a request went to %q", got)
		}
		cancel()
		wg.Wait()
	})
}

// What this node holds is the sum of the weights of its upstreams, whatever comes and goes at the same time.
func TestLocalFollowsTheTable(t *testing.T) {
	local := cluster.NewLocal()
	r := router.New(router.Options{Local: local})
	var wg sync.WaitGroup
	for n := range 4 {
		wg.Go(func() {
			for i := range 200 {
				s := newSession(fmt.Sprint(n))
				r.Add("e", s, router.UpstreamOptions{Weight: 1 + i%3})
				r.Add("e", s, router.UpstreamOptions{Weight: 2, Protocol: tunnel.ProtocolTCP})
				r.Add("e", s, router.UpstreamOptions{Weight: 5, Protocol: tunnel.ProtocolTCP})
				if i < 199 {
					r.RemoveSession(s)
				}
			}
		})
	}
	wg.Wait()
	if w := local.Weight("e"); w != 20 {
		t.Errorf("four upstreams of weight 5 are held as %d", w)
	}
}

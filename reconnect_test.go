package piko_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pikoproxy/piko"
	"github.com/pikoproxy/piko/internal/pikotest/fakenode"
	"github.com/pikoproxy/piko/internal/tunnel"
)

func TestListenerComesBackAfterItsNodeVanished(t *testing.T) {
	n := fakenode.Start(t, "n1")
	l := listen(t, newClient(t, n.URL()), "e")
	go echo(l)
	for range 5 {
		n.Kill()
		n.Restart()
		n.AwaitListen("e", true)
		if got := ask(t, open(t, n, tunnel.Header{Endpoint: "e"}), "x"); got != "X" {
			t.Fatalf("answer is %q", got)
		}
	}
}

func TestStreamOfAVanishedNodeDoesNotEndCleanly(t *testing.T) {
	n := fakenode.Start(t, "n1")
	l := listen(t, newClient(t, n.URL()), "e")
	_, c := connect(t, n, l)
	n.Kill()
	if _, err := io.ReadAll(c); err == nil {
		t.Error("reading ends as if everything had arrived")
	}
	_ = c.Close()
}

func TestClientHoldsSessionsToDistinctNodes(t *testing.T) {
	a, b := fakenode.Start(t, "a"), fakenode.Start(t, "b")
	c := newClient(t, fakenode.Balance(t, a, b).URL)
	l := listen(t, c, "e")
	a.AwaitListen("e", true)
	b.AwaitListen("e", true)
	if a.Sessions() != 1 || b.Sessions() != 1 {
		t.Errorf("nodes have %d and %d sessions", a.Sessions(), b.Sessions())
	}
	eventually(t, "both nodes in Nodes", func() bool {
		got := l.Nodes()
		slices.Sort(got)
		return slices.Equal(got, []string{"a", "b"})
	})
	if got := c.Sessions(); len(got) != 2 || got[0].Draining || got[0].Since.IsZero() {
		t.Errorf("Sessions gives %+v", got)
	}
}

func TestClientSpreadsItsSessionsOverZones(t *testing.T) {
	var nodes []*fakenode.Node
	for _, id := range []string{"a1", "a2", "a3", "b1"} {
		n := fakenode.Start(t, id)
		n.Zone = id[:1]
		nodes = append(nodes, n)
	}
	c := newClient(t, fakenode.Balance(t, nodes...).URL)
	listen(t, c, "e")
	nodes[3].AwaitListen("e", true)
	nodes[3].Kill()
	eventually(t, "a second session in the zone that is left", func() bool {
		n := 0
		for _, one := range nodes[:3] {
			if _, ok := one.Listens("e"); ok {
				n++
			}
		}
		return n == 2
	})
}

func TestZoneIsNoReasonToGoWithoutASession(t *testing.T) {
	var nodes []*fakenode.Node
	for _, id := range []string{"a1", "a2", "a3"} {
		n := fakenode.Start(t, id)
		n.Zone = "a"
		nodes = append(nodes, n)
	}
	c := newClient(t, fakenode.Balance(t, nodes...).URL)
	c.Connections = 3
	listen(t, c, "e")
	for _, n := range nodes {
		n.AwaitListen("e", true)
	}
}

func TestOneNodeGetsOneSession(t *testing.T) {
	n := fakenode.Start(t, "only")
	c := newClient(t, n.URL())
	c.Connections = 3
	listen(t, c, "e")
	// The other places look for another node again and again, and never keep a second session to the same.
	n.Await("some more attempts", func() bool { return n.Dials() >= 6 })
	if got := c.Sessions(); len(got) != 1 {
		t.Errorf("Sessions gives %+v", got)
	}
}

func TestLostNodeIsReplacedByAnotherAtOnce(t *testing.T) {
	a, b, c := fakenode.Start(t, "a"), fakenode.Start(t, "b"), fakenode.Start(t, "c")
	client := newClient(t, fakenode.Balance(t, a, b, c).URL)
	listen(t, client, "e")
	nodes := []*fakenode.Node{a, b, c}
	offering := func() (n int) {
		for _, one := range nodes {
			if _, ok := one.Listens("e"); ok {
				n++
			}
		}
		return n
	}
	awaitTwo := func() { eventually(t, "two nodes that offer it", func() bool { return offering() == 2 }) }
	awaitTwo()
	for _, one := range nodes {
		if _, ok := one.Listens("e"); ok {
			one.Kill()
			break
		}
	}
	awaitTwo()
}

func TestDrainingNodeIsLeftOnlyForAnother(t *testing.T) {
	a, b := fakenode.Start(t, "a"), fakenode.Start(t, "b")
	c := newClient(t, fakenode.Balance(t, a, b).URL)
	c.Connections = 1
	l := listen(t, c, "e")
	first, second := a, b
	if _, ok := b.Listens("e"); ok {
		first, second = b, a
	}
	second.SetStatus(http.StatusServiceUnavailable) // nowhere to go yet
	first.SetStatus(http.StatusServiceUnavailable)  // a draining node takes no new agents
	client, conn := connect(t, first, l)

	first.DrainAgents(time.Now().Add(time.Minute))
	dials := second.Dials()
	second.Await("attempts to connect", func() bool { return second.Dials() > dials+1 })
	if _, ok := first.Listens("e"); !ok {
		t.Fatal("the draining node was left before there was another")
	}
	_, late := connect(t, first, l) // what a client asks for meanwhile is still served
	_ = late.Reset()

	second.SetStatus(0)
	second.AwaitListen("e", true)
	first.Await("the agent's leave", func() bool { return first.Drains() == 1 })
	// The old stream goes on, and the session ends with it.
	go func() {
		_, _ = conn.Write([]byte("to the end"))
		_ = conn.Close()
	}()
	if b, err := io.ReadAll(client); err != nil || string(b) != "to the end" {
		t.Errorf("client of the draining node reads %q, %v", b, err)
	}
	_ = client.Close()
	first.Await("end of the session", func() bool { return first.Sessions() == 0 })
}

func TestOtherSessionIsReasonEnoughToLeaveADrainingNode(t *testing.T) {
	a, b := fakenode.Start(t, "a"), fakenode.Start(t, "b")
	c := newClient(t, fakenode.Balance(t, a, b).URL)
	listen(t, c, "e")
	a.AwaitListen("e", true)
	b.AwaitListen("e", true)
	a.SetStatus(http.StatusServiceUnavailable)
	a.DrainAgents(time.Now().Add(time.Minute))
	a.Await("end of the session", func() bool { return a.Sessions() == 0 })
	a.SetStatus(0)
	a.AwaitListen("e", true) // it has restarted
}

func TestNodeThatHasStoppedIsTriedAgainAtOnce(t *testing.T) {
	n := fakenode.Start(t, "n1")
	c := newClient(t, n.URL())
	c.Connections = 1
	listen(t, c, "e")
	n.SetStatus(http.StatusServiceUnavailable)
	n.DrainAgents(time.Now().Add(time.Minute))
	n.Await("longer and longer pauses", func() bool { return n.Dials() > 7 })
	n.SetStatus(0)
	n.Kill()
	n.Restart()
	// Time in which this process stands still, because the machine does or is busy, is not counted.
	ticks := 0
	eventually(t, "the endpoint is back", func() bool {
		ticks++
		_, is := n.Listens("e")
		return is
	})
	if ticks > 400 { // of 5 ms
		t.Errorf("the endpoint is back after %d looks", ticks)
	}
}

func TestRefusedEndpointIsTriedAgainAndHarmsNoOther(t *testing.T) {
	n := fakenode.Start(t, "n1")
	c := newClient(t, n.URL())
	c.Connections = 1 // another place would look for another node now and then
	n.Refuse("bad", tunnel.CodeNotPermitted)
	bad, err := c.Listen(t.Context(), "bad", piko.InBackground())
	if err != nil {
		t.Fatal(err)
	}
	good := listen(t, c, "good")
	go echo(good)
	eventually(t, "refusal", func() bool {
		r, ok := errors.AsType[*piko.RefusedError](bad.Err())
		return ok && r.Code == tunnel.CodeNotPermitted
	})
	if got := bad.Nodes(); len(got) != 0 {
		t.Errorf("Nodes gives %q", got)
	}
	if got := ask(t, open(t, n, tunnel.Header{Endpoint: "good"}), "x"); got != "X" {
		t.Errorf("answer is %q", got)
	}
	n.Refuse("bad", "")
	n.AwaitListen("bad", true)
	if n.Sessions() != 1 {
		t.Errorf("node has %d sessions", n.Sessions())
	}
}

func TestEndpointThatANodeTakesBackIsOfferedAgain(t *testing.T) {
	n := fakenode.Start(t, "n1")
	l := listen(t, newClient(t, n.URL()), "e")
	n.TakeBack("e", tunnel.CodeNotPermitted)
	eventually(t, "knowledge of it", func() bool { return len(l.Nodes()) == 0 && errors.Is(l.Err(), piko.ErrUnauthorized) })
	n.Refuse("e", "")
	n.AwaitListen("e", true)
	eventually(t, "no more error", func() bool { return len(l.Nodes()) == 1 && l.Err() == nil })
}

func TestListenInBackgroundOutlivesEveryTrouble(t *testing.T) {
	n := fakenode.Start(t, "n1")
	n.SetStatus(http.StatusUnauthorized)
	c := newClient(t, n.URL())
	l, err := c.Listen(t.Context(), "e", piko.InBackground())
	if err != nil {
		t.Fatal(err)
	}
	go echo(l)
	eventually(t, "an attempt", func() bool { return n.Dials() > 0 && errors.Is(l.Err(), piko.ErrUnauthorized) })
	n.SetStatus(0)
	n.AwaitListen("e", true)
	if got := ask(t, open(t, n, tunnel.Header{Endpoint: "e"}), "x"); got != "X" {
		t.Errorf("answer is %q", got)
	}
}

func TestTokenIsRenewedOnTheOpenSession(t *testing.T) {
	n := fakenode.Start(t, "n1")
	c := newClient(t, n.URL())
	c.Connections = 1
	var asked atomic.Int64
	token := func(i int64, life time.Duration) string {
		claims := fmt.Sprintf(`{"n":%d,"exp":%d}`, i, time.Now().Add(life).Unix())
		return "e30." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".sig"
	}
	var given [3]atomic.Pointer[string]
	c.TokenSource = func(context.Context) (string, error) {
		i := asked.Add(1)
		life := 2 * time.Second // renewed a second later at the earliest
		if i > 2 {
			life = time.Hour
		}
		s := token(i, life)
		given[min(i-1, 2)].Store(&s)
		return s, nil
	}
	listen(t, c, "e")
	n.Await("three tokens", func() bool { return len(n.Tokens()) == 3 })
	for i, got := range n.Tokens() {
		if got != *given[i].Load() {
			t.Errorf("token %d is %q, want %q", i, got, *given[i].Load())
		}
	}
	if n.Dials() != 1 {
		t.Errorf("the client connected %d times", n.Dials())
	}
}

func TestTokenIsReadAgainForANewConnection(t *testing.T) {
	n := fakenode.Start(t, "n1")
	c := newClient(t, n.URL())
	c.Connections = 1
	var asked atomic.Int64
	c.TokenSource = func(context.Context) (string, error) { return fmt.Sprintf("token-%d", asked.Add(1)), nil }
	listen(t, c, "e")
	n.Kill()
	n.Restart()
	n.AwaitListen("e", true)
	if got := n.Tokens(); got[0] != "token-1" || got[len(got)-1] == "token-1" {
		t.Errorf("tokens are %q", got)
	}
}

func TestShutdownLetsRunningConnectionsFinish(t *testing.T) {
	n := fakenode.Start(t, "n1")
	c := newClient(t, n.URL())
	c.Connections = 1
	l := listen(t, c, "e")
	client, conn := connect(t, n, l)
	ended := make(chan error, 1)
	go func() { ended <- c.Shutdown(soon(t)) }()
	n.Await("the agent's leave", func() bool { return n.Drains() == 1 })
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept gives %v", err)
	}
	_, err := n.OpenAnyway(soon(t), tunnel.Header{Endpoint: "e"})
	if _, ok := errors.AsType[*tunnel.RefusedError](err); !ok {
		t.Errorf("Open gives %v", err)
	}
	select {
	case err := <-ended:
		t.Fatalf("Shutdown returns %v while a connection runs", err)
	default:
	}
	go func() {
		_, _ = conn.Write([]byte("done"))
		_ = conn.Close()
	}()
	if b, err := io.ReadAll(client); err != nil || string(b) != "done" {
		t.Errorf("client reads %q, %v", b, err)
	}
	_ = client.Close()
	if err := <-ended; err != nil {
		t.Errorf("Shutdown gives %v", err)
	}
	if _, err := c.Listen(t.Context(), "f"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Listen gives %v", err)
	}
	if _, err := c.Dial(t.Context(), "f"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Dial gives %v", err)
	}
}

func TestShutdownCutsWhatRunsTooLong(t *testing.T) {
	n := fakenode.Start(t, "n1")
	c := newClient(t, n.URL())
	l := listen(t, c, "e")
	client, conn := connect(t, n, l)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := c.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Shutdown gives %v", err)
	}
	if _, err := io.ReadAll(client); err == nil {
		t.Error("client reads a clean end")
	}
	if _, err := io.ReadAll(conn); err == nil {
		t.Error("service reads a clean end")
	}
}

func TestIdleClientShutsDownAtOnce(t *testing.T) {
	n := fakenode.Start(t, "n1")
	c := newClient(t, n.URL())
	listen(t, c, "e")
	start := time.Now()
	if err := c.Shutdown(soon(t)); err != nil {
		t.Errorf("Shutdown gives %v", err)
	}
	if d := time.Since(start); d > 30*time.Second {
		t.Errorf("Shutdown took %v", d)
	}
	var never piko.Client
	if err := never.Shutdown(t.Context()); err != nil {
		t.Errorf("Shutdown of a client that never listened gives %v", err)
	}
}

func TestListenEndsWithTheClient(t *testing.T) {
	n := fakenode.Start(t, "n1")
	n.SetStatus(http.StatusServiceUnavailable)
	c := newClient(t, n.URL())
	ended := make(chan error, 1)
	go func() {
		_, err := c.Listen(t.Context(), "e")
		ended <- err
	}()
	n.Await("an attempt", func() bool { return n.Dials() > 0 })
	_ = c.Close()
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Listen gives %v", err)
	}
}

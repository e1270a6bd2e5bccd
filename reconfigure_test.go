package piko_test

import (
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pikoproxy/piko"
	"github.com/pikoproxy/piko/internal/pikotest/fakenode"
	"github.com/pikoproxy/piko/internal/tunnel"
)

// carries checks that a stream still carries bytes.
func carries(t *testing.T, client *tunnel.Stream, service *piko.Conn) {
	t.Helper()
	if _, err := client.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4)
	if _, err := io.ReadFull(service, b); err != nil {
		t.Fatal(err)
	}
}

func TestReplacingListenerTakesOverWithoutAGap(t *testing.T) {
	n := fakenode.Start(t, "n1")
	c := newClient(t, n.URL())
	c.Connections = 1
	old := listen(t, c, "e")
	client, service := connect(t, n, old)
	before, _ := n.Listens("e")

	l := listen(t, c, "e", piko.Replacing())
	if _, err := old.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the old listener's Accept returns %v", err)
	}
	connect(t, n, l)
	carries(t, client, service)
	if after, ok := n.Listens("e"); !ok || after != before {
		t.Errorf("the node has %+v (%v), want %+v", after, ok, before)
	}
	_ = old.Close()
	connect(t, n, l) // closing the old one does not touch the new one

	// Another weight is told to the node without withdrawing the endpoint.
	l2 := listen(t, c, "e", piko.Replacing(), piko.WithWeight(7))
	n.Await("the new weight", func() bool { l, ok := n.Listens("e"); return ok && l.Weight == 7 })
	connect(t, n, l2)
	carries(t, client, service)
	if _, err := c.Listen(soon(t), "e"); err == nil {
		t.Error("a second listener without Replacing is taken")
	}
}

func TestReconfigureMovesToTheNewURLFirst(t *testing.T) {
	a, b := fakenode.Start(t, "a"), fakenode.Start(t, "b")
	c := newClient(t, a.URL())
	c.Connections = 1
	l := listen(t, c, "e")
	client, service := connect(t, a, l)

	if err := c.Reconfigure(&piko.Client{URL: b.URL(), Connections: 1, Token: "new"}, time.Minute); err != nil {
		t.Fatal(err)
	}
	b.AwaitListen("e", true)
	a.Await("the end of the offer at the old node", func() bool { return a.Drains() == 1 })
	carries(t, client, service) // what runs there goes on
	connect(t, b, l)
	if tokens := b.Tokens(); len(tokens) == 0 || tokens[len(tokens)-1] != "new" {
		t.Errorf("the new node was shown %q", tokens)
	}
	_ = client.Close()
	_ = service.Close()
	a.Await("the end of the old session", func() bool { return a.Sessions() == 0 })
}

func TestReconfigureToADeadURLKeepsTheOldSessions(t *testing.T) {
	a, b := fakenode.Start(t, "a"), fakenode.Start(t, "b")
	b.Kill()
	c := newClient(t, a.URL())
	l := listen(t, c, "e")
	if err := c.Reconfigure(&piko.Client{URL: b.URL(), Connections: 1}, time.Minute); err != nil {
		t.Fatal(err)
	}
	client, service := connect(t, a, l)
	_, _ = client.Close(), service.Close()
	b.Restart()
	b.AwaitListen("e", true)
	a.Await("the end of the old sessions", func() bool { return a.Sessions() == 0 })
	connect(t, b, l)
	if err := c.Reconfigure(&piko.Client{URL: "gopher://x"}, time.Minute); err == nil {
		t.Error("a URL that makes no sense is taken")
	}
	connect(t, b, l)
}

func TestSetConnectionsAddsAndTakesAway(t *testing.T) {
	a, b := fakenode.Start(t, "a"), fakenode.Start(t, "b")
	balancer := fakenode.Balance(t, a, b)
	c := newClient(t, balancer.URL)
	c.Connections = 1
	listen(t, c, "e")
	if err := c.SetConnections(2, time.Minute); err != nil {
		t.Fatal(err)
	}
	a.AwaitListen("e", true)
	b.AwaitListen("e", true)
	if err := c.SetConnections(1, time.Minute); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if t.Failed() {
			t.Logf("the nodes have %d sessions and the client knows of %d", a.Sessions()+b.Sessions(), len(c.Sessions()))
		}
	}()
	eventually(t, "one session, and one that the client knows of", func() bool {
		return a.Sessions()+b.Sessions() == 1 && len(c.Sessions()) == 1
	})
}

func TestRenewTokenPresentsItOnTheOpenSession(t *testing.T) {
	n := fakenode.Start(t, "n1")
	c := newClient(t, n.URL())
	c.Connections = 1
	var token atomic.Pointer[string]
	set := func(s string) { token.Store(&s) }
	set("one")
	c.TokenSource = func(context.Context) (string, error) { return *token.Load(), nil }
	listen(t, c, "e")
	c.RenewToken() // the same one: nothing to tell
	set("two")
	c.RenewToken()
	n.Await("the second token", func() bool { return len(n.Tokens()) == 2 })
	if have := n.Tokens(); have[0] != "one" || have[1] != "two" || n.Dials() != 1 {
		t.Errorf("the node was shown %q on %d connections", have, n.Dials())
	}
}

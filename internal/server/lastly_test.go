package server_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pikoproxy/piko/internal/config"
)

// mustRestrict gives a stopping node other settings.
func (n *running) mustRestrict(t *testing.T, change func(*config.Pikod)) {
	t.Helper()
	next := n.settings
	change(&next)
	c, err := n.server.PrepareLastly(next)
	if err != nil {
		t.Fatal(err)
	}
	c.Commit()
	c.Retire()
	n.settings = next
}

// awaitDrain begins the drain and waits until it has begun.
func (n *running) awaitDrain() {
	n.t.Helper()
	n.stop()
	eventually(n.t, "the drain", func() bool { return n.get(n.url("admin", "/ready")).status == http.StatusServiceUnavailable })
}

func TestRevocationsTakeEffectWhileANodeDrains(t *testing.T) {
	n := guarded(t, named(t, secret, "a1", "agent", inAnHour()))
	stolen, other := named(t, secret, "c1", "mallory", inAnHour()), named(t, secret, "c2", "alice", inAnHour())
	thief, honest := n.hold(stolen), n.hold(other)
	eventually(t, "all requests on their way", func() bool {
		return strings.Contains(n.get(n.url("admin", "/metrics")).body, "\npiko_proxy_requests_in_flight 4\n")
	})
	n.awaitDrain()
	n.mustRestrict(t, func(c *config.Pikod) {
		c.Proxy.Auth.Denylist = slices.Concat(c.Proxy.Auth.Denylist, []string{"c1"})
		c.Proxy.Listen, c.DrainTimeout = "127.0.0.1:1", 1 // nothing else is taken over
	})
	thief.wantEnd(t, "invalid token")
	honest.wantAlive(t)
	n.mustRestrict(t, func(c *config.Pikod) { c.Proxy.Auth = keyed("another key, which is long enough") })
	honest.wantEnd(t, "invalid token")
}

func TestARemovedClientCAEndsWhatItLetInWhileANodeDrains(t *testing.T) {
	cert, key, _ := certify(t)
	good, bad := newVisitor(t, time.Hour), newVisitor(t, time.Hour)
	n := start(t, trusting(cert, key, bundle(t, good, bad)))
	good.come(t, n, "good")
	bad.come(t, n, "bad")
	n.stop()
	eventually(t, "the drain", func() bool {
		resp, err := good.clients["console"].Get(good.url("admin", "/ready"))
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusServiceUnavailable
	})
	n.mustRestrict(t, trusting(cert, key, bundle(t, good)))
	bad.wantCut(t)
	if _, err := good.upgraded.Write([]byte("x")); err != nil {
		t.Errorf("the TCP connection of the other one: %v", err)
	}
	_ = good.upgraded.Reset() // the drain waits for it
}

package server

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sirupsen/logrus"

	"github.com/pikoproxy/piko/internal/config"
)

func TestAttemptsOfOneAddress(t *testing.T) {
	c := config.DefaultPikod()
	c.Upstream.Limits.SessionsPerAddress, c.Upstream.Limits.SessionsPerAddressBurst = 0.001, 2
	l := newLimits(&c, logrus.New(), prometheus.NewRegistry())
	for i, want := range []bool{true, true, false} {
		if got := l.attempt("192.0.2.1:4000", &c.Upstream.Limits); got != want {
			t.Errorf("attempt %d: %v, want %v", i+1, got, want)
		}
	}
	for range 10 {
		if !l.attempt("127.0.0.1:4000", &c.Upstream.Limits) || !l.attempt("@", &c.Upstream.Limits) {
			t.Fatal("agents of this host are limited")
		}
	}
}

// Whoever opens connections without end must meet a limit, also where only redirects are had.
func TestEveryListenerLimitsItsConnections(t *testing.T) {
	c := config.DefaultPikod()
	l := newLimits(&c, logrus.New(), prometheus.NewRegistry())
	settings := gateSettings(&c)
	for _, name := range []string{proxyListener, upstreamListener, adminListener, clusterListener, acmeListener} {
		if l.gates[name] == nil || settings[name].Connections <= 0 {
			t.Errorf("the %s listener takes any number of connections", name)
		}
	}
}

func TestTallyForgetsWhatHasGone(t *testing.T) {
	c := &config.UpstreamLimits{}
	tally := newTally()
	h := holder{"t", "s"}
	for range 3 {
		tally.enter(h, c)
		tally.offer("t/e", "t", c)
	}
	for range 3 {
		tally.leave(h)
		tally.withdraw("t/e", "t")
	}
	if n := len(tally.tenants) + len(tally.subjects) + len(tally.endpoints) + len(tally.names); n != 0 {
		t.Errorf("%d entries are left: %+v", n, tally)
	}
}

package router_test

import (
	"errors"
	"math"
	"testing"

	"github.com/pikoproxy/piko/internal/router"
	"github.com/pikoproxy/piko/internal/tunnel"
)

// shares sends n requests one after another and returns the part that each session got.
func shares(t *testing.T, r *router.Router, req router.Request, n int) map[string]float64 {
	t.Helper()
	got := map[string]float64{}
	for range n {
		got[sessionOf(t, r, req)] += 1 / float64(n)
	}
	return got
}

func TestSharesFollowTheWeights(t *testing.T) {
	for name, tc := range map[string]struct {
		policy  router.Policy
		weights map[string]int
		spread  float64
	}{
		"p2c, equal":         {router.PolicyP2C, map[string]int{"a": 1, "b": 1, "c": 1, "d": 1}, 0.03},
		"p2c, zero is one":   {router.PolicyP2C, map[string]int{"a": 1, "b": 0}, 0.03},
		"p2c, one and nine":  {router.PolicyP2C, map[string]int{"a": 1, "b": 9}, 0.02},
		"p2c, three weights": {"", map[string]int{"a": 1, "b": 2, "c": 5}, 0.03},
		"round robin":        {router.PolicyRoundRobin, map[string]int{"a": 1, "b": 1, "c": 1}, 0.001},
		"round robin, heavy": {router.PolicyRoundRobin, map[string]int{"a": 1, "b": 4}, 0.001},
		"local first, equal": {router.PolicyLocalFirst, map[string]int{"a": 1, "b": 1}, 0.03},
	} {
		t.Run(name, func(t *testing.T) {
			r := router.New(router.Options{Settings: router.Settings{Policy: tc.policy}})
			total := 0.0
			for id, w := range tc.weights {
				r.Add("e", newSession(id), router.UpstreamOptions{Weight: w})
				total += float64(max(w, 1))
			}
			got := shares(t, r, tcpRequest("e"), 6000)
			for id, w := range tc.weights {
				if want := float64(max(w, 1)) / total; math.Abs(got[id]-want) > tc.spread {
					t.Errorf("%s got %.3f of the requests, want %.3f", id, got[id], want)
				}
			}
		})
	}
}

func TestP2CAvoidsTheLoadedOne(t *testing.T) {
	r := router.New(router.Options{})
	busy, free := newSession("busy"), newSession("free")
	r.Add("e", busy, router.UpstreamOptions{})
	for range 10 {
		defer end(open(t, r, tcpRequest("e")))
	}
	r.Add("e", free, router.UpstreamOptions{})
	if got := shares(t, r, tcpRequest("e"), 50); got["free"] < 0.999 {
		t.Errorf("the free one got %.2f of the requests, want all", got["free"])
	}
}

func TestLoadIsComparedByWeight(t *testing.T) {
	r := router.New(router.Options{})
	r.Add("e", newSession("light"), router.UpstreamOptions{Weight: 1})
	r.Add("e", newSession("heavy"), router.UpstreamOptions{Weight: 9})
	held := map[string]int{}
	for range 1000 {
		s := open(t, r, tcpRequest("e"))
		defer end(s)
		held[s.Upstream().Session().ID()]++
	}
	if n := held["light"]; n < 70 || n > 130 {
		t.Errorf("the light one holds %d of 1000 streams, want about 100", n)
	}
}

func TestLocalFirst(t *testing.T) {
	others := newOthers()
	r := router.New(router.Options{Remotes: others, Settings: router.Settings{Policy: router.PolicyLocalFirst}})
	local := newSession("local")
	others.hold("remote", map[string]int{"e": 50})
	r.Add("e", local, router.UpstreamOptions{})
	if got := shares(t, r, tcpRequest("e"), 50); got["local"] < 0.999 {
		t.Errorf("local got %.2f of the requests, want all", got["local"])
	}
	close(local.closing)
	if got := sessionOf(t, r, tcpRequest("e")); got != "remote" {
		t.Errorf("with the local one closing, the request went to %s", got)
	}
}

func TestARequestFromAPeerStaysHere(t *testing.T) {
	for _, policy := range []router.Policy{router.PolicyP2C, router.PolicyLocalFirst, router.PolicyRoundRobin} {
		others := newOthers()
		r := router.New(router.Options{Remotes: others, Settings: router.Settings{Policy: policy}})
		others.hold("remote", map[string]int{"e": 50})
		h := tcpRequest("e").Header
		_, err := r.OpenLocal(t.Context(), "n9", h)
		if refused, ok := errors.AsType[*tunnel.RefusedError](err); !ok || refused.Code != tunnel.CodeNotListening {
			t.Errorf("%s: error = %v, want a refusal", policy, err)
		}
		r.Add("e", newSession("local"), router.UpstreamOptions{})
		for range 20 {
			s, err := r.OpenLocal(t.Context(), "n9", h)
			if err != nil {
				t.Fatalf("%s: %v", policy, err)
			}
			if id := s.Upstream().Session().ID(); id != "local" {
				t.Errorf("%s: a peer's request went to %s", policy, id)
			}
			end(s)
		}
	}
}

func TestClosingSessionsAreNotChosen(t *testing.T) {
	for _, policy := range []router.Policy{router.PolicyP2C, router.PolicyLocalFirst, router.PolicyRoundRobin} {
		t.Run(string(policy), func(t *testing.T) {
			r := router.New(router.Options{Settings: router.Settings{Policy: policy}})
			for _, id := range []string{"a", "b", "c", "d"} {
				s := newSession(id)
				r.Add("e", s, router.UpstreamOptions{Weight: len(id)})
				if id != "c" {
					close(s.closing)
				}
			}
			if got := shares(t, r, tcpRequest("e"), 50); got["c"] < 0.999 {
				t.Errorf("the live one got %.2f of the requests, want all", got["c"])
			}
		})
	}
}

func TestProtocolDecidesWhoMayBeAsked(t *testing.T) {
	const unknown = ""
	for name, tc := range map[string]struct {
		listener, request string
		want              error
		sent              string
	}{
		"http to http":    {tunnel.ProtocolHTTP, tunnel.ProtocolHTTP, nil, tunnel.ProtocolHTTP},
		"http to classic": {unknown, tunnel.ProtocolHTTP, nil, tunnel.ProtocolHTTP},
		"http to tcp":     {tunnel.ProtocolTCP, tunnel.ProtocolHTTP, nil, tunnel.ProtocolTCP},
		"h2 to http":      {tunnel.ProtocolHTTP, tunnel.ProtocolH2, nil, tunnel.ProtocolH2},
		"h2 to classic":   {unknown, tunnel.ProtocolH2, router.ErrProtocol, ""},
		"h2 to tcp":       {tunnel.ProtocolTCP, tunnel.ProtocolH2, router.ErrProtocol, ""},
		"tcp to tcp":      {tunnel.ProtocolTCP, tunnel.ProtocolTCP, nil, tunnel.ProtocolTCP},
		"tcp to classic":  {unknown, tunnel.ProtocolTCP, nil, tunnel.ProtocolTCP},
		"tcp to http":     {tunnel.ProtocolHTTP, tunnel.ProtocolTCP, router.ErrProtocol, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := router.New(router.Options{})
			s := newSession("a")
			r.Add("e", s, router.UpstreamOptions{Protocol: tc.listener})
			st, err := r.Open(t.Context(), router.Request{Key: "e", Header: tunnel.Header{Protocol: tc.request}})
			wantError(t, err, tc.want)
			if err != nil {
				return
			}
			defer end(st)
			if got := s.conn(t, 0).header.Protocol; got != tc.sent {
				t.Errorf("the stream header says %q, want %q", got, tc.sent)
			}
		})
	}
}

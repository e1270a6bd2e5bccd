package router_test

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/pikoproxy/piko/internal/router"
	"github.com/pikoproxy/piko/internal/tunnel"
)

func TestKeysOfTenantsDoNotMeet(t *testing.T) {
	if got := router.KeyOf("", "e"); got != "e" {
		t.Errorf("key without tenant = %q", got)
	}
	if got := router.KeyOf("t", "e"); got != "t/e" {
		t.Errorf("key with tenant = %q", got)
	}
}

func TestAddingTwiceIsAddingOnce(t *testing.T) {
	r := router.New(router.Options{})
	s := newSession("a")
	u := r.Add("e", s, router.UpstreamOptions{Weight: 1})
	if again := r.Add("e", s, router.UpstreamOptions{Weight: 7}); again != u || u.Weight() != 7 {
		t.Errorf("the second Add gave another upstream, or kept weight %d", u.Weight())
	}
	if got := r.Endpoints()["e"]; got != 1 {
		t.Errorf("%d upstreams, want 1", got)
	}
	changed := r.Add("e", s, router.UpstreamOptions{Protocol: tunnel.ProtocolHTTP})
	if changed == u || changed.Protocol() != tunnel.ProtocolHTTP || r.Endpoints()["e"] != 1 {
		t.Errorf("a listener that changed its protocol is still the old upstream")
	}
	if !r.RemoveKey("e", s) || r.RemoveKey("e", s) || len(r.Endpoints()) != 0 {
		t.Errorf("after removal: %v", r.Endpoints())
	}
}

func TestRemovingASessionTakesAllItsEndpoints(t *testing.T) {
	r := router.New(router.Options{})
	a, b := newSession("a"), newSession("b")
	for i := range 100 {
		r.Add(fmt.Sprint("e", i), a, router.UpstreamOptions{})
	}
	r.Add("e7", b, router.UpstreamOptions{})
	r.RemoveSession(a)
	r.RemoveSession(a)
	if got, want := r.Endpoints(), (map[string]int{"e7": 1}); !maps.Equal(got, want) {
		t.Errorf("endpoints = %v, want %v", got, want)
	}
	if endpoints, upstreams := r.Size(); endpoints != 1 || upstreams != 1 {
		t.Errorf("size = %d, %d; want 1, 1", endpoints, upstreams)
	}
	if got := sessionOf(t, r, tcpRequest("e7")); got != "b" {
		t.Errorf("the request went to %s", got)
	}
}

func TestAddingAClosedSessionLeavesNothing(t *testing.T) {
	r := router.New(router.Options{})
	s := newSession("a")
	close(s.closing)
	r.Add("e", s, router.UpstreamOptions{})
	if x, ok := r.Explain("e"); ok || len(x.Upstreams) != 0 {
		t.Errorf("it stayed: %+v", x)
	}
}

func TestAnOverlookedSessionIsReaped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := router.New(router.Options{})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- r.Run(ctx) }()
		s := newSession("a")
		r.Add("e", s, router.UpstreamOptions{})
		close(s.closing)
		pass(31 * time.Second)
		synctest.Wait()
		if x, _ := r.Explain("e"); len(x.Upstreams) != 0 {
			t.Errorf("it stayed: %+v", x)
		}
		cancel()
		<-done
	})
}

func TestExplain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := router.New(router.Options{Settings: router.Settings{EjectAfter: 1, EndpointWait: time.Second}})
		verdict := func(key, want string) router.Explanation {
			t.Helper()
			x, _ := r.Explain(key)
			if !strings.Contains(x.Verdict, want) {
				t.Errorf("verdict = %q, want %q in it", x.Verdict, want)
			}
			return x
		}
		verdict("e", "just started")
		grownUp(r)
		verdict("e", "nobody offers")
		a, b := newSession("a"), newSession("b")
		r.Add("e", a, router.UpstreamOptions{Weight: 3})
		r.Add("e", b, router.UpstreamOptions{Weight: 1})
		if x := verdict("e", "one of 2 healthy"); x.Upstreams[0].Share != 0.75 || x.Upstreams[1].Remote {
			t.Errorf("upstreams = %+v", x.Upstreams)
		}
		a.answer, b.answer = refusing(tunnel.CodeServiceUnreachable), refusing(tunnel.CodeServiceUnreachable)
		try(t.Context(), r, "e")
		if x := verdict("e", "no upstream is healthy"); x.Upstreams[0].State != "ejected" || x.Upstreams[0].For != "10s" {
			t.Errorf("upstreams = %+v", x.Upstreams)
		}
		r.RemoveSession(a)
		r.RemoveSession(b)
		verdict("e", "left moments ago")
	})
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	r := router.New(router.Options{Registerer: reg, Settings: router.Settings{EjectAfter: 1}})
	bad := newSession("bad")
	bad.answer = refusing(tunnel.CodeServiceUnreachable)
	r.Add("e", bad, router.UpstreamOptions{})
	try(t.Context(), r, "e")
	r.Add("f", newSession("a"), router.UpstreamOptions{})
	open(t, r, httpRequest("f")).Release()
	open(t, r, httpRequest("f")).Release()
	defer end(open(t, r, tcpRequest("f")))
	want := `
# HELP piko_router_ejections_total Upstreams taken out after consecutive faults.
# TYPE piko_router_ejections_total counter
piko_router_ejections_total 1
# HELP piko_router_endpoints Endpoints that can be reached.
# TYPE piko_router_endpoints gauge
piko_router_endpoints 2
# HELP piko_router_streams_idle Streams kept for the next request.
# TYPE piko_router_streams_idle gauge
piko_router_streams_idle 1
# HELP piko_router_streams_in_flight Streams in use now.
# TYPE piko_router_streams_in_flight gauge
piko_router_streams_in_flight 1
# HELP piko_router_streams_total Streams handed to requests, by where they came from.
# TYPE piko_router_streams_total counter
piko_router_streams_total{source="pool"} 1
piko_router_streams_total{source="session"} 2
# HELP piko_router_upstreams_ejected Upstreams taken out after consecutive faults.
# TYPE piko_router_upstreams_ejected gauge
piko_router_upstreams_ejected 1
`
	err := testutil.GatherAndCompare(reg, strings.NewReader(want), "piko_router_ejections_total", "piko_router_endpoints",
		"piko_router_streams_idle", "piko_router_streams_in_flight", "piko_router_streams_total",
		"piko_router_upstreams_ejected")
	if err != nil {
		t.Error(err)
	}
	if n := testutil.CollectAndCount(reg, "piko_router_refusals_total"); n != 10 {
		t.Errorf("%d reasons of refusal, want all 10 from the start", n)
	}
}

// TestComingAndGoing lets agents come and go while requests run, and looks at the books afterwards.
func TestComingAndGoing(t *testing.T) {
	r := router.New(router.Options{Settings: router.Settings{EjectAfter: 5}})
	ctx, cancel := context.WithCancel(t.Context())
	var run sync.WaitGroup
	run.Go(func() {
		if err := r.Run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	steady := newSession("steady")
	var keep []*router.Upstream
	for i := range 4 {
		keep = append(keep, r.Add(fmt.Sprint("e", i), steady, router.UpstreamOptions{}))
	}
	var work sync.WaitGroup
	for w := range 4 {
		work.Go(func() {
			for i := range 300 {
				s := newSession(fmt.Sprint(w, "-", i))
				key := fmt.Sprint("e", i%4)
				r.Add(key, s, router.UpstreamOptions{Weight: i % 3})
				if i%2 == 0 {
					close(s.closing)
				}
				r.RemoveSession(s)
			}
		})
		work.Go(func() {
			for i := range 2000 {
				s, err := r.Open(ctx, httpRequest(fmt.Sprint("e", i%4)))
				if err != nil {
					t.Errorf("open: %v", err)
					return
				}
				switch i % 5 {
				case 0:
					_ = s.Reset()
				case 1:
					end(s)
				default:
					s.Release()
				}
			}
		})
	}
	work.Wait()
	cancel()
	run.Wait()
	for _, u := range keep {
		if u.InFlight() != 0 || u.Idle() != 0 {
			t.Errorf("%s: %d in flight, %d idle after the end", u.Key(), u.InFlight(), u.Idle())
		}
	}
	if got := r.Endpoints(); len(got) != 4 || got["e0"] != 1 {
		t.Errorf("endpoints = %v, want the steady ones", got)
	}
}

package router_test

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pikoproxy/piko/internal/router"
	"github.com/pikoproxy/piko/internal/tunnel"
)

func TestARefusalIsReplacedSilently(t *testing.T) {
	for _, code := range []string{
		tunnel.CodeServiceUnreachable, tunnel.CodeNotListening, tunnel.CodeDraining, tunnel.CodeOverloaded,
		tunnel.CodeNotPermitted, "never_heard_of",
	} {
		t.Run(code, func(t *testing.T) {
			r := router.New(router.Options{})
			bad, good := newSession("bad"), newSession("good")
			bad.answer = refusing(code)
			r.Add("e", bad, router.UpstreamOptions{Weight: 100})
			r.Add("e", good, router.UpstreamOptions{})
			if got := shares(t, r, tcpRequest("e"), 20); got["good"] < 0.999 {
				t.Errorf("the good one got %.2f of the requests, want all", got["good"])
			}
			if bad.opened.Load() == 0 {
				t.Error("the bad one was never asked")
			}
		})
	}
}

func TestEachCandidateIsAskedOnce(t *testing.T) {
	r := router.New(router.Options{Settings: router.Settings{EndpointWait: time.Hour}})
	var all []*session
	for i := range 12 {
		s := newSession(string(rune('a' + i)))
		s.answer = refusing(tunnel.CodeServiceUnreachable)
		r.Add("e", s, router.UpstreamOptions{})
		all = append(all, s)
	}
	_, err := r.Open(t.Context(), tcpRequest("e"))
	var unreachable *router.UnreachableError
	if !errors.As(err, &unreachable) || unreachable.Tried != 12 || unreachable.Key != "e" {
		t.Fatalf("error = %v, want 12 unreachable upstreams of e", err)
	}
	var refused *tunnel.RefusedError
	if !errors.As(err, &refused) || refused.Code != tunnel.CodeServiceUnreachable {
		t.Errorf("error = %v does not tell the refusal", err)
	}
	for _, s := range all {
		if n := s.opened.Load(); n != 1 {
			t.Errorf("%s was asked %d times, want once", s.id, n)
		}
	}
}

func TestTriedUpstreamsAreLeftOut(t *testing.T) {
	r := router.New(router.Options{})
	a := r.Add("e", newSession("a"), router.UpstreamOptions{})
	r.Add("e", newSession("b"), router.UpstreamOptions{})
	req := tcpRequest("e")
	req.Tried = []*router.Upstream{a}
	if got := shares(t, r, req, 20); got["b"] < 0.999 {
		t.Errorf("b got %.2f of the requests, want all", got["b"])
	}
}

func TestOpenEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := router.New(router.Options{Settings: router.Settings{EjectAfter: 1}})
		s := newSession("a")
		s.answer = func(ctx context.Context, _ tunnel.Header) (router.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		u := r.Add("e", s, router.UpstreamOptions{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := r.Open(ctx, tcpRequest("e"))
		wantError(t, err, router.ErrTimeout)

		ctx, cancel = context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		_, err = r.Open(ctx, tcpRequest("e"))
		wantError(t, err, context.Canceled)
		if x, _ := r.Explain("e"); x.Upstreams[0].Faults != 0 || u.InFlight() != 0 {
			t.Errorf("a client that left counts as %d faults and %d in flight", x.Upstreams[0].Faults, u.InFlight())
		}
	})
}

// pair returns a router with a bad and a good upstream; bad refuses until it is told otherwise.
func pair(t *testing.T, ejectAfter int) (r *router.Router, bad, good *session) {
	t.Helper()
	r = router.New(router.Options{Settings: router.Settings{EjectAfter: ejectAfter}})
	bad, good = newSession("bad"), newSession("good")
	bad.answer = refusing(tunnel.CodeServiceUnreachable)
	r.Add("e", bad, router.UpstreamOptions{})
	r.Add("e", good, router.UpstreamOptions{})
	return r, bad, good
}

// asked sends n requests and returns how often the session was asked.
func asked(t *testing.T, r *router.Router, s *session, n int) int64 {
	t.Helper()
	before := s.opened.Load()
	shares(t, r, tcpRequest("e"), n)
	return s.opened.Load() - before
}

func TestFaultsInARowEject(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, bad, _ := pair(t, 5)
		if n := asked(t, r, bad, 200); n != 5 {
			t.Errorf("the bad one was asked %d times, want 5", n)
		}
		// Half-open: one request a period, and the period doubles.
		for _, period := range []time.Duration{10 * time.Second, 20 * time.Second, 40 * time.Second} {
			pass(period - time.Millisecond)
			if n := asked(t, r, bad, 100); n != 0 {
				t.Errorf("asked %d times before the end of %s", n, period)
			}
			pass(2 * time.Millisecond)
			if n := asked(t, r, bad, 100); n != 1 {
				t.Errorf("asked %d times after %s, want once", n, period)
			}
		}
		// It heals: the probe brings it back, and a clean end wipes the slate.
		bad.answer = nil
		pass(81 * time.Second)
		for range 100 {
			s := open(t, r, tcpRequest("e"))
			answered(t, s)
			end(s)
		}
		if n := asked(t, r, bad, 200); n < 50 {
			t.Errorf("the healed one was asked %d times of 200", n)
		}
		if x, _ := r.Explain("e"); x.Upstreams[0].Faults != 0 || x.Upstreams[0].State != "healthy" {
			t.Errorf("after healing: %+v", x.Upstreams[0])
		}
		bad.answer = refusing(tunnel.CodeServiceUnreachable)
		asked(t, r, bad, 100)
		if x, _ := r.Explain("e"); x.Upstreams[0].For != "10s" {
			t.Errorf("ejected anew for %q, want 10s", x.Upstreams[0].For)
		}
	})
}

func TestThoseOnTheirWayDoNotEjectAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // what is left of ten seconds is told
		r := router.New(router.Options{Settings: router.Settings{EjectAfter: 5}})
		r.Add("e", newSession("a"), router.UpstreamOptions{})
		var streams []*router.Stream
		for range 50 {
			streams = append(streams, open(t, r, tcpRequest("e")))
		}
		for _, s := range streams {
			s.Failed(io.ErrUnexpectedEOF)
			_ = s.Reset()
		}
		if x, _ := r.Explain("e"); x.Upstreams[0].For != "10s" {
			t.Errorf("ejected for %q, want 10s", x.Upstreams[0].For)
		}
	})
}

func TestAProbeWithoutVerdictIsNotTheLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, bad, _ := pair(t, 1)
		asked(t, r, bad, 20)
		bad.answer = nil
		pass(11 * time.Second)
		if n := asked(t, r, bad, 50); n != 1 {
			t.Errorf("asked %d times, want one probe", n) // its client went before the service answered
		}
		pass(21 * time.Second)
		if n := asked(t, r, bad, 50); n != 1 {
			t.Errorf("asked %d times, want another probe", n)
		}
	})
}

func TestTheLastResortIsNeverEjected(t *testing.T) {
	r := router.New(router.Options{Settings: router.Settings{EjectAfter: 2}})
	s := newSession("a")
	s.answer = refusing(tunnel.CodeServiceUnreachable)
	r.Add("e", s, router.UpstreamOptions{})
	for range 10 {
		if _, err := r.Open(t.Context(), tcpRequest("e")); err == nil {
			t.Fatal("open worked")
		}
	}
	s.answer = nil
	st := open(t, r, tcpRequest("e"))
	answered(t, st)
	end(st)
	if x, _ := r.Explain("e"); x.Upstreams[0].State != "healthy" {
		t.Errorf("it answered, and is still %s", x.Upstreams[0].State)
	}
}

func TestFaultsOfTheLastResortDoNotProlongItsEjection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := router.New(router.Options{Settings: router.Settings{EjectAfter: 2}})
		s := newSession("a")
		s.answer = refusing(tunnel.CodeServiceUnreachable)
		r.Add("e", s, router.UpstreamOptions{})
		for _, want := range []string{"10s", "20s"} { // only what comes after a period is a probe, and doubles it once
			for range 50 {
				if _, err := r.Open(t.Context(), tcpRequest("e")); err == nil {
					t.Fatal("open worked")
				}
			}
			if x, _ := r.Explain("e"); x.Upstreams[0].For != want {
				t.Errorf("ejected for %q, want %s", x.Upstreams[0].For, want)
			}
			pass(10*time.Second + time.Millisecond)
		}
	})
}

func TestWhatTheProxyReportsEjects(t *testing.T) {
	for name, tc := range map[string]struct {
		end     func(*router.Stream)
		ejected bool
	}{
		"no answer":        {func(s *router.Stream) { s.Failed(errors.New("reset")); _ = s.Reset() }, true},
		"twice counts one": {func(s *router.Stream) { _ = s.Reset(); s.Failed(nil); s.Failed(nil) }, true},
		"client gone":      {func(s *router.Stream) { s.Failed(context.Canceled); _ = s.Reset() }, false},
		"reset by client":  {func(s *router.Stream) { _ = s.Reset() }, false},
	} {
		t.Run(name, func(t *testing.T) {
			r := router.New(router.Options{Settings: router.Settings{EjectAfter: 3}})
			r.Add("e", newSession("a"), router.UpstreamOptions{})
			for i := range 3 {
				if x, _ := r.Explain("e"); x.Upstreams[0].State != "healthy" {
					t.Fatalf("ejected after %d faults", i)
				}
				tc.end(open(t, r, tcpRequest("e")))
			}
			if x, _ := r.Explain("e"); (x.Upstreams[0].State == "ejected") != tc.ejected {
				t.Errorf("state is %s, want ejected = %v", x.Upstreams[0].State, tc.ejected)
			}
		})
	}
}

func TestTheRetryBudgetFollowsTheRequests(t *testing.T) {
	r := router.New(router.Options{Settings: router.Settings{RetryBudget: 0.2}})
	r.Add("e", newSession("a"), router.UpstreamOptions{})
	spend := func() (n int) {
		for r.Retry() {
			n++
		}
		return n
	}
	if n := spend(); n != 10 {
		t.Errorf("a quiet router allows %d retries, want 10", n)
	}
	shares(t, r, tcpRequest("e"), 100)
	if n := spend(); n != 20 {
		t.Errorf("100 requests pay for %d retries, want 20", n)
	}
	shares(t, r, tcpRequest("e"), 2000)
	if n := spend(); n != 100 {
		t.Errorf("2000 requests pay for %d retries, want no more than 100", n)
	}
	r.Apply(router.Settings{})
	if r.Retry() {
		t.Error("a retry without a budget")
	}
}

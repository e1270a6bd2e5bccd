package router_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pikoproxy/piko/internal/router"
	"github.com/pikoproxy/piko/internal/tunnel"
)

// one returns a router with one upstream.
func one(t *testing.T) (*router.Router, *session, *router.Upstream) {
	t.Helper()
	r := router.New(router.Options{Settings: router.Settings{EjectAfter: 5}})
	s := newSession("a")
	return r, s, r.Add("e", s, router.UpstreamOptions{Protocol: tunnel.ProtocolHTTP})
}

func TestAReleasedStreamIsUsedAgain(t *testing.T) {
	r, s, u := one(t)
	first := open(t, r, httpRequest("e"))
	if first.Reused() || u.InFlight() != 1 {
		t.Errorf("reused = %v, in flight = %d; want false, 1", first.Reused(), u.InFlight())
	}
	first.Release()
	if u.InFlight() != 0 || u.Idle() != 1 {
		t.Errorf("in flight = %d, idle = %d; want 0, 1", u.InFlight(), u.Idle())
	}
	second := open(t, r, httpRequest("e"))
	defer end(second)
	if !second.Reused() || s.opened.Load() != 1 {
		t.Errorf("reused = %v after %d opens; want true after 1", second.Reused(), s.opened.Load())
	}

	// The first exchange is over: its handle must not touch what now belongs to the second.
	end(first)
	_ = first.Reset()
	first.Release()
	if _, err := first.Write([]byte("x")); err == nil {
		t.Error("a released stream could still be written to")
	}
	if _, err := first.Read(make([]byte, 1)); err == nil {
		t.Error("a released stream could still be read from")
	}
	if got := s.conn(t, 0).ended(); got != "open" || u.InFlight() != 1 {
		t.Errorf("the stream in use is %s with %d in flight, want open with 1", got, u.InFlight())
	}
}

func TestTheStreamUsedLastIsUsedNext(t *testing.T) {
	r, s, _ := one(t)
	a, b := open(t, r, httpRequest("e")), open(t, r, httpRequest("e"))
	a.Release()
	b.Release()
	next := open(t, r, httpRequest("e"))
	defer end(next)
	if next.Conn() != router.Conn(s.conn(t, 1)) {
		t.Error("the older stream was taken")
	}
}

func TestWhatDoesNotGoBackToThePool(t *testing.T) {
	for name, tc := range map[string]struct {
		req  router.Request
		end  func(*router.Stream, *conn)
		want string
	}{
		"closed":    {httpRequest("e"), func(s *router.Stream, _ *conn) { end(s) }, "closed"},
		"reset":     {httpRequest("e"), func(s *router.Stream, _ *conn) { _ = s.Reset() }, "reset"},
		"half shut": {httpRequest("e"), func(s *router.Stream, _ *conn) { _ = s.CloseWrite(); s.Release() }, "closed"},
		"failed": {httpRequest("e"), func(s *router.Stream, _ *conn) {
			s.Failed(context.DeadlineExceeded)
			s.Release()
		}, "reset"},
		"bytes after the answer": {httpRequest("e"), func(s *router.Stream, c *conn) {
			c.data <- []byte("answer, and more")
			_, _ = s.Reader().ReadByte()
			s.Release()
		}, "reset"},
		"h2 without state": {router.Request{Key: "e", Header: tunnel.Header{Protocol: tunnel.ProtocolH2}},
			func(s *router.Stream, _ *conn) { end(s) }, "closed"},
	} {
		t.Run(name, func(t *testing.T) {
			r, s, u := one(t)
			st := open(t, r, tc.req)
			tc.end(st, s.conn(t, 0))
			if u.Idle() != 0 || u.InFlight() != 0 {
				t.Errorf("idle = %d, in flight = %d; want 0, 0", u.Idle(), u.InFlight())
			}
			if got := s.conn(t, 0).ended(); got != tc.want {
				t.Errorf("the stream is %s, want %s", got, tc.want)
			}
		})
	}
}

func TestATCPStreamServesOneClient(t *testing.T) {
	r := router.New(router.Options{})
	s := newSession("a")
	u := r.Add("e", s, router.UpstreamOptions{})
	open(t, r, tcpRequest("e")).Release()
	if u.Idle() != 0 || s.conn(t, 0).ended() != "closed" {
		t.Errorf("idle = %d, the stream is %s; want 0, closed", u.Idle(), s.conn(t, 0).ended())
	}
}

func TestFreshMeansNew(t *testing.T) {
	r, s, _ := one(t)
	open(t, r, httpRequest("e")).Release()
	req := httpRequest("e")
	req.Fresh = true
	st := open(t, r, req)
	defer end(st)
	if st.Reused() || s.opened.Load() != 2 {
		t.Errorf("reused = %v, opened = %d; want false, 2", st.Reused(), s.opened.Load())
	}
}

func TestDeadlinesEndWithTheExchange(t *testing.T) {
	r, s, _ := one(t)
	st := open(t, r, httpRequest("e"))
	_ = st.SetReadDeadline(time.Unix(1, 0))
	st.Release()
	next := open(t, r, httpRequest("e"))
	defer end(next)
	if c := s.conn(t, 0); !next.Reused() || c.expired() {
		t.Errorf("reused = %v, deadline passed = %v; want true, false", next.Reused(), c.expired())
	}
}

func TestAnIdleStreamIsLookedAtBeforeUse(t *testing.T) {
	for name, tc := range map[string]struct {
		idle   time.Duration
		spoil  func(*conn)
		reused bool
	}{
		"quiet":            {2 * time.Second, func(*conn) {}, true},
		"closed":           {2 * time.Second, func(c *conn) { close(c.data) }, false},
		"spoke unasked":    {2 * time.Second, func(c *conn) { c.data <- []byte("HTTP/1.1 200 OK\r\n\r\n") }, false},
		"young is trusted": {time.Second / 2, func(*conn) {}, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, s, u := one(t)
				open(t, r, httpRequest("e")).Release()
				tc.spoil(s.conn(t, 0))
				pass(tc.idle)
				st := open(t, r, httpRequest("e"))
				defer end(st)
				if st.Reused() != tc.reused {
					t.Errorf("reused = %v, want %v", st.Reused(), tc.reused)
				}
				if !tc.reused && s.conn(t, 0).ended() != "reset" {
					t.Errorf("the unfit stream is %s, want reset", s.conn(t, 0).ended())
				}
				if tc.reused { // and works, since the deadline of the look is gone
					answered(t, st)
				}
				if u.InFlight() != 1 {
					t.Errorf("in flight = %d, want 1", u.InFlight())
				}
			})
		})
	}
}

func TestIdleStreamsGrowOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _, u := one(t)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- r.Run(ctx) }()
		var streams []*router.Stream
		for range 300 {
			streams = append(streams, open(t, r, httpRequest("e")))
		}
		for _, s := range streams {
			s.Release()
		}
		idleAfter := func(d time.Duration, want int) {
			t.Helper()
			pass(d)
			synctest.Wait()
			if u.Idle() != want {
				t.Errorf("%d idle streams, want %d", u.Idle(), want)
			}
		}
		idleAfter(0, 256)
		idleAfter(16*time.Second, 4)
		idleAfter(30*time.Second, 4)
		idleAfter(20*time.Second, 0)
		open(t, r, httpRequest("e")).Release()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
		idleAfter(0, 0)
	})
}

func TestARemovedUpstreamKeepsNothing(t *testing.T) {
	r, s, u := one(t)
	idle, busy := open(t, r, httpRequest("e")), open(t, r, httpRequest("e"))
	idle.Release()
	r.RemoveSession(s)
	if got := s.conn(t, 0).ended(); got != "closed" {
		t.Errorf("the idle stream is %s, want closed", got)
	}
	if got := s.conn(t, 1).ended(); got != "open" {
		t.Errorf("the stream in use is %s, want open", got)
	}
	answered(t, busy)
	busy.Release()
	if got := s.conn(t, 1).ended(); got != "closed" || u.Idle() != 0 {
		t.Errorf("released after the removal it is %s with %d idle, want closed and 0", got, u.Idle())
	}
}

func TestAClosingSessionKeepsNoStream(t *testing.T) {
	r, s, u := one(t)
	st := open(t, r, httpRequest("e"))
	close(s.closing)
	st.Release()
	if got := s.conn(t, 0).ended(); got != "closed" || u.Idle() != 0 {
		t.Errorf("the stream is %s with %d idle, want closed and 0", got, u.Idle())
	}
}

func TestIdleStreamsMakeRoomForAnotherEndpoint(t *testing.T) {
	r := router.New(router.Options{})
	s := newSession("a")
	r.Add("e", s, router.UpstreamOptions{})
	r.Add("f", s, router.UpstreamOptions{})
	open(t, r, httpRequest("e")).Release()
	free := s.conn(t, 0)
	s.answer = func(context.Context, tunnel.Header) (router.Conn, error) {
		if free.ended() == "open" {
			return nil, &tunnel.RefusedError{Code: tunnel.CodeOverloaded, Full: true}
		}
		return &conn{}, nil
	}
	end(open(t, r, httpRequest("f")))
}

type h2state struct{ usable, closed bool }

func (h *h2state) Usable() bool { return h.usable }
func (h *h2state) Close() error { h.closed = true; return nil }

func TestStateStaysWithItsStream(t *testing.T) {
	r, s, _ := one(t)
	req := router.Request{Key: "e", Header: tunnel.Header{Protocol: tunnel.ProtocolH2}}
	st := open(t, r, req)
	state := &h2state{usable: true}
	st.Attach(state)
	st.Release()
	if other := open(t, r, httpRequest("e")); other.Attached() != nil {
		t.Error("an HTTP/1.1 request was given an HTTP/2 stream")
	}
	st = open(t, r, req)
	if st.Attached() != router.State(state) {
		t.Fatalf("attached = %v, want what the first exchange left", st.Attached())
	}
	state.usable = false
	st.Release()
	st = open(t, r, req)
	defer end(st)
	if st.Reused() || !state.closed || s.conn(t, 0).ended() != "reset" {
		t.Errorf("reused = %v, closed = %v, the old stream is %s; want false, true, reset",
			st.Reused(), state.closed, s.conn(t, 0).ended())
	}
}

// What can't be sent twice does not go out on a stream that the service may be about to close.
func TestAStreamThatHasRestedIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, s, u := one(t)
		open(t, r, httpRequest("e")).Release()
		pass(2 * time.Second)
		request := httpRequest("e")
		request.Rested = time.Second
		fresh := open(t, r, request)
		if fresh.Reused() || s.opened.Load() != 2 || u.Idle() != 1 {
			t.Errorf("reused = %v, %d opened, %d idle; want a new one and the other still idle", fresh.Reused(), s.opened.Load(), u.Idle())
		}
		fresh.Release()
		again := open(t, r, request)
		if !again.Reused() {
			t.Error("a stream that was used just now is not used again")
		}
		end(again)
		other := open(t, r, httpRequest("e"))
		defer end(other)
		if !other.Reused() {
			t.Error("the stream that has rested is of no use to other requests")
		}
	})
}

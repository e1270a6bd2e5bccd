package router_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pikoproxy/piko/internal/router"
	"github.com/pikoproxy/piko/internal/tunnel"
)

const endpointWait = 5 * time.Second

func waiting() *router.Router {
	return router.New(router.Options{Settings: router.Settings{EndpointWait: endpointWait, EjectAfter: 5}})
}

type outcome struct {
	err  error
	took time.Duration
}

// try opens a stream and tells how that went.
func try(ctx context.Context, r *router.Router, key string) outcome {
	start := time.Now()
	s, err := r.Open(ctx, tcpRequest(key))
	if err == nil {
		end(s)
	}
	return outcome{err, time.Since(start)}
}

func grownUp(r *router.Router) *router.Router {
	pass(time.Minute)
	return r
}

func TestARequestWaitsForItsEndpoint(t *testing.T) {
	for name, tc := range map[string]struct {
		before func(*router.Router)
		waits  bool
	}{
		"never seen":   {func(r *router.Router) { grownUp(r) }, false},
		"just started": {func(*router.Router) {}, true},
		"left moments ago": {func(r *router.Router) {
			s := newSession("old")
			grownUp(r).Add("e", s, router.UpstreamOptions{})
			r.RemoveSession(s)
		}, true},
		"closing": {func(r *router.Router) {
			s := newSession("old")
			grownUp(r).Add("e", s, router.UpstreamOptions{})
			close(s.closing)
		}, true},
		"refused as draining": {func(r *router.Router) {
			s := newSession("old")
			s.answer = refusing(tunnel.CodeDraining)
			grownUp(r).Add("e", s, router.UpstreamOptions{})
		}, true},
		"left long ago": {func(r *router.Router) {
			s := newSession("old")
			r.Add("e", s, router.UpstreamOptions{})
			r.RemoveSession(s)
			grownUp(r)
		}, false},
		"there, but broken": {func(r *router.Router) {
			s := newSession("old")
			s.answer = refusing(tunnel.CodeServiceUnreachable)
			r.Add("e", s, router.UpstreamOptions{})
		}, false},
		"there, but of another protocol": {func(r *router.Router) {
			r.Add("e", newSession("old"), router.UpstreamOptions{Protocol: tunnel.ProtocolHTTP})
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Run("and is served", func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					r := waiting()
					tc.before(r)
					time.AfterFunc(time.Second, func() { r.Add("e", newSession("new"), router.UpstreamOptions{}) })
					got := try(t.Context(), r, "e")
					if want := (outcome{nil, time.Second}); tc.waits && got != want {
						t.Errorf("got %v, want %v", got, want)
					}
					if !tc.waits && (got.err == nil || got.took != 0) {
						t.Errorf("got %v, want a refusal at once", got)
					}
					pass(time.Second)
				})
			})
			t.Run("and gives up", func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					r := waiting()
					tc.before(r)
					got := try(t.Context(), r, "e")
					if want := map[bool]time.Duration{true: endpointWait}[tc.waits]; got.err == nil || got.took != want {
						t.Errorf("got %v, want an error after %s", got, want)
					}
				})
			})
		})
	}
}

func TestAWaitingRequestCanLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := waiting()
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		got := try(ctx, r, "e")
		wantError(t, got.err, context.Canceled)
		if got.took != time.Second {
			t.Errorf("left after %s, want 1s", got.took)
		}
	})
}

func TestAddWakesAllWaiters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := waiting()
		outcomes := make(chan outcome)
		const n = 100
		for range n {
			go func() { outcomes <- try(t.Context(), r, "e") }()
		}
		synctest.Wait()
		r.Add("other", newSession("a"), router.UpstreamOptions{})
		r.Add("e", newSession("a"), router.UpstreamOptions{})
		for range n {
			if got := <-outcomes; got != (outcome{}) {
				t.Errorf("got %v, want a stream at once", got)
			}
		}
	})
}

func TestTheNumberOfWaitersIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := waiting()
		const n = 4096
		outcomes := make(chan outcome, n)
		for range n {
			go func() { outcomes <- try(t.Context(), r, "e") }()
		}
		synctest.Wait()
		if got := try(t.Context(), r, "f"); got.took != 0 {
			t.Errorf("one more waited %s", got.took)
		}
		for range n {
			<-outcomes
		}
		if got := try(t.Context(), r, "f"); got.took != endpointWait {
			t.Errorf("with the others gone it waited %s, want %s", got.took, endpointWait)
		}
	})
}

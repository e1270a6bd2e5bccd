package router_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pikoproxy/piko/internal/cluster"
	"github.com/pikoproxy/piko/internal/router"
)

// changing are nodes of which something changes just after they were looked up.
type changing struct {
	*others
	calls atomic.Int64
	after func(call int64)
}

func (c *changing) Lookup(key router.Key) []cluster.Holder {
	holders := c.others.Lookup(key)
	c.after(c.calls.Add(1))
	return holders
}

// Whatever comes while a request looks for an upstream is not overlooked, at whatever moment it comes.
func TestWhatComesWhileARequestLooksIsFound(t *testing.T) {
	for moment := int64(1); moment <= 8; moment++ {
		for name, come := range map[string]func(o *others, r *router.Router){
			"another node": func(o *others, _ *router.Router) { o.hold("n3", map[string]int{"e": 1}) },
			"an agent":     func(_ *others, r *router.Router) { r.Add("e", newSession("here"), router.UpstreamOptions{}) },
			"the same node": func(o *others, _ *router.Router) {
				n2, _ := o.Node("n2")
				n2.SetDown(false)
			},
		} {
			t.Run(fmt.Sprint(name, " at look-up ", moment), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					c := &changing{others: newOthers(), after: func(int64) {}}
					r := router.New(router.Options{Remotes: c, Settings: router.Settings{EndpointWait: 5 * time.Second}})
					grownUp(r)
					c.hold("n2", map[string]int{"e": 1}).SetDown(true)
					c.calls.Store(0)
					c.after = func(call int64) {
						if call == moment {
							come(c.others, r)
						}
					}
					sessionOf(t, r, tcpRequest("e"))
				})
			})
		}
	}
}

// An endpoint that another node loses in the moment in which its agent comes here stays.
func TestAnAgentThatComesAsAnotherNodeLosesItStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := grownUp(router.New(router.Options{Remotes: newOthers()}))
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = r.Run(ctx) })
		here := newSession("here")
		keys := make([]string, 5000)
		var moving sync.WaitGroup
		for i := range keys {
			keys[i] = fmt.Sprint("e", i)
			moving.Go(func() { r.Lost(keys[i]) })
			moving.Go(func() { r.Add(keys[i], here, router.UpstreamOptions{}) })
		}
		moving.Wait()
		pass(2 * time.Minute) // what has left is forgotten
		for _, key := range keys {
			if _, err := r.Open(t.Context(), tcpRequest(key)); err != nil {
				t.Fatal(err)
			}
		}
		cancel()
		wg.Wait()
	})
}

// While another node holds an endpoint, the end of the last agent here is not the endpoint's.
func TestAnEndpointIsWaitedForWhereverItWasLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOthers()
		r := o.with(router.Settings{EndpointWait: 5 * time.Second}, "")
		grownUp(r)
		n2 := o.hold("n2", map[string]int{"e": 1})
		here := newSession("here")
		r.Add("e", here, router.UpstreamOptions{})
		r.RemoveSession(here)
		pass(time.Minute)
		n2.SetDown(true)
		time.AfterFunc(time.Second, func() { n2.SetDown(false) })
		if got := sessionOf(t, r, tcpRequest("e")); got != "n2" {
			t.Errorf("the request went to %q", got)
		}
	})
}

// Who tells of a key that came and went may be overtaken by itself.
func TestAKeyThatIsHeldNoMoreIsNotWaitedForForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOthers()
		r := router.New(router.Options{Remotes: o, Settings: router.Settings{EndpointWait: 5 * time.Second}})
		grownUp(r)
		r.Lost("e")
		r.Held("e") // it came before it was lost
		pass(time.Minute)
		start := time.Now()
		_, err := r.Open(t.Context(), tcpRequest("e"))
		wantError(t, err, router.ErrNoUpstream)
		if waited := time.Since(start); waited > 0 {
			t.Errorf("held for %v", waited)
		}
	})
}

package e2e

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/pikoproxy/piko/e2e/classic"
)

// Neither test here is parallel: they count memory, and a busy machine collects garbage late.

func TestManyIdleEndpointsOfOneAgentAreCheap(t *testing.T) {
	n := startNode(t, nodeOptions{})
	service := serve(t, say("ok"))
	const count = 2000
	offers := make([]offer, count)
	for i := range offers {
		offers[i] = offer{Endpoint: fmt.Sprint("e", i), Addr: service}
	}
	launchAgent(t, n, agentOptions{}, offers...)
	took := n.awaitCount(t, count)
	got := n.rss(t)
	t.Logf("2,000 endpoints after %s: %d KiB resident", took.Round(time.Millisecond), got>>10)
	if got > 64<<20 {
		t.Errorf("pikod holds %d MiB for 2,000 idle endpoints: want less than 64", got>>20)
	}
}

func TestManyClassicSessionsAreCheap(t *testing.T) {
	n := startNode(t, nodeOptions{})
	const count = 2000
	errs := make(chan error, count)
	agents := make([]*classic.Agent, count)
	began := time.Now()
	limit := make(chan struct{}, 50)
	var all sync.WaitGroup
	for i := range count {
		all.Go(func() {
			limit <- struct{}{}
			defer func() { <-limit }()
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
			a, err := classic.Listen(ctx, classic.Options{URL: "http://" + n.upstream, Endpoint: fmt.Sprint("e", i)})
			if err != nil {
				errs <- err
				cancel()
				return
			}
			agents[i] = a
			t.Cleanup(func() {
				cancel()
				_ = a.Close()
			})
		})
	}
	all.Wait()
	close(errs)
	for err := range errs {
		t.Fatal(err)
	}
	n.awaitCount(t, count)
	got := n.rss(t)
	t.Logf("2,000 sessions after %s: %d KiB resident", time.Since(began).Round(time.Millisecond), got>>10)
	if got > 160<<20 {
		t.Errorf("pikod holds %d MiB for 2,000 classic sessions: want less than 160", got>>20)
	}
}

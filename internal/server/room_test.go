package server_test

import (
	"net/http"
	"sync"
	"testing"

	"github.com/pikoproxy/piko/internal/config"
)

// Streams that wait for the next request of one endpoint take no room from the requests for another, however many come at once.
func TestIdleStreamsGiveWay(t *testing.T) {
	const most = 16
	n := start(t, func(c *config.Pikod) { c.Upstream.MaxStreamsPerSession = most })
	n.agent("a", "busy", "other")
	for range 3 {
		var running []*request
		for range most {
			running = append(running, n.begin("busy"))
		}
		n.inFlight("busy", most)
		for _, r := range running {
			if got := r.end(t); got.err != nil || got.answer.status != http.StatusOK {
				t.Fatalf("a request for the first endpoint: %v, %v", got.answer, got.err)
			}
		}
		var all sync.WaitGroup
		for range most / 2 {
			all.Go(func() {
				if got, err := n.try(n.url("proxy", "/"), "x-piko-endpoint", "other"); err != nil || got.status != http.StatusOK {
					t.Errorf("a request for the other endpoint: %v, %v", got.status, err)
				}
			})
		}
		all.Wait()
	}
}

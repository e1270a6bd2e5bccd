package e2e

import (
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// zoned runs three nodes, of which the last is in a zone of its own.
func zoned(t *testing.T) *cluster {
	return startClusterOf(t, 3, func(i int) nodeOptions {
		return nodeOptions{Zone: []string{"a", "a", "b"}[i], Proxy: "access_log = false"}
	})
}

// TestAgentsSpreadTheirSessionsOverZones is not parallel: agents are to be back in time, and load of others would hold them up.
func TestAgentsSpreadTheirSessionsOverZones(t *testing.T) {
	c := zoned(t)
	const agents = 5
	for i := range agents {
		e := fmt.Sprint("e", i)
		c.agents(t, 1, offer{Endpoint: e, Addr: serve(t, say("ok"))})
		if each, _ := c.sessions(e); each[2] != 1 {
			t.Errorf("the sessions of an agent are at %v: want one in each zone", each)
		}
	}
	c.nodes[2].kill(t)
	began := time.Now()
	for i := range agents {
		c.awaitSessions(t, fmt.Sprint("e", i), 2, settle)
	}
	if took := time.Since(began); took > bound(3*time.Second) {
		t.Errorf("it took %s until all agents had two sessions in the zone that is left: want at most 3 s", took)
	}
}

// TestClusterPrefersItsZone is not parallel: load of others would shift it.
func TestClusterPrefersItsZone(t *testing.T) {
	const requests = 200
	c := zoned(t)
	var inside atomic.Int64
	all := make(chan struct{}, requests)
	for i, n := range []int{0, 2} {
		service := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/together" {
				if inside.Add(1)%requests == 0 {
					for range requests {
						all <- struct{}{}
					}
				}
				select {
				case <-all:
				case <-r.Context().Done():
					return
				}
			}
			reply(w, "%d", i)
		})
		launchAgent(t, c.nodes[n], agentOptions{Connect: "connections = 1"}, offer{Endpoint: "e", Addr: service})
	}
	c.awaitSessions(t, "e", 2, settle)
	c.weighs(t, "e", 2)
	c.routed(t, "e")
	ask := func(client *http.Client, path string) string {
		a, err := try(client, request(t, http.MethodGet, at("e", path), nil))
		if err != nil || a.StatusCode != http.StatusOK {
			t.Errorf("%s: %v, %v", path, a.Response, err)
		}
		return a.body
	}
	for k, near := range []string{"0", "0", "1"} {
		client, n := c.nodes[k].client(t), 0
		for range requests {
			if ask(client, "/") == near {
				n++
			}
		}
		t.Logf("through n%d %d of %d requests stay in the zone when nothing is busy", k+1, n, requests)
		if n < requests*95/100 {
			t.Errorf("through n%d only %d of %d requests stay in the zone", k+1, n, requests)
		}
		var mu sync.Mutex
		var asking sync.WaitGroup
		stay := 0
		for range requests {
			asking.Go(func() {
				if ask(client, "/together") == near {
					mu.Lock()
					defer mu.Unlock()
					stay++
				}
			})
		}
		asking.Wait()
		t.Logf("through n%d %d of %d requests at once stay in the zone", k+1, stay, requests)
		if stay < requests/2 || stay > requests*3/4 {
			t.Errorf("through n%d %d of %d requests at once stay in the zone: want more than half, and some to go elsewhere", k+1,
				stay, requests)
		}
	}
}

package e2e

import (
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"slices"
	"syscall"
	"testing"
	"time"
)

// TestClusterSharesOutEvenly is not parallel: load of others would shift it.
func TestClusterSharesOutEvenly(t *testing.T) { balanced(t, 2_000, 3) }

// balanced has one agent on one node and nine on another, and wants each to get a tenth of the requests to any node.
func balanced(t *testing.T, requests int, within float64) {
	c := startCluster(t, 3, "")
	weights := make([]int, 10)
	for i := range weights {
		weights[i] = 1
		c.weighed(t, "e", i, min(i, 1), 1)
	}
	c.awaitSessions(t, "e", 10, settle)
	c.shares(t, "e", requests, weights, within)
}

// weighed runs an agent on one node that answers with its number.
func (c *cluster) weighed(t *testing.T, endpoint string, number, node, weight int) *process {
	t.Helper()
	service := serve(t, func(w http.ResponseWriter, _ *http.Request) { reply(w, "%d", number) })
	return launchAgent(t, c.nodes[node], agentOptions{Connect: "connections = 1"},
		offer{Endpoint: endpoint, Addr: service, More: fmt.Sprintf("weight = %d", weight)})
}

// shares sends requests to every node and wants each agent to get its share of them, within some per cent.
func (c *cluster) shares(t *testing.T, endpoint string, requests int, weights []int, within float64) {
	t.Helper()
	sum := 0
	for _, w := range weights {
		sum += w
	}
	c.weighs(t, endpoint, sum)
	c.routed(t, endpoint)
	for k, n := range c.nodes {
		client := n.client(t)
		got := make([]float64, len(weights))
		for range requests {
			a := get(t, client, at(endpoint, "/"))
			if len(a.body) != 1 {
				t.Fatalf("status %d %s", a.StatusCode, a.body)
			}
			got[a.body[0]-'0'] += 100 / float64(requests)
		}
		t.Logf("through n%d agents of the weights %v get %.1f %%", k+1, weights, got)
		for i, w := range weights {
			most := within
			if !quiet {
				most *= 1.5
			}
			if want := 100 * float64(w) / float64(sum); math.Abs(got[i]-want) > most {
				t.Errorf("through n%d agent %d gets %.1f %%: want %.1f %%", k+1, i, got[i], want)
			}
		}
	}
}

// weighs waits until every node knows of all upstreams of an endpoint, which together have this weight.
func (c *cluster) weighs(t *testing.T, endpoint string, want int) {
	t.Helper()
	await(t, "the nodes know what "+endpoint+" weighs", settle, func() error {
		for i, n := range c.nodes {
			_, body, err := fetch("http://" + n.admin + "/status/routes/" + endpoint)
			var routes struct{ Upstreams []struct{ Weight int } }
			if err == nil {
				err = json.Unmarshal(body, &routes)
			}
			sum := 0
			for _, u := range routes.Upstreams {
				sum += u.Weight
			}
			if err != nil || sum != want {
				return fmt.Errorf("n%d knows %s: want a weight of %d: %w", i+1, body, want, or(err))
			}
		}
		return nil
	})
}

// TestClusterHeedsWeights is not parallel: load of others would shift it.
func TestClusterHeedsWeights(t *testing.T) {
	c := startCluster(t, 3, "")
	weights := []int{1, 3, 4}
	for i, w := range weights {
		c.weighed(t, "e", i, min(i, 1), w)
	}
	c.awaitSessions(t, "e", len(weights), settle)
	c.shares(t, "e", 1_000, weights, 5)
}

func TestClusterPassesOverADeadService(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, "")
	onNode(t, c.nodes[0], "e", "ok")
	launchAgent(t, c.nodes[1], agentOptions{Connect: "connections = 1"}, offer{Endpoint: "e", Addr: freeAddress(t)})
	c.awaitSessions(t, "e", 2, settle)
	for k, n := range c.nodes {
		client, failed, began := n.client(t), 0, time.Now()
		for range 500 {
			a := get(t, client, at("e", "/"))
			if a.body == "ok" {
				continue
			}
			if failed++; time.Since(began) > bound(time.Second) {
				t.Errorf("through n%d after %s: status %d %s", k+1, time.Since(began), a.StatusCode, a.body)
			}
		}
		t.Logf("through n%d %d of 500 requests failed", k+1, failed)
	}
}

// TestClusterRebalances is not parallel: it counts what fails under load.
func TestClusterRebalances(t *testing.T) {
	const threshold, agents = 0.2, 9
	c := startClusterOf(t, 3, func(int) nodeOptions {
		return nodeOptions{
			Top: "drain_timeout = \"2s\"", Proxy: "access_log = false",
			Upstream: fmt.Sprintf("[upstream.rebalance]\nthreshold = %v\nshed_rate = 0.3\nmin_sessions = 4", threshold),
		}
	})
	const absent = 2
	c.nodes[absent].signal(t, syscall.SIGTERM)
	c.nodes[absent].exit(t, settle)
	await(t, "the balancer knows", settle, func() error {
		if c.ready[absent].Load() {
			return fmt.Errorf("n%d is still taken for ready", absent+1)
		}
		return nil
	})
	c.agents(t, agents, offer{Endpoint: "e", Addr: serve(t, loadService)})
	f := startCrowd(t, c, crowdOptions{Rate: 150, Endpoints: []string{"e"}, Lasting: time.Second, Brief: 3, Held: 4})
	t.Cleanup(func() { f.end() })
	c.nodes[absent].run(t)
	back := time.Now()
	least := 2 * agents
	took := await(t, "the sessions are spread", 2*settle, func() error {
		each, sum := c.sessions("e")
		least = min(least, sum)
		if sum == 2*agents && float64(slices.Max(each)) <= (1+threshold)*2*agents/3 {
			return nil
		}
		return fmt.Errorf("there are %v", each)
	})
	each, _ := c.sessions("e")
	t.Logf("sessions are spread as %v, %s after the node was back; never fewer than %d of %d", each, took.Round(time.Millisecond), least,
		2*agents)
	if least < agents {
		t.Errorf("only %d sessions were left at a time: want one for each agent at least", least)
	}
	pause(time.Until(back.Add(5 * time.Second))) // some more load
	failures := f.end()
	f.report(t)
	complain(t, append(failures, f.breaks...), f.sent.Load()) // no stream has to end because its agent moves
}

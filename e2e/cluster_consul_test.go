package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestClusterOutlivesConsul stops Consul, moves an agent and starts another meanwhile, and then loses what Consul knows.
func TestClusterOutlivesConsul(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, "")
	onNode(t, c.nodes[0], "stays", "ok")
	moves := onNode(t, c.nodes[0], "moves", "ok")
	c.routed(t, "stays")
	c.routed(t, "moves")
	c.consul.Stop()
	moves.signal(t, 15)
	moves.exit(t, settle)
	onNode(t, c.nodes[1], "moves", "ok")
	onNode(t, c.nodes[2], "new", "ok")
	began := time.Now()
	for _, endpoint := range []string{"moves", "new", "stays"} {
		c.routed(t, endpoint)
	}
	t.Logf("without Consul everything is reachable %s after the agents were there", time.Since(began).Round(time.Millisecond))
	c.quiet(t, 5*time.Second)
	c.consul.Restart()
	c.quiet(t, 2*time.Second)

	c.consul.CLI("kv", "delete", "-recurse", "")
	c.quiet(t, 3*time.Second)
	t.Logf("after the loss of all keys the cluster is whole in %s", c.awaitAll(t).Round(time.Millisecond))
	await(t, "the keys are back", 2*settle, func() error {
		return contains(c.consul.CLI("kv", "get", "-keys", "-recurse", ""), "n1", "n2", "n3")
	})

	c.destroySessions(t)
	c.quiet(t, 3*time.Second)
	t.Logf("after the loss of all sessions the cluster is whole in %s", c.awaitAll(t).Round(time.Millisecond))
	await(t, "all routes are there", 2*settle, func() error {
		for i := range c.nodes {
			for _, endpoint := range []string{"stays", "moves", "new"} {
				if err := c.routesAreTrue(i, endpoint); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// quiet asks for every endpoint through every node for some time and wants every answer.
func (c *cluster) quiet(t *testing.T, lasting time.Duration) {
	t.Helper()
	var clients []*http.Client
	for _, n := range c.nodes {
		clients = append(clients, n.client(t))
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for began := time.Now(); time.Since(began) < lasting; <-tick.C {
		for i, client := range clients {
			for _, endpoint := range []string{"stays", "moves", "new"} {
				if a := get(t, client, at(endpoint, "/")); a.body != "ok" {
					t.Fatalf("%s through n%d: status %d %s", endpoint, i+1, a.StatusCode, a.body)
				}
			}
		}
	}
}

// destroySessions does what an operator can do to all sessions in Consul.
func (c *cluster) destroySessions(t *testing.T) {
	t.Helper()
	_, body, err := fetch("http://" + c.consul.HTTP + "/v1/session/list")
	if err != nil {
		t.Fatal(err)
	}
	var sessions []struct{ ID string }
	if err := json.Unmarshal(body, &sessions); err != nil {
		t.Fatal(err)
	}
	if len(sessions) < 3 {
		t.Fatalf("Consul has the sessions %s: want one for each node", body)
	}
	for _, s := range sessions {
		r := request(t, http.MethodPut, "http://"+c.consul.HTTP+"/v1/session/destroy/"+s.ID, nil)
		if a := do(t, direct, r); a.StatusCode != http.StatusOK {
			t.Fatalf("destroy a session: status %d %s", a.StatusCode, a.body)
		}
	}
}

// TestClusterRoutesANewEndpointAtOnce measures how long it takes from an endpoint's being held by one node to its being known
// to all. It is not parallel: it measures.
func TestClusterRoutesANewEndpointAtOnce(t *testing.T) {
	const count = 30
	c := startCluster(t, 3, "")
	var took []time.Duration
	for i := range count {
		endpoint := fmt.Sprint("e", i)
		// A request that waits for its endpoint would measure the waiting, so the routes are asked.
		a := launchAgent(t, c.nodes[i%3], agentOptions{Connect: "connections = 1"}, offer{Endpoint: endpoint, Addr: "127.0.0.1:9"})
		c.nodes[i%3].awaitEndpoint(t, endpoint, 1)
		began := time.Now()
		await(t, endpoint+" is known to all", settle, func() error {
			for _, n := range c.nodes {
				_, body, err := fetch("http://" + n.admin + "/status/routes/" + endpoint)
				if err == nil && !strings.Contains(string(body), `"state":"healthy"`) {
					err = io.ErrNoProgress
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
		took = append(took, time.Since(began))
		a.signal(t, 15)
		a.exit(t, settle)
	}
	slices.Sort(took)
	median, p99 := took[count/2], took[count*99/100]
	t.Logf("a new endpoint is known to every node after %s at the median, %s at p99", median, p99)
	if median > bound(50*time.Millisecond) || p99 > bound(250*time.Millisecond) {
		t.Errorf("it takes %s at the median, %s at p99: want 50 ms and 250 ms", median, p99)
	}
}

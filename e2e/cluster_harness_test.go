package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pikoproxy/piko/internal/pikotest/consultest"
)

// cluster is a number of nodes, with a balancer before each of their listeners for agents and clients. The balancer takes
// only nodes that say they are ready.
type cluster struct {
	consul           *consultest.Consul
	nodes            []*node
	peers            []string // the addresses of the cluster listeners
	upstreams, proxy string
	ready            []atomic.Bool
	held             []atomic.Pointer[map[string]int] // what the agents of each node offer; never nil once watched
}

// startCluster runs n nodes that know each other. top are lines of TOML for the head of each pikod.toml.
func startCluster(t testing.TB, n int, top string) *cluster {
	t.Helper()
	return startClusterOf(t, n, func(int) nodeOptions { return nodeOptions{Top: top, Proxy: "access_log = false"} })
}

// startClusterOf runs n nodes, each with settings of its own. What stands in More becomes part of [consul], or sections
// after it; a zone goes there as nodeOptions.Zone.
func startClusterOf(t testing.TB, n int, settings func(i int) nodeOptions) *cluster {
	t.Helper()
	c := &cluster{
		consul: consultest.Start(t, consultest.Options{}), ready: make([]atomic.Bool, n),
		held: make([]atomic.Pointer[map[string]int], n),
	}
	for i := range n {
		c.peers = append(c.peers, freeAddress(t))
		o := settings(i)
		in := membership(fmt.Sprint("n", i+1), c.peers[i], clusterSecret, c.consul.HTTP)
		if o.Zone != "" {
			in = strings.Replace(in, "[cluster]\n", fmt.Sprintf("[cluster]\nzone = %q\n", o.Zone), 1)
		}
		o.More = in + o.More
		c.nodes = append(c.nodes, startNode(t, o))
	}
	c.awaitAll(t)
	c.watch(t)
	c.upstreams = c.balance(t, func(n *node) string { return n.upstream })
	c.proxy = c.balance(t, func(n *node) string { return n.proxy })
	return c
}

const clusterSecret = "a secret for tests only"

// membership is the part of pikod.toml that makes a node one of a cluster.
func membership(id, peers, secret, consul string) string {
	return fmt.Sprintf("[cluster]\nnode_id = %q\nlisten = %q\nsecret = %q\n[consul]\naddress = %q\n", id, peers, secret, consul)
}

// states is what a node says of all nodes.
func (n *node) states() (map[string]string, error) {
	status, body, err := fetch("http://" + n.admin + "/status/cluster/nodes")
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("status %d: %s", status, body)
	}
	if err != nil {
		return nil, err
	}
	var lines []struct{ ID, Status string }
	if err := json.Unmarshal(body, &lines); err != nil {
		return nil, err
	}
	all := map[string]string{}
	for _, l := range lines {
		all[l.ID] = l.Status
	}
	return all, nil
}

// awaitAll waits until every node takes every node for up.
func (c *cluster) awaitAll(t testing.TB) time.Duration {
	t.Helper()
	return await(t, "the nodes know each other", 3*settle, func() error {
		for _, n := range c.nodes {
			states, err := n.states()
			if err != nil {
				return err
			}
			if len(states) != len(c.nodes) {
				return fmt.Errorf("one node sees %v", states)
			}
			for id, s := range states {
				if s != "up" {
					return fmt.Errorf("%s is %s", id, s)
				}
			}
		}
		return nil
	})
}

// watch asks the nodes over and over whether they are ready, as a balancer does.
func (c *cluster) watch(t testing.TB) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for i, n := range c.nodes {
		wg.Go(func() {
			tick := time.NewTicker(100 * time.Millisecond)
			defer tick.Stop()
			for {
				status, _, err := fetch("http://" + n.admin + "/ready")
				c.ready[i].Store(err == nil && status == http.StatusOK)
				have, err := n.endpoints()
				if err != nil {
					have = map[string]int{}
				}
				c.held[i].Store(&have)
				select {
				case <-tick.C:
				case <-ctx.Done():
					return
				}
			}
		})
	}
	t.Cleanup(func() { cancel(); wg.Wait() })
	await(t, "all nodes are ready", settle, func() error {
		for i := range c.ready {
			if !c.ready[i].Load() || c.held[i].Load() == nil {
				return fmt.Errorf("n%d is not", i+1)
			}
		}
		return nil
	})
}

// balance listens for connections and leads each to the next node that is ready.
func (c *cluster) balance(t testing.TB, where func(*node) string) string {
	t.Helper()
	var turn atomic.Int64
	return serveTCP(t, func(in *net.TCPConn) {
		for range len(c.nodes) {
			i := int(turn.Add(1)) % len(c.nodes)
			if !c.ready[i].Load() {
				continue
			}
			out, err := net.DialTimeout("tcp", where(c.nodes[i]), settle)
			if err != nil {
				continue
			}
			splice(in, out.(*net.TCPConn))
			return
		}
		_ = in.SetLinger(0)
	})
}

// splice copies both ways until both have ended; what breaks one breaks the other.
func splice(a, b *net.TCPConn) {
	var wg sync.WaitGroup
	for _, d := range [][2]*net.TCPConn{{a, b}, {b, a}} {
		wg.Go(func() {
			if _, err := io.Copy(d[0], d[1]); err != nil {
				_ = a.SetLinger(0)
				_ = b.SetLinger(0)
				_ = a.Close()
				_ = b.Close()
			}
			_ = d[0].CloseWrite()
		})
	}
	wg.Wait()
	_ = b.Close()
}

// routed waits until every node can reach the endpoint.
func (c *cluster) routed(t testing.TB, endpoint string) {
	t.Helper()
	for _, n := range c.nodes {
		client := n.client(t)
		await(t, "requests to "+endpoint+" are answered", settle, func() error {
			a, err := try(client, request(t, http.MethodGet, at(endpoint, "/"), nil))
			if err == nil && a.StatusCode != http.StatusOK {
				err = fmt.Errorf("status %d: %s", a.StatusCode, a.body)
			}
			return err
		})
	}
}

// holders are the nodes to which agents that offer the endpoint are connected.
func (c *cluster) holders(endpoint string) []int {
	var all []int
	for i, n := range c.nodes {
		if have, err := n.endpoints(); err == nil && have[endpoint] > 0 {
			all = append(all, i)
		}
	}
	slices.Sort(all)
	return all
}

// sessions is how many upstreams of an endpoint each node has; none for one that does not answer.
func (c *cluster) sessions(endpoint string) (each []int, sum int) {
	for _, n := range c.nodes {
		have, err := n.endpoints()
		if err != nil {
			have = nil
		}
		each = append(each, have[endpoint])
		sum += have[endpoint]
	}
	return each, sum
}

// awaitSessions waits until the nodes together have exactly that many upstreams of an endpoint.
func (c *cluster) awaitSessions(t testing.TB, endpoint string, want int, within time.Duration) time.Duration {
	t.Helper()
	return await(t, fmt.Sprintf("%d sessions with %s", want, endpoint), within, func() error {
		each, sum := c.sessions(endpoint)
		if sum != want {
			return fmt.Errorf("there are %v", each)
		}
		return nil
	})
}

// pick gives the number of a node that is ready, or -1.
func (c *cluster) pick(turn int) int {
	for k := range c.nodes {
		if i := (turn + k) % len(c.nodes); c.ready[i].Load() {
			return i
		}
	}
	return -1
}

// pickBy gives the number of a node that is ready, and has agents for the endpoint or has none, as is asked for; else -1.
func (c *cluster) pickBy(turn int, endpoint string, holds bool) int {
	for k := range c.nodes {
		i := (turn + k) % len(c.nodes)
		if c.ready[i].Load() && ((*c.held[i].Load())[endpoint] > 0) == holds {
			return i
		}
	}
	return -1
}

// agents runs agents that reach the cluster through its balancer and keep two sessions each.
func (c *cluster) agents(t testing.TB, count int, offers ...offer) {
	t.Helper()
	for range count {
		launchAgent(t, c.nodes[0], agentOptions{URL: "http://" + c.upstreams, Connect: "connections = 2"}, offers...)
	}
	for _, o := range offers {
		c.awaitSessions(t, o.Endpoint, 2*count, settle)
	}
}

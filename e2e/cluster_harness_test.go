package e2e

import (
	"context"
	"encoding/json"
	"errors"
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
)

// startConsul runs a real Consul that keeps all in memory, and gives the address of its API.
func startConsul(t testing.TB) (api string, p *process) {
	t.Helper()
	port := func() (address, port string) {
		address = freeAddress(t)
		_, port, _ = strings.Cut(address, ":")
		return address, port
	}
	api, apiPort := port()
	_, rpc := port()
	_, serf := port()
	p = start(t, nil, "consul", "agent", "-dev", "-bind=127.0.0.1", "-client=127.0.0.1", "-log-level=error",
		"-http-port="+apiPort, "-server-port="+rpc, "-serf-lan-port="+serf, "-serf-wan-port=-1", "-grpc-port=-1",
		"-grpc-tls-port=-1", "-dns-port=-1", "-hcl=leave_on_terminate=true")
	await(t, "Consul has a leader", 2*settle, func() error {
		status, body, err := fetch("http://" + api + "/v1/status/leader")
		if err == nil && (status != http.StatusOK || !strings.Contains(string(body), ":")) {
			err = fmt.Errorf("status %d: %s", status, body)
		}
		return err
	})
	return api, p
}

// cluster is a number of nodes, with a balancer before each of their listeners for agents and clients. The balancer takes
// only nodes that say they are ready.
type cluster struct {
	nodes            []*node
	upstreams, proxy string
	ready            []atomic.Bool
}

// startCluster runs n nodes that know each other. top are lines of TOML for the head of each pikod.toml.
func startCluster(t testing.TB, n int, top string) *cluster {
	t.Helper()
	api, _ := startConsul(t)
	c := &cluster{ready: make([]atomic.Bool, n)}
	for i := range n {
		more := fmt.Sprintf("[cluster]\nnode_id = \"n%d\"\nlisten = %q\nsecret = \"a secret for tests only\"\n[consul]\naddress = %q\n",
			i+1, freeAddress(t), api)
		c.nodes = append(c.nodes, startNode(t, nodeOptions{Top: top, More: more, Proxy: "access_log = false"}))
	}
	c.awaitAll(t)
	c.watch(t)
	c.upstreams = c.balance(t, func(n *node) string { return n.upstream })
	c.proxy = c.balance(t, func(n *node) string { return n.proxy })
	return c
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
func (c *cluster) awaitAll(t testing.TB) {
	t.Helper()
	await(t, "the nodes know each other", 2*settle, func() error {
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
			if !c.ready[i].Load() {
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
			out, err := net.DialTimeout("tcp", where(c.nodes[i]), 2*time.Second)
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

// load sends requests at a steady rate and counts what fails.
type load struct {
	sent, failed atomic.Int64
	mu           sync.Mutex
	failures     []string
	stop         func()
}

// startLoad sends rate requests a second for an endpoint to an address until stop is called, which waits for the last.
func startLoad(t testing.TB, address, endpoint string, rate int) *load {
	l := &load{}
	transport := &http.Transport{DialContext: dialTo(address), MaxIdleConnsPerHost: 64}
	client := &http.Client{Transport: transport, Timeout: 30 * time.Second}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(time.Second / time.Duration(rate))
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				wg.Go(func() { l.one(client, at(endpoint, "/")) })
			case <-ctx.Done():
				return
			}
		}
	})
	var once sync.Once
	l.stop = func() {
		once.Do(func() { cancel(); wg.Wait(); transport.CloseIdleConnections() })
	}
	t.Cleanup(l.stop)
	return l
}

func (l *load) one(client *http.Client, url string) {
	l.sent.Add(1)
	began := time.Now()
	err := func() error {
		resp, err := client.Get(url)
		if err != nil {
			return err
		}
		body, err := io.ReadAll(resp.Body)
		if err := errors.Join(err, resp.Body.Close()); err != nil {
			return err
		}
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("status %d: %s", resp.StatusCode, body)
		}
		return nil
	}()
	if err == nil {
		return
	}
	l.failed.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failures = append(l.failures, fmt.Sprintf("%s after %s: %v", began.Format("15:04:05.000"), time.Since(began).Round(time.Millisecond), err))
}

// shown is the first few failures.
func (l *load) shown() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.failures[:min(len(l.failures), 10)], "\n")
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

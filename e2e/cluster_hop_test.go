//go:build cluster

package e2e

import (
	"bufio"
	"net"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"
)

// TestLongHop measures what it costs that a request comes to a node without an agent for it.
func TestLongHop(t *testing.T) {
	const clients, each, rounds = 1000, 12, 5
	c := startCluster(t, 2, "")
	onNode(t, c.nodes[0], "e", "ok")
	c.routed(t, "e")
	crowds := [][]net.Conn{keepAlive(t, c.nodes[0], clients), keepAlive(t, c.nodes[1], clients)}
	var costs [2][]time.Duration // of one request: to the node with the agent, and to the other
	links := c.links(t)
	for round := range rounds + 1 {
		for k, conns := range crowds {
			before := c.nodes[0].cpu(t) + c.nodes[1].cpu(t)
			chorus(t, conns, each)
			spent := c.nodes[0].cpu(t) + c.nodes[1].cpu(t) - before
			if round > 0 { // the first one opens streams
				costs[k] = append(costs[k], spent/(clients*each))
			}
		}
	}
	for link := range c.links(t) {
		if !links[link] {
			t.Errorf("requests opened the connection %s: want the sessions used that are there", link)
		}
	}
	slices.Sort(costs[0])
	slices.Sort(costs[1])
	local, far := costs[0][rounds/2], costs[1][rounds/2]
	ratio := float64(far-local) / float64(local)
	t.Logf("a request costs %s of processor time on its node, and %s on two: the hop adds %.2f of a local request", local, far, ratio)
	if ratio > 1.6 {
		t.Errorf("the hop costs %.2f times a local request: want at most 1.6", ratio)
	}
}

// keepAlive opens connections to a node that stay.
func keepAlive(t *testing.T, n *node, count int) []net.Conn {
	var all []net.Conn
	for range count {
		all = append(all, connect(t, n.proxy))
	}
	return all
}

// chorus sends requests on all connections at once, on each one after the other.
func chorus(t *testing.T, conns []net.Conn, each int) {
	t.Helper()
	var singing sync.WaitGroup
	for _, conn := range conns {
		singing.Go(func() {
			r := bufio.NewReader(conn)
			for range each {
				if _, err := conn.Write([]byte("GET / HTTP/1.1\r\nHost: e.piko.test\r\n\r\n")); err != nil {
					t.Error(err)
					return
				}
				resp, err := http.ReadResponse(r, nil)
				if err != nil || resp.StatusCode != http.StatusOK || resp.ContentLength != 2 {
					t.Errorf("%v, %v", resp, err)
					return
				}
				if _, err := r.Discard(2); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	singing.Wait()
}

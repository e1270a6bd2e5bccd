package server_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/pikotest/consultest"
)

// member starts a node of a cluster. The node ends with the test, or earlier by stop.
func member(t *testing.T, c *consultest.Consul, id string, change func(*config.Pikod)) *running {
	t.Helper()
	return start(t, func(p *config.Pikod) {
		p.Cluster.NodeID = id
		p.Cluster.Listen = "127.0.0.1:0"
		p.Cluster.Secret = config.NewSecret(secret)
		p.Consul.Address = config.List{c.HTTP}
		p.Proxy.EndpointWait = config.Duration(5 * time.Second)
		if change != nil {
			change(p)
		}
	})
}

type nodeLine struct {
	ID        string `json:"id"`
	Status    string `json:"status"`
	Endpoints int    `json:"endpoints"`
	Upstreams int    `json:"upstreams"`
}

// wantNodes waits until a node sees these nodes and no others, each as "id status endpoints".
func (n *running) wantNodes(want ...string) {
	n.t.Helper()
	var got []string
	defer func() {
		if n.t.Failed() {
			n.t.Logf("nodes are %q, want %q", got, want)
		}
	}()
	eventually(n.t, "the nodes", func() bool {
		var lines []nodeLine
		n.status("/status/cluster/nodes", &lines)
		got = nil
		for _, l := range lines {
			got = append(got, fmt.Sprintf("%s %s %d", l.ID, l.Status, l.Endpoints))
		}
		return strings.Join(got, "|") == strings.Join(want, "|")
	})
}

func TestAClusterRoutesFromEveryNode(t *testing.T) {
	c := consultest.Start(t, consultest.Options{})
	a := member(t, c, "a", nil)
	b := member(t, c, "b", nil)
	d := member(t, c, "d", nil)
	for _, n := range []*running{a, b, d} {
		n.wantNodes("a up 0", "b up 0", "d up 0")
	}
	agent := b.agent("one", "my-endpoint")
	// listening was answered: no waiting from here on.
	for _, n := range []*running{a, b, d} {
		n.ask("my-endpoint").want(t, 200, "one")
		n.wantNodes("a up 0", "b up 1", "d up 0")
	}
	if err := agent.Unlisten("my-endpoint"); err != nil {
		t.Fatal(err)
	}
	for _, n := range []*running{a, b, d} {
		n.wantNodes("a up 0", "b up 0", "d up 0")
	}
	agent.listen("my-endpoint")
	b.stop()
	if err := await(t, "the end of b", b.ended); err != nil {
		t.Errorf("b ended with %v", err)
	}
	for _, n := range []*running{a, d} {
		n.wantNodes("a up 0", "d up 0")
	}
}

// One agent here and nine there: each gets a tenth of the requests, whichever node they are sent to.
func TestAgentsShareEvenlyWhereverTheyAre(t *testing.T) {
	const requests = 1500 // of the one that is alone, chance takes or gives 1 % then
	c := consultest.Start(t, consultest.Options{})
	a := member(t, c, "a", nil)
	b := member(t, c, "b", nil)
	d := member(t, c, "d", nil)
	a.wantNodes("a up 0", "b up 0", "d up 0")
	b.wantNodes("a up 0", "b up 0", "d up 0")
	a.agent("0", "e")
	for i := 1; i < 10; i++ {
		b.agent(fmt.Sprint(i), "e")
	}
	for _, n := range []*running{a, b, d} {
		got := map[string]int{}
		for range requests {
			got[n.ask("e").body]++
		}
		for i := range 10 {
			if share := got[fmt.Sprint(i)]; share < requests*7/100 || share > requests*13/100 {
				t.Errorf("sent to %s, agent %d got %d of %d requests: %v", n.server.ID(), i, share, requests, got)
			}
		}
	}
}

func TestANodeReadyOnlyWithTheDirectory(t *testing.T) {
	c := consultest.Start(t, consultest.Options{})
	a := member(t, c, "a", nil)
	if got := a.get(a.url("admin", "/ready")); got.status != 200 {
		t.Errorf("/ready answers %d", got.status)
	}
	if got := a.get(a.url("admin", "/metrics")); !strings.Contains(got.body, "piko_cluster_peers{status=\"up\"} 0") {
		t.Error("no metric counts the peers")
	}
}

// A stopped node's agents are elsewhere before its streams for peers end, and nobody notices.
func TestANodeThatStopsTakesNoRequestWithIt(t *testing.T) {
	c := consultest.Start(t, consultest.Options{})
	a := member(t, c, "a", nil)
	b := member(t, c, "b", nil)
	a.wantNodes("a up 0", "b up 0")
	b.wantNodes("a up 0", "b up 0")
	b.agent("one", "e")
	a.agent("two", "e")
	failed := make(chan string, 1)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			//nolint:contextcheck // ctx only says when to stop asking; a request that runs then is not to be cut
			got, err := a.try(a.url("proxy", "/"), "x-piko-endpoint", "e")
			if ctx.Err() == nil && (err != nil || got.status != 200) {
				select {
				case failed <- fmt.Sprint(got.status, got.body, err):
				default:
				}
			}
		}
	})
	b.stop()
	err := await(t, "the end of b", b.ended)
	cancel()
	wg.Wait()
	if err != nil {
		t.Errorf("b ended with %v", err)
	}
	select {
	case f := <-failed:
		t.Errorf("a request failed: %s", f)
	default:
	}
}

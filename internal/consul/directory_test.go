package consul

import (
	"context"
	"maps"
	"net/http"
	"testing"
	"time"

	"github.com/pikoproxy/piko/internal/cluster"
	"github.com/pikoproxy/piko/internal/pikotest/consultest"
)

func operatorHTTP(t *testing.T) *http.Client {
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: patience}
}

func TestNodesSeeEachOthersKeys(t *testing.T) {
	w := newTown(t, consultest.Start(t, consultest.Options{}))
	a, b, c := w.join("a"), w.join("b"), w.join("c")
	a.local.Add("one", 1)
	a.publish("one")
	for _, h := range []*house{a, b, c} {
		h.isReady()
	}
	b.sees("one", map[string]int{"a": 1})
	c.sees("one", map[string]int{"a": 1})
	until(t, "each knows both others", func() bool {
		return len(a.table.Nodes()) == 2 && len(b.table.Nodes()) == 2 && len(c.table.Nodes()) == 2
	})

	var slowest time.Duration
	for range 10 {
		b.local.Add("two", 1)
		slowest = max(slowest, a.sees("two", map[string]int{"b": 1}), c.sees("two", map[string]int{"b": 1}))
		b.local.Add("two", -1)
		slowest = max(slowest, a.sees("two", map[string]int{}), c.sees("two", map[string]int{}))
	}
	if slowest > 250*time.Millisecond {
		t.Errorf("the slowest of 40 changes took %v, want at most 250 ms", slowest)
	}
	b.local.Add("shared", 1)
	c.local.Add("shared", 1)
	a.sees("shared", map[string]int{"b": 1, "c": 1})
	if n := a.metric("piko_consul_gap_reloads_total"); n > 0 {
		t.Errorf("%v lists because of gaps, want none", n)
	}
	until(t, "writes are seen by their own node", func() bool { return b.metric("piko_consul_propagation_seconds") > 0 })

	b.SetState(cluster.Draining)
	until(t, "b is seen draining", func() bool {
		r, ok := a.table.Node("b")
		return ok && r.Node().State == cluster.Draining
	})
	b.leave()
	a.sees("shared", map[string]int{"c": 1})
	if _, there := a.table.Node("b"); there {
		t.Error("b has left and is still a node")
	}
	if err := b.stop(); err != nil {
		t.Errorf("Run of b: %v", err)
	}
	nodes, _, err := w.operator().Catalog().Nodes(nil)
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, n := range nodes {
		if n.Meta[metaCluster] == "test" {
			names[n.Node] = true
		}
	}
	if want := map[string]bool{"pikod-test-a": true, "pikod-test-c": true}; !maps.Equal(names, want) {
		t.Errorf("the catalog has %v, want a and c", names)
	}
}

func TestPublishedWaitsForConsul(t *testing.T) {
	w := newTown(t, consultest.Start(t, consultest.Options{}))
	a := w.join("a")
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := a.Published(ctx, "nothing"); err == nil {
		t.Error("a key that nobody holds was published")
	}
	a.local.Add("tenant/one", 3)
	a.publish("tenant/one")
	pair, _, err := w.operator().KV().Get(a.headKey("a"), nil)
	if err != nil || pair == nil {
		t.Fatal(pair, err)
	}
	h, err := decodeHead(pair.Value)
	if err != nil || h.Keys != 1 {
		t.Errorf("head = %+v, %v; want one key", h, err)
	}
	b := w.join("b")
	b.isReady()
	b.remembers("tenant/one", map[string]int{"a": 3})
	a.local.Add("tenant/one", 1) // a weight only: that may take longer, and comes with the next urgent change at the latest
	a.local.Add("two", 1)
	b.sees("two", map[string]int{"a": 1})
	b.remembers("tenant/one", map[string]int{"a": 4})
}

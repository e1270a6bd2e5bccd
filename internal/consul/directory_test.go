package consul

import (
	"context"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/pikoproxy/piko/internal/cluster"
	"github.com/pikoproxy/piko/internal/pikotest/consultest"
)

// TestDirectory tries what needs no harm to Consul itself, at the same time in one Consul.
func TestDirectory(t *testing.T) {
	c := consultest.Start(t, consultest.Options{})
	// First and alone, since it measures.
	t.Run("nodes see each other's keys", func(t *testing.T) { seeEachOther(t, newTown(t, c)) })
	for name, try := range map[string]func(*testing.T, *town){
		"published waits for consul":                    waitForConsul,
		"a destroyed session costs no route":            destroySession,
		"a deleted tree costs no route":                 deleteTree,
		"a node removed from the catalog comes back":    deregister,
		"renewals that stop cost no route":              stopRenewals,
		"a dead node is dropped":                        dropDead,
		"an edited key is repaired":                     repairEdited,
		"a bucket that was changed is found":            verifyBuckets,
		"a name belongs to one living node":             refuseDuplicate,
		"a node that starts again takes its name over":  takeOver,
		"what dead nodes leave behind is swept up":      sweepUp,
		"many endpoints spread over more buckets":       growBuckets,
		"consul's dns answers for living nodes":         answerDNS,
		"endpoints are tags if asked for":               projectTags,
		"values that lie are passed over":               passOver,
		"records of the past do not replace the living": resistThePast,
		"a living node is believed more than a record":  believeTheLiving,
		"a weight alone may wait":                       delayWeights,
		"nodes share values":                            shareValues,
		"one node at a time holds a lock":               holdLock,
		"a lock that nobody knows of is given back":     giveLocksBack,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			try(t, newTown(t, c))
		})
	}
}

func seeEachOther(t *testing.T, w *town) {
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

	var took []time.Duration
	for range 10 {
		b.local.Add("two", 1)
		took = append(took, a.sees("two", map[string]int{"b": 1}), c.sees("two", map[string]int{"b": 1}))
		b.local.Add("two", -1)
		took = append(took, a.sees("two", map[string]int{}), c.sees("two", map[string]int{}))
	}
	slices.Sort(took)
	if median := took[len(took)/2]; median > patience/8 { // with processors to spare it is some tens of milliseconds
		t.Errorf("half of %d changes took more than %v, want them told at once", len(took), median)
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
	until(t, "b is no node any more", func() bool { _, there := a.table.Node("b"); return !there })
	if err := b.stop(); err != nil {
		t.Errorf("Run of b: %v", err)
	}
	nodes, _, err := w.client.Catalog().Nodes(nil)
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, n := range nodes {
		if n.Meta[metaCluster] == w.cluster {
			names[n.Node] = true
		}
	}
	if want := map[string]bool{a.catalog: true, c.catalog: true}; !maps.Equal(names, want) {
		t.Errorf("the catalog has %v, want a and c", names)
	}
}

func waitForConsul(t *testing.T, w *town) {
	a := w.join("a")
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := a.Published(ctx, "nothing"); err == nil {
		t.Error("a key that nobody holds was published")
	}
	a.local.Add("tenant/one", 3)
	a.publish("tenant/one")
	pair, _, err := w.client.KV().Get(a.headKey("a"), nil)
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
}

func delayWeights(t *testing.T, w *town) {
	w.pace.lazy = time.Second
	a, b := w.join("a"), w.join("b")
	a.local.Add("one", 3)
	b.sees("one", map[string]int{"a": 3})
	began := time.Now()
	a.local.Add("one", 1)
	b.sees("one", map[string]int{"a": 4})
	if took := time.Since(began); took < w.pace.lazy/2 {
		t.Errorf("a change of weight was written after %v, want it to wait for others", took)
	}
	a.local.Add("one", 1)
	a.local.Add("two", 1) // what is urgent takes it along
	b.sees("two", map[string]int{"a": 1})
	b.remembers("one", map[string]int{"a": 5})
}

package cluster_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/pikoproxy/piko/internal/cluster"
)

func meet(table *cluster.Table, id, incarnation string) *cluster.Remote {
	return table.Meet(cluster.Node{ID: id, Incarnation: incarnation, State: cluster.Up})
}

func holders(table *cluster.Table, key string) map[string]int {
	held := map[string]int{}
	for _, h := range table.Lookup(key) {
		held[h.Remote.Node().ID] += h.Weight
	}
	return held
}

func wantHolders(t *testing.T, table *cluster.Table, key string, want map[string]int) {
	t.Helper()
	if got := holders(table, key); !maps.Equal(got, want) {
		t.Errorf("holders of %q = %v, want %v", key, got, want)
	}
}

func TestDeltaAppliesWhereItsStartIsKnown(t *testing.T) {
	table := cluster.NewTable()
	meet(table, "n1", "i1")
	d := cluster.Delta{From: 3, To: 5, Weights: map[string]int{"a": 2}}
	if table.Apply("n1", "i1", d) {
		t.Error("a delta applied before any snapshot")
	}
	table.Replace("n1", "i1", 2, map[string]int{"old": 1})
	if table.Apply("n1", "i1", d) {
		t.Error("a delta applied over a gap")
	}
	table.Replace("n1", "i1", 4, map[string]int{"old": 1})
	if !table.Apply("n1", "i1", d) {
		t.Error("a delta that starts before a known state did not apply")
	}
	wantHolders(t, table, "a", map[string]int{"n1": 2})
	if !table.Apply("n1", "i1", cluster.Delta{From: 0, To: 5, Weights: map[string]int{"a": 9}}) {
		t.Error("an old delta asked for a snapshot")
	}
	wantHolders(t, table, "a", map[string]int{"n1": 2})
	table.Replace("n1", "i1", 4, nil)
	wantHolders(t, table, "a", map[string]int{"n1": 2}) // an old snapshot changes nothing
	table.Apply("n1", "i1", cluster.Delta{From: 5, To: 6, Weights: map[string]int{"a": 0}})
	wantHolders(t, table, "a", map[string]int{})
	if table.Apply("n1", "i2", d) || table.Apply("n2", "i1", d) {
		t.Error("a delta applied to another incarnation or node")
	}
}

func TestNewIncarnationReplacesTheOld(t *testing.T) {
	table := cluster.NewTable()
	old := meet(table, "n1", "i1")
	table.Replace("n1", "i1", 1, map[string]int{"a": 1, "b": 1})
	if meet(table, "n1", "i1") != old {
		t.Error("the same incarnation became another node")
	}
	meet(table, "n1", "i2")
	wantHolders(t, table, "a", map[string]int{})
	table.Replace("n1", "i2", 1, map[string]int{"b": 3})
	table.Forget("n1", "i1") // too late: that one is gone
	wantHolders(t, table, "b", map[string]int{"n1": 3})
	if table.Meet(cluster.Node{ID: "n1", Incarnation: "i2", State: cluster.Left}) != nil {
		t.Error("a node that has left was met")
	}
	wantHolders(t, table, "b", map[string]int{})
	if n := table.Nodes(); len(n) != 0 {
		t.Errorf("nodes = %v, want none", n)
	}
}

func TestANodeKnowsBestWhetherItIsUp(t *testing.T) {
	table := cluster.NewTable()
	n1 := meet(table, "n1", "i1")
	record := n1.Node()
	record.State = cluster.Draining
	table.Meet(record)
	table.SetUp("n1", "i0")
	if n1.Standing() != cluster.Leaving {
		t.Errorf("the node is %s after a word of its former life, want it to drain", n1.Standing())
	}
	table.SetUp("n1", "i1")
	if n1.Standing() != cluster.Good {
		t.Errorf("the node is %s, though it says that it is up", n1.Standing())
	}
	table.SetDraining("n1", "i1")
	record.State = cluster.Up
	table.Meet(record)
	if n1.Standing() != cluster.Leaving {
		t.Errorf("the node is %s after a late record, want it to drain", n1.Standing())
	}
}

func TestHeldIsAnnouncedOnce(t *testing.T) {
	table := cluster.NewTable()
	var held []string
	table.OnHeld(func(key string) {
		if len(table.Lookup(key)) == 0 {
			t.Errorf("%q was announced before it could be looked up", key)
		}
		held = append(held, key)
	})
	meet(table, "n1", "i1")
	table.Replace("n1", "i1", 1, map[string]int{"a": 1})
	table.Apply("n1", "i1", cluster.Delta{From: 1, To: 2, Weights: map[string]int{"a": 2, "b": 1}})
	if !slices.Equal(held, []string{"a", "b"}) {
		t.Errorf("announced %v, want a and b once each", held)
	}
}

// A follower that loses, repeats and reorders deltas, and fetches a snapshot when told so, ends with what Local has.
func TestFollowersConverge(t *testing.T) {
	local, table := cluster.NewLocal(), cluster.NewTable()
	meet(table, "n1", "i1")
	cursor := local.Follow()
	defer cursor.Close()
	random := rand.New(rand.NewPCG(1, 2))
	var kept []cluster.Delta
	for range 5000 {
		local.Add(fmt.Sprint("e", random.IntN(50)), random.IntN(7)-3)
		switch random.IntN(6) {
		case 0:
			d := cursor.Next()
			if random.IntN(3) == 0 {
				cursor.Rewind(d) // not delivered
				continue
			}
			kept = append(kept, d)
			if !table.Apply("n1", "i1", d) {
				seq, weights := local.Snapshot()
				table.Replace("n1", "i1", seq, weights)
			}
		case 1:
			if len(kept) > 0 {
				table.Apply("n1", "i1", kept[random.IntN(len(kept))])
			}
		case 2:
			if random.IntN(20) == 0 {
				cursor.Next() // lost for good: the next one leaves a gap
			}
		}
	}
	if !table.Apply("n1", "i1", cursor.Next()) {
		seq, weights := local.Snapshot()
		table.Replace("n1", "i1", seq, weights)
	}
	_, want := local.Snapshot()
	if got := table.Weights("n1"); !maps.Equal(got, want) {
		t.Errorf("table has %v, want %v", got, want)
	}
	for key, weight := range want {
		wantHolders(t, table, key, map[string]int{"n1": weight})
	}
}

func TestCursorWakesAndMerges(t *testing.T) {
	local := cluster.NewLocal()
	local.Add("before", 1)
	cursor := local.Follow()
	defer cursor.Close()
	local.Add("a", 1)
	local.Add("a", 2)
	local.Add("b", 1)
	local.Add("b", -1)
	<-cursor.Changed()
	d := cursor.Next()
	if want := map[string]int{"a": 3, "b": 0}; !maps.Equal(d.Weights, want) || d.From != 1 || d.To != 5 {
		t.Errorf("Next = %+v, want %v from 1 to 5", d, want)
	}
	local.Add("a", -5)
	if local.Weight("a") != 0 || local.Len() != 1 {
		t.Errorf("a sum went below zero: %d", local.Weight("a"))
	}
}

func TestTableUnderRace(t *testing.T) {
	table := cluster.NewTable()
	var wg sync.WaitGroup
	for n := range 4 {
		wg.Go(func() {
			id := fmt.Sprint("n", n)
			for i := range 500 {
				incarnation := fmt.Sprint(i / 100)
				meet(table, id, incarnation)
				table.Replace(id, incarnation, uint64(i), map[string]int{"a": 1 + i, "b": i % 2})
				table.Lookup("a")
				if i%50 == 0 {
					table.Forget(id, incarnation)
				}
			}
		})
	}
	wg.Wait()
	for n := range 4 {
		table.Forget(fmt.Sprint("n", n), "4")
	}
	wantHolders(t, table, "a", map[string]int{})
}

func BenchmarkLookup(b *testing.B) {
	table := cluster.NewTable()
	meet(table, "n1", "i1")
	weights := map[string]int{}
	for i := range 100_000 {
		weights[fmt.Sprint("endpoint-", i)] = 1
	}
	table.Replace("n1", "i1", 1, weights)
	b.ReportAllocs()
	for b.Loop() {
		if len(table.Lookup("endpoint-500")) != 1 {
			b.Fatal("not found")
		}
	}
}

// Idle streams to an agent that has left are to be closed, in whatever way it becomes known.
func TestEveryChangeOfAKeyIsTold(t *testing.T) {
	table := cluster.NewTable()
	table.Meet(cluster.Node{ID: "n", Incarnation: "1", State: cluster.Up})
	table.Replace("n", "1", 1, map[string]int{"a": 1, "b": 1, "c": 1})
	var touched []string
	table.OnTouched(func(_ *cluster.Remote, key string) { touched = append(touched, key) })
	for _, change := range []struct {
		by   func() bool
		want []string
	}{
		{func() bool {
			return table.Apply("n", "1", cluster.Delta{From: 1, To: 2, Weights: map[string]int{"a": 0}})
		}, []string{"a"}},
		{func() bool { table.Replace("n", "1", 3, map[string]int{"c": 2, "d": 1}); return true }, []string{"b", "c", "d"}},
	} {
		touched = nil
		if ok := change.by(); !ok {
			t.Error("not applied")
		}
		if slices.Sort(touched); !slices.Equal(touched, change.want) {
			t.Errorf("told of %v, want %v", touched, change.want)
		}
	}
}

package consul

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/pikoproxy/piko/internal/cluster"
)

// pair is two nodes, of which a holds "kept".
func (w *town) pair() (a, b *house) {
	a, b = w.join("a"), w.join("b")
	a.local.Add("kept", 1)
	b.local.Add("theirs", 1)
	b.sees("kept", map[string]int{"a": 1})
	a.sees("theirs", map[string]int{"b": 1})
	return a, b
}

// keeps runs f and fails if b loses sight of "kept" before f returns.
func (h *house) keeps(f func()) {
	h.t.Helper()
	done, result := make(chan struct{}), make(chan int, 1)
	go func() {
		lost := 0
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				if len(h.table.Lookup("kept")) == 0 {
					lost++
				}
			case <-done:
				result <- lost
				return
			}
		}
	}()
	f()
	close(done)
	if lost := <-result; lost > 0 {
		h.t.Errorf("%s lost sight of a key %d times", h.node.ID, lost)
	}
}

// goesOn fails unless changes of a still reach b.
func goesOn(a, b *house) {
	a.t.Helper()
	key, id := "after-"+a.node.ID, a.node.ID
	a.local.Add(key, 1)
	b.sees(key, map[string]int{id: 1})
	until(a.t, id+" is there and in no doubt", func() bool {
		r, ok := b.table.Node(id)
		return ok && r.Doubt() == ""
	})
}

func sessionOf(h *house) string { return *h.session.Load() }

func destroySession(t *testing.T, w *town) {
	w.pace.renew = 200 * time.Millisecond
	a, b := w.pair()
	b.keeps(func() {
		old := sessionOf(a)
		if _, err := w.client.Session().Destroy(old, nil); err != nil {
			t.Fatal(err)
		}
		until(t, "a has another session", func() bool { s := sessionOf(a); return s != "" && s != old })
		goesOn(a, b)
	})
	if n := b.metric("piko_consul_gap_reloads_total"); n > 0 {
		t.Errorf("the loss of a session cost %v lists, want none", n)
	}
}

func deleteTree(t *testing.T, w *town) {
	a, b := w.pair()
	session := sessionOf(a)
	b.keeps(func() {
		w.consul.CLI("kv", "delete", "-recurse", a.base)
		until(t, "a has written everything again", func() bool {
			pairs, _, err := w.client.KV().List(a.nodePrefix("a"), nil)
			return err == nil && len(pairs) >= 2 && pairs[0].Session == session
		})
		goesOn(a, b)
		goesOn(b, a)
	})
	if sessionOf(a) != session {
		t.Error("the session was given up, though it lived")
	}
	if n := a.metric("piko_consul_repairs_total"); n < 1 {
		t.Errorf("%v repairs, want at least one", n)
	}
}

func deregister(t *testing.T, w *town) {
	w.pace.renew = 200 * time.Millisecond
	a, b := w.pair()
	b.keeps(func() {
		_, err := w.client.Catalog().Deregister(&api.CatalogDeregistration{Node: a.catalog}, nil)
		if err != nil {
			t.Fatal(err)
		}
		until(t, "a is back in the catalog", func() bool {
			entries, _, err := w.client.Health().Service(serviceName, w.cluster, true, nil)
			return err == nil && len(entries) == 2
		})
		goesOn(a, b)
	})
}

// stopRenewals has a node live on that Consul takes for dead.
func stopRenewals(t *testing.T, w *town) {
	b := w.join("b")
	w.pace.renew = time.Hour
	began := time.Now() // before a has a session
	a := w.join("a")
	a.local.Add("kept", 1)
	b.sees("kept", map[string]int{"a": 1})
	b.keeps(func() {
		remote, _ := b.table.Node("a")
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for remote.Doubt() != cluster.Orphan {
			if <-tick.C; time.Since(began) > 2*patience {
				t.Fatal("the record of a node without renewals never vanished")
			}
		}
		if took := time.Since(began); took < 10*time.Second {
			t.Errorf("the session expired after %v, want about 20 s", took)
		}
		a.local.Add("after", 1) // the node finds out with its next write
		b.sees("after", map[string]int{"a": 1})
		until(t, "a is in doubt no more", func() bool { return remote.Doubt() == "" })
	})
}

func dropDead(t *testing.T, w *town) {
	w.pace.probe = 200 * time.Millisecond
	a, b := w.pair()
	session := sessionOf(a)
	if err := a.stop(); err != nil { // as a crash: it does not leave, and does not answer
		t.Error(err)
	}
	if _, err := w.client.Session().Destroy(session, nil); err != nil {
		t.Fatal(err)
	}
	if took := b.sees("kept", map[string]int{}); took > patience/4 {
		t.Errorf("a dead node was dropped after %v", took)
	}
	if n := len(b.table.Nodes()); n != 0 {
		t.Errorf("%d nodes, want none", n)
	}
	again := w.join("a")
	again.local.Add("kept", 2)
	b.sees("kept", map[string]int{"a": 2})
}

func repairEdited(t *testing.T, w *town) {
	w.pace.repair = 100 * time.Millisecond
	a, b := w.pair()
	kv := w.client.KV()
	for name, value := range map[string]string{
		a.headKey("a"): `{"v":1}`, a.memberKey("a"): "nonsense", b.headKey("b"): "",
	} {
		h := a
		if strings.Contains(name, "/b/head") {
			h = b
		}
		before, _, err := kv.Get(name, nil)
		if err != nil || before == nil {
			t.Fatal(before, err)
		}
		if _, err := kv.Put(&api.KVPair{Key: name, Value: []byte(value)}, nil); err != nil {
			t.Fatal(err)
		}
		until(t, name+" is repaired", func() bool {
			now, _, err := kv.Get(name, nil)
			return err == nil && now != nil && string(now.Value) != value && now.Session == sessionOf(h)
		})
	}
	goesOn(a, b)
	b.remembers("kept", map[string]int{"a": 1})
}

func verifyBuckets(t *testing.T, w *town) {
	w.pace.verify = 300 * time.Millisecond
	a := w.join("a")
	for i := range 20 {
		a.local.Add(fmt.Sprint("e", i), 1)
	}
	a.publish("e19")
	kv := w.client.KV()
	buckets := func() map[string]string {
		pairs, _, err := kv.List(a.nodePrefix("a")+"b/", nil)
		if err != nil {
			t.Fatal(err)
		}
		have := map[string]string{}
		for _, p := range pairs {
			have[p.Key] = string(p.Value)
		}
		return have
	}
	want := buckets()
	i := 0
	for name := range want {
		switch i++; i {
		case 1:
			_, _ = kv.Delete(name, nil)
		case 2:
			_, _ = kv.Put(&api.KVPair{Key: name, Value: []byte(`{"stranger":1}`)}, nil)
		}
	}
	for generation := range 70 { // more than fit into a transaction
		_, _ = kv.Put(&api.KVPair{Key: fmt.Sprint(a.nodePrefix("a"), "b/", 77+generation, "/0001"), Value: []byte(`{"stranger":1}`)}, nil)
	}
	until(t, "the buckets are as before", func() bool { return fmt.Sprint(buckets()) == fmt.Sprint(want) })
}

func refuseDuplicate(t *testing.T, w *town) {
	a := w.join("a")
	a.local.Add("kept", 1)
	a.publish("kept")
	other := w.build("a")
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := other.Run(ctx); !errors.Is(err, ErrDuplicate) {
		t.Errorf("Run = %v, want ErrDuplicate", err)
	}
	if s := sessionOf(a); s == "" {
		t.Error("the first node lost its session")
	}
	b := w.join("b")
	b.sees("kept", map[string]int{"a": 1})
}

func takeOver(t *testing.T, w *town) {
	a, b := w.pair()
	if err := a.stop(); err != nil {
		t.Error(err)
	}
	again := w.join("a")
	again.local.Add("anew", 1)
	b.sees("anew", map[string]int{"a": 1})
	b.sees("kept", map[string]int{})
	if n, _ := b.table.Node("a"); n.Node().Incarnation != again.node.Incarnation {
		t.Errorf("incarnation %s, want that of the new life", n.Node().Incarnation)
	}
}

func sweepUp(t *testing.T, w *town) {
	w.pace.sweep, w.pace.sweepAge, w.pace.sweepSpread = 100*time.Millisecond, 300*time.Millisecond, time.Millisecond
	w.pace.probe = 50 * time.Millisecond
	a, b := w.pair()
	session := sessionOf(a)
	if err := a.stop(); err != nil {
		t.Error(err)
	}
	for _, key := range []string{a.headKey("left"), a.nodePrefix("left") + "b/1/0001", a.memberKey("left")} {
		_, _ = w.client.KV().Put(&api.KVPair{Key: key, Value: []byte("{}")}, nil)
	}
	if _, err := w.client.Session().Destroy(session, nil); err != nil {
		t.Fatal(err)
	}
	until(t, "the dead node has left the catalog", func() bool {
		node, _, err := w.client.Catalog().Node(a.catalog, nil)
		return err == nil && node == nil
	})
	until(t, "keys without a lock are gone", func() bool {
		keys, _, err := w.client.KV().Keys(a.base, "", nil)
		return err == nil && !slices.ContainsFunc(keys, func(k string) bool { return strings.Contains(k, "/left") })
	})
	if node, _, err := w.client.Catalog().Node(b.catalog, nil); err != nil || node == nil {
		t.Errorf("the living node was swept up too: %v", err)
	}
}

// A snapshot of Consul that was restored brings back records of lives that have ended; so does a clock that went back.
func resistThePast(t *testing.T, w *town) {
	w.pace.probe = 100 * time.Millisecond
	w.change = func(o *Options) { o.Node.Started = time.Now().Add(-time.Hour) }
	old := w.join("a")
	old.local.Add("past", 1)
	old.publish("past")
	session := sessionOf(old)
	record := w.client.KV()
	past, _, err := record.Get(old.memberKey("a"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := old.stop(); err != nil {
		t.Error(err)
	}
	if _, err := w.client.Session().Destroy(session, nil); err != nil {
		t.Fatal(err)
	}
	w.change = nil
	w.pace.current, w.pace.repair = time.Hour, time.Hour // it is not to repair what is put in its place
	a := w.join("a")
	w.pace.current, w.pace.repair = defaultPace().current, defaultPace().repair
	b := w.join("b")
	a.local.Add("kept", 1)
	b.sees("kept", map[string]int{"a": 1})
	b.keeps(func() {
		if _, err := record.Put(&api.KVPair{Key: past.Key, Value: past.Value}, nil); err != nil {
			t.Fatal(err)
		}
		remote, _ := b.table.Node("a")
		until(t, "the living node is an orphan", func() bool { return remote.Doubt() == cluster.Orphan })
	})
	if err := a.stop(); err != nil { // now the record of the past is all there is
		t.Error(err)
	}
	until(t, "the record counts", func() bool {
		n, ok := b.table.Node("a")
		return ok && n.Node().Incarnation == old.node.Incarnation
	})
}

// Whoever can write to Consul can say of a node that it has left, or is another at another address.
func believeTheLiving(t *testing.T, w *town) {
	w.pace.retryMin, w.pace.retryMax = 10*time.Millisecond, 100*time.Millisecond
	w.pace.current, w.pace.repair = time.Hour, time.Hour // it is not to repair what is put in its place
	a := w.join("a")
	a.local.Add("kept", 1)
	b := w.join("b")
	b.sees("kept", map[string]int{"a": 1})
	left, other := a.self(), a.self()
	left.State = cluster.Left
	other.Incarnation, other.Addr, other.Started = "another", "127.0.0.1:9", time.Now().Add(time.Hour)
	b.keeps(func() {
		for _, lie := range []cluster.Node{left, other} {
			before := b.metric("piko_consul_watch_errors_total")
			if _, err := w.client.KV().Put(&api.KVPair{Key: a.memberKey("a"), Value: encodeMember(lie)}, nil); err != nil {
				t.Fatal(err)
			}
			until(t, "the node itself was asked some times", func() bool {
				return b.metric("piko_consul_watch_errors_total") > before+3
			})
			a.local.Add("kept", 1)
			b.sees("kept", map[string]int{"a": a.local.Weight("kept")})
		}
	})
	w.set(a.node.Incarnation, false)
	until(t, "the record counts", func() bool {
		n, ok := b.table.Node("a")
		return ok && n.Node().Incarnation == other.Incarnation
	})
}

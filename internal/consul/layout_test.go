package consul

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
)

func growBuckets(t *testing.T, w *town) {
	const many = 33_000
	a, b := w.join("a"), w.join("b")
	a.local.Add("first", 1)
	b.sees("first", map[string]int{"a": 1})
	for i := range many {
		a.local.Add(fmt.Sprintf("endpoint-%05d", i), 1)
	}
	began := time.Now()
	until(t, "b has all endpoints", func() bool { return len(b.table.Weights("a")) == many+1 })
	t.Logf("%d endpoints after %v", many, time.Since(began))
	pairs, _, err := w.client.KV().List(a.nodePrefix("a"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(pairs) < 513 || len(pairs) > 1025 {
		t.Errorf("%d keys, want a head and at most 1024 buckets of the new size only", len(pairs))
	}
	if n := a.largestTransaction(); n > 64 {
		t.Errorf("a transaction had more than 64 operations")
	}
	c := w.join("c")
	began = time.Now()
	c.isReady()
	if took := time.Since(began); took > patience || len(c.table.Weights("a")) != many+1 {
		t.Errorf("a new node has %d endpoints after %v", len(c.table.Weights("a")), took)
	}
	for i := range many {
		a.local.Add(fmt.Sprintf("endpoint-%05d", i), -1)
	}
	until(t, "b has one endpoint", func() bool { return len(b.table.Weights("a")) == 1 && len(c.table.Weights("a")) == 1 })
}

// largestTransaction returns an upper bound of the operations in one transaction, 1000 for more than 64.
func (h *house) largestTransaction() int {
	families, err := h.registry.Gather()
	if err != nil {
		h.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "piko_consul_transaction_operations" {
			continue
		}
		all := f.GetMetric()[0].GetHistogram()
		for _, b := range all.GetBucket() {
			if b.GetCumulativeCount() == all.GetSampleCount() {
				return int(b.GetUpperBound())
			}
		}
	}
	return 1000
}

func answerDNS(t *testing.T, w *town) {
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, w.consul.DNS)
	}}
	ports := func() (found []int) {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_, records, err := resolver.LookupSRV(ctx, "", "", w.cluster+".pikod.service.consul.")
		if err != nil {
			return nil
		}
		for _, r := range records {
			found = append(found, int(r.Port))
		}
		slices.Sort(found)
		return found
	}
	a, b := w.pair()
	_, first := split(a.node.ProxyAddr)
	_, second := split(b.node.ProxyAddr)
	until(t, "both nodes are in DNS", func() bool { return slices.Equal(ports(), []int{first, second}) })
	until(t, "pikod.service.consul is a name", func() bool { // a query may be lost, and gets five seconds
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		hosts, err := resolver.LookupHost(ctx, "pikod.service.consul.")
		return err == nil && slices.Contains(hosts, "127.0.0.1")
	})
	b.leave()
	until(t, "b is not in DNS", func() bool { return slices.Equal(ports(), []int{first}) })
	session := sessionOf(a)
	if err := a.stop(); err != nil {
		t.Error(err)
	}
	if _, err := w.client.Session().Destroy(session, nil); err != nil {
		t.Fatal(err)
	}
	until(t, "a dead node is not in DNS", func() bool { return len(ports()) == 0 })
}

func projectTags(t *testing.T, w *town) {
	w.pace.tags = 100 * time.Millisecond
	w.change = func(o *Options) { o.Settings.DNSTags = true }
	a := w.join("a")
	a.local.Add("my-tagged-endpoint", 1)
	a.local.Add("not.a.label", 1)
	a.local.Add("tenant/hidden", 1)
	tagged := func() int {
		entries, _, err := w.client.Health().Service(serviceName, "my-tagged-endpoint", true, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if slices.Contains(e.Service.Tags, "not.a.label") || slices.Contains(e.Service.Tags, "tenant/hidden") {
				t.Errorf("tags %v: want labels without tenants only", e.Service.Tags)
			}
		}
		return len(entries)
	}
	until(t, "the endpoint is a tag of a passing service", func() bool { return tagged() == 1 })
	a.local.Add("my-tagged-endpoint", -1)
	until(t, "the tag is gone", func() bool { return tagged() == 0 })
}

func passOver(t *testing.T, w *town) {
	a := w.join("a")
	kv := w.client.KV()
	lie := func(key, value string) {
		if _, err := kv.Put(&api.KVPair{Key: a.base + key, Value: []byte(value)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	lie("m/unlocked", `{"v":1,"inc":"x","addr":"127.0.0.1:1","state":"up"}`)
	session, _, err := w.client.Session().CreateNoChecks(&api.SessionEntry{TTL: "60s", Behavior: "delete"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for key, value := range map[string]string{
		"m/metadata": `{"v":1,"inc":"x","addr":"169.254.169.254:80","state":"up"}`, "m/broken": "{", "m/later": `{"v":2}`,
		"m/large":         `{"v":1,"inc":"x","addr":"127.0.0.1:1","state":"up","zone":"` + strings.Repeat("z", 5000) + `"}`,
		"m/liar":          `{"v":1,"inc":"x","addr":"127.0.0.1:1","state":"up"}`,
		"n/liar/head":     `{"v":1,"inc":"x","g":1,"s":1,"w":1,"b":16,"n":3}`,
		"n/liar/b/1/0000": `{"good":1,"BAD":1,"worse/../x y":1,"negative":-1}`, "n/liar/b/1/0001": `[]`, "n/liar/b/2/0002": `{"old":1}`,
	} {
		done, _, err := kv.Acquire(&api.KVPair{Key: a.base + key, Value: []byte(value), Session: session}, nil)
		if err != nil || !done {
			t.Fatal(done, err)
		}
	}
	a.sees("good", map[string]int{"liar": 1})
	until(t, "at least five bad entries were seen", func() bool { return a.metric("piko_consul_bad_entries_total") >= 5 })
	if nodes, keys := len(a.table.Nodes()), len(a.table.Weights("liar")); nodes != 1 || keys != 1 {
		t.Errorf("%d nodes with %d keys, want one with one", nodes, keys)
	}
}

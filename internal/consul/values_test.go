package consul

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/pikoproxy/piko/internal/cluster"
	"github.com/pikoproxy/piko/internal/config"
)

func TestMemberIsReadAsWritten(t *testing.T) {
	n := cluster.Node{
		ID: "n-1.x_y", Incarnation: "abc", Addr: "[2001:db8::1]:8003", ProxyAddr: "h:1", AdminAddr: "h:2", Zone: "z", Version: "1.2.3",
		Started: time.Now().UTC().Truncate(time.Second), State: cluster.Draining,
	}
	if have, err := decodeMember(n.ID, encodeMember(n)); err != nil || have != n {
		t.Errorf("decodeMember = %+v, %v; want %+v", have, err, n)
	}
	for name, change := range map[string]func(*cluster.Node){
		"no port":        func(n *cluster.Node) { n.Addr = "127.0.0.1" },
		"port 0":         func(n *cluster.Node) { n.Addr = "127.0.0.1:0" },
		"everywhere":     func(n *cluster.Node) { n.Addr = "0.0.0.0:8003" },
		"metadata":       func(n *cluster.Node) { n.Addr = "169.254.169.254:80" },
		"mapped":         func(n *cluster.Node) { n.Addr = "[::ffff:169.254.169.254]:80" },
		"link-local":     func(n *cluster.Node) { n.Addr = "[fe80::1]:80" },
		"with a path":    func(n *cluster.Node) { n.Addr = "host/path:80" },
		"userinfo":       func(n *cluster.Node) { n.Addr = "a@b:80" },
		"state":          func(n *cluster.Node) { n.State = "asleep" },
		"no incarnation": func(n *cluster.Node) { n.Incarnation = "" },
		"line break":     func(n *cluster.Node) { n.Zone = "a\nb" },
		"long zone":      func(n *cluster.Node) { n.Zone = strings.Repeat("z", maxName+1) },
		"name":           func(n *cluster.Node) { n.ID = ".." },
		"long":           func(n *cluster.Node) { n.ProxyAddr = strings.Repeat("p", 300) },
	} {
		bad := n
		change(&bad)
		if _, err := decodeMember(bad.ID, encodeMember(bad)); err == nil {
			t.Errorf("%s: a record was read that must not be", name)
		}
	}
	later := bytes.Replace(encodeMember(n), []byte(`"v":1`), []byte(`"v":2`), 1)
	if _, err := decodeMember(n.ID, later); !errors.Is(err, errNewer) {
		t.Errorf("a later version: %v, want errNewer", err)
	}
}

func TestKeysAreThoseOfTheRouter(t *testing.T) {
	for key, good := range map[string]bool{
		"a": true, "my-endpoint": true, "a.b_c": true, "tenant/a": true, "A": false, "": false, "/a": false, "t/": false,
		"a b": false, "../a": true, "t\n/a": false, strings.Repeat("t", maxTenant+1) + "/a": false, strings.Repeat("a", 64): false,
		"é": false,
	} {
		if goodKey(key) != good {
			t.Errorf("goodKey(%q) = %v, want %v", key, !good, good)
		}
	}
}

func TestBucketsGrowByPowersOfTwo(t *testing.T) {
	for _, c := range []struct{ n, b, want int }{
		{0, 0, 16}, {768, 0, 16}, {769, 0, 32}, {33_000, 0, 1024}, {1536, 16, 16}, {1537, 16, 64}, {10, 64, 64}, {1 << 30, 0, maxBuckets},
		{1 << 30, maxBuckets, maxBuckets},
	} {
		if have := bucketsFor(c.n, c.b); have != c.want {
			t.Errorf("bucketsFor(%d, %d) = %d, want %d", c.n, c.b, have, c.want)
		}
	}
	s := newShelf(map[string]int{"a": 1})
	for i := range 5000 {
		s.set(fmt.Sprint("k", i), i+1)
	}
	s.set("a", 0)
	want := s.keys()
	s.fit()
	if len(s.parts) != 128 || s.generation != 2 || len(s.stale) != 1 || s.n != 5000 || !maps.Equal(s.keys(), want) {
		t.Errorf("%d buckets of generation %d with %d keys", len(s.parts), s.generation, s.n)
	}
	if len(s.dirty) != 128 {
		t.Errorf("%d buckets to write, want all", len(s.dirty))
	}
}

// A reader that follows the heads alone has what the shelf has, whatever it missed of them within limits.
func TestHeadsRepeatTheLastChanges(t *testing.T) {
	s, h := newShelf(nil), history{}
	table := cluster.NewTable()
	table.Meet(cluster.Node{ID: "n", Incarnation: "i", State: cluster.Up})
	table.Replace("n", "i", 0, nil)
	var seq uint64
	for i := range 60 {
		d := cluster.Delta{From: seq, To: seq + 2, Weights: map[string]int{fmt.Sprint("k", i): i + 1, fmt.Sprint("k", i-3): 0}}
		for key, weight := range d.Weights {
			s.set(key, weight)
		}
		value := h.head("i", d, &s)
		h.acknowledged()
		seq = d.To
		if i%5 != 4 {
			continue // missed
		}
		got, err := decodeHead(value)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range got.Recent {
			delta, bad := c.delta()
			if bad > 0 || !table.Apply("n", "i", delta) {
				have, _ := table.Seq("n", "i")
				t.Fatalf("a change from %d to %d does not join on at %d", c.From, c.To, have)
			}
		}
		if !maps.Equal(table.Weights("n"), s.keys()) || got.Keys != s.n {
			t.Fatalf("head %d: reader has %v, want %v", i, table.Weights("n"), s.keys())
		}
	}
	large := cluster.Delta{From: seq, To: seq + 1, Weights: map[string]int{}}
	for i := range 2000 {
		large.Weights[fmt.Sprint("large", i)] = 1
	}
	value := h.head("i", large, &s)
	if got, err := decodeHead(value); err != nil || len(got.Recent) != 0 || len(value) > 500 {
		t.Errorf("a head of %d bytes with %d changes, %v; want it to leave a large change to lists", len(value), len(got.Recent), err)
	}
}

func TestHeadNeverGetsLong(t *testing.T) {
	s, h := newShelf(nil), history{}
	var seq uint64
	for i := range 500 {
		d := cluster.Delta{From: seq, To: seq + 1, Weights: map[string]int{}}
		for j := range i % 200 {
			d.Weights[fmt.Sprintf("a-rather-long-name-of-an-endpoint-%d-%d", i, j)] = 1
		}
		value := h.head("i", d, &s)
		h.acknowledged()
		seq++
		if _, err := decodeHead(value); err != nil || len(value) > recentBytes+newestBytes+500 {
			t.Fatalf("head of %d bytes: %v", len(value), err)
		}
	}
}

func TestListMustHoldWhatItsHeadPromises(t *testing.T) {
	if _, _, err := readList("p/", nil); !errors.Is(err, errShort) {
		t.Errorf("a list without a head: %v, want errShort", err)
	}
}

func TestMinimalTimeToLiveIsReadFromTheRefusal(t *testing.T) {
	err := &StatusError{500, "Invalid Session TTL '5000000000', must be between [10s=24h0m0s]"}
	if least, ok := minimalTTL(err); !ok || least != 10*time.Second {
		t.Errorf("minimalTTL = %v, %v; want 10s", least, ok)
	}
	for _, err := range []error{
		nil, errors.New("must be between [10s=1s]"), &StatusError{500, "no"}, &StatusError{500, "must be between [x=y]"},
		&StatusError{500, "must be between [-5s=1s]"},
	} {
		if least, ok := minimalTTL(err); ok {
			t.Errorf("minimalTTL(%v) = %v, want none", err, least)
		}
	}
}

func TestCatalogNamesAreLabels(t *testing.T) {
	long := catalogName(strings.Repeat("c", 32), strings.Repeat("n", 64))
	other := catalogName(strings.Repeat("c", 32), strings.Repeat("n", 63)+"m")
	if len(long) > 63 || long == other || !strings.HasPrefix(long, "pikod-") || catalogName("c", "n") != "pikod-c-n" {
		t.Errorf("names %q, %q", long, other)
	}
}

func TestAddresses(t *testing.T) {
	list, err := newServers(config.List{"a:1", "http://b:2/", "https://[::1]:3", "unix:///run/c.sock", "localhost:4"}, environment{})
	if err != nil {
		t.Fatal(err)
	}
	want := []server{
		{"http", "a:1", "", false}, {"http", "b:2", "", false}, {"https", "[::1]:3", "", true},
		{"http", "socket-3.invalid", "/run/c.sock", true}, {"http", "localhost:4", "", true},
	}
	if fmt.Sprint(list.list) != fmt.Sprint(want) {
		t.Errorf("have %v, want %v", list.list, want)
	}
	_, seen := list.use()
	list.failed(seen)
	list.failed(seen) // two requests failed at the same server
	if now, _ := list.use(); now.host != "b:2" {
		t.Errorf("in use: %v, want the second", now)
	}
	for _, bad := range []config.List{nil, {"a"}, {"ftp://a:1"}, {"unix://x"}} {
		if _, err := newServers(bad, environment{}); err == nil {
			t.Errorf("%v was taken for addresses", bad)
		}
	}
	if list, err = newServers(nil, environment{address: "e:1", secure: true}); err != nil || list.list[0].scheme != "https" {
		t.Errorf("from the environment: %v, %v", list, err)
	}
}

func FuzzMember(f *testing.F) {
	f.Add("a", encodeMember(cluster.Node{ID: "a", Incarnation: "i", Addr: "10.0.0.1:8003", State: cluster.Up}))
	f.Add("..", []byte(`{"v":1}`))
	f.Fuzz(func(t *testing.T, name string, b []byte) {
		n, err := decodeMember(name, b)
		if err != nil {
			return
		}
		if again, err := decodeMember(name, encodeMember(n)); err != nil || !again.Started.Equal(n.Started.UTC().Truncate(time.Second)) {
			t.Errorf("%+v became %+v, %v", n, again, err)
		}
		if !goodAddress(n.Addr) || len(n.Zone) > maxName {
			t.Errorf("%+v is no record", n)
		}
	})
}

func FuzzHead(f *testing.F) {
	s, h := newShelf(nil), history{}
	f.Add(h.head("i", cluster.Delta{From: 1, To: 3, Weights: map[string]int{"a": 1, "b": 0}}, &s))
	f.Add([]byte(`{"v":1,"inc":"i","g":1,"b":16,"n":1,"s":9,"r":[{"f":1,"s":2},{"f":3,"s":2}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := decodeHead(b)
		if err != nil {
			return
		}
		for _, c := range got.Recent {
			d, _ := c.delta()
			if d.From > d.To || d.To > got.Seq {
				t.Errorf("change %+v of head %+v", d, got)
			}
			for key, weight := range d.Weights {
				if !goodKey(key) || weight < 0 {
					t.Errorf("%q: %d", key, weight)
				}
			}
		}
	})
}

func FuzzBucket(f *testing.F) {
	f.Add([]byte(`{"my-endpoint":2,"tenant/other":1}`))
	f.Add([]byte(`{"A":1,"b":-1,"c":1e99}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		keys := map[string]int{}
		if _, err := decodeBucket(b, keys); err != nil && len(keys) > 0 {
			t.Errorf("%v, and still %v", err, keys)
		}
		for key, weight := range keys {
			if !goodKey(key) || weight < 1 {
				t.Errorf("%q: %d", key, weight)
			}
		}
	})
}

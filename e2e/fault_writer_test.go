package e2e

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// trap is where a liar wants to lead nodes: it speaks TLS with anybody and counts what it is told.
type trap struct {
	address  string
	met      atomic.Int64 // connections
	betrayed atomic.Int64 // those on which anything was said after the handshake
}

func newTrap(t *testing.T) *trap {
	certificate, key := newAuthority(t).issue(t, "piko")
	pair, err := tls.LoadX509KeyPair(certificate, key)
	if err != nil {
		t.Fatal(err)
	}
	p := &trap{}
	p.address = serveTCP(t, func(in *net.TCPConn) {
		p.met.Add(1)
		_ = in.SetDeadline(time.Now().Add(5 * time.Second))
		c := tls.Server(in, &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequestClientCert})
		if n, err := c.Read(make([]byte, 1)); n > 0 || err == nil {
			p.betrayed.Add(1)
		}
	})
	return p
}

// writer is somebody with the nodes' access to Consul, but not their secret.
type writer struct {
	t *testing.T
	c *cluster
}

func (w *writer) ask(method, path, body string) []byte {
	w.t.Helper()
	answer, err := w.c.consul.Ask(method, path, body, settle)
	if err != nil {
		w.t.Fatal(err)
	}
	return answer
}

// put writes a value. With a session it is locked, as those of nodes are.
func (w *writer) put(key, value, session string) {
	w.t.Helper()
	path := "/v1/kv/pikod/" + key
	if session != "" {
		path += "?acquire=" + session
	}
	if done := w.ask(http.MethodPut, path, value); strings.TrimSpace(string(done)) != "true" {
		w.t.Fatalf("put %s: %s", key, done)
	}
}

// session makes one, of a node in the catalog as those of nodes are.
func (w *writer) session(id string) string {
	w.t.Helper()
	w.ask(http.MethodPut, "/v1/catalog/register", fmt.Sprintf(`{"Node": "pikod-piko-%s", "Address": "127.0.0.1"}`, id))
	var made struct{ ID string }
	body := w.ask(http.MethodPut, "/v1/session/create", fmt.Sprintf(`{"Node": "pikod-piko-%s", "NodeChecks": [], "Behavior": "delete"}`, id))
	if err := json.Unmarshal(body, &made); err != nil {
		w.t.Fatal(err)
	}
	return made.ID
}

// record is what a node writes of itself.
func record(inc, addr string, start time.Time) string {
	return fmt.Sprintf(`{"v":1,"inc":%q,"addr":%q,"start":%q,"state":"up"}`, inc, addr, start.UTC().Format(time.RFC3339))
}

func TestFaultLiarsInConsul(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, "")
	onNode(t, c.nodes[0], "e", "ok")
	c.routed(t, "e")
	w, p := &writer{t, c}, newTrap(t)
	well := func() {
		t.Helper()
		for i, n := range c.nodes {
			if a := get(t, n.client(t), at("e", "/")); a.body != "ok" {
				t.Errorf("through n%d: status %d %s", i+1, a.StatusCode, a.body)
			}
		}
	}

	own := strings.TrimSpace(c.consul.CLI("kv", "get", "pikod/piko/v1/m/n1"))
	t.Run("a node that does not exist", func(*testing.T) {
		s := w.session("evil")
		w.put("piko/v1/n/evil/b/1/0000", `{"e":1000000,"bank":1}`, s)
		w.put("piko/v1/n/evil/head", `{"v":1,"inc":"x","w":1,"g":1,"b":16,"n":2,"s":2}`, s)
		w.put("piko/v1/m/evil", record("x", p.address, time.Now()), s)
		await(t, "the nodes have been to the trap", settle, func() error {
			for i, n := range c.nodes {
				_, body, err := fetch("http://" + n.admin + "/status/routes/bank")
				if err != nil || !bytes.Contains(body, []byte("evil")) {
					return fmt.Errorf("n%d: %s, %w", i+1, body, err)
				}
			}
			if p.met.Load() < 6 {
				return fmt.Errorf("%d connections", p.met.Load())
			}
			return nil
		})
		for range 30 {
			well()
		}
		if a := get(t, c.nodes[1].client(t), at("bank", "/")); a.StatusCode < 500 {
			t.Errorf("an endpoint that only the liar has: status %d %s", a.StatusCode, a.body)
		}
	})

	// The node lives and says otherwise.
	for name, lie := range map[string]string{
		"another life at another address": record("y", p.address, time.Now().Add(time.Hour)),
		"left":                            strings.Replace(own, `"up"`, `"left"`, 1),
		"draining":                        strings.Replace(own, `"up"`, `"draining"`, 1),
	} {
		t.Run("a node is said to be "+name, func(*testing.T) {
			w.put("piko/v1/m/n1", lie, "")
			told := time.Now()
			for time.Since(told) < time.Second {
				well()
			}
			took := await(t, "nobody believes the lie", settle, func() error {
				for i, n := range c.nodes {
					if states, err := n.states(); err != nil || states["n1"] != "up" {
						return fmt.Errorf("n%d knows %v: %w", i+1, states, err)
					}
				}
				return nil
			})
			t.Logf("nobody believes the lie after %s more", took.Round(time.Millisecond))
			well()
		})
	}
	await(t, "n1 has taken the last lie back", settle, func() error {
		if now := c.consul.CLI("kv", "get", "pikod/piko/v1/m/n1"); strings.TrimSpace(now) != own {
			return fmt.Errorf("the record is %s", now)
		}
		return nil
	})

	t.Run("rubbish", func(*testing.T) { w.rubbish(t, well) })
	if n := p.betrayed.Load(); n > 0 {
		t.Errorf("%d of %d connections to the trap told it something", n, p.met.Load())
	}
}

// rubbish fills the tree with what is no value of ours, and wants the nodes to mind neither in memory nor in their logs.
func (w *writer) rubbish(t *testing.T, well func()) {
	s := w.session("rubbish")
	huge := strings.Repeat("x", 500<<10)
	before := make([]int64, len(w.c.nodes))
	for i, n := range w.c.nodes {
		before[i] = n.rss(t)
	}
	for i := range 20 {
		w.put(fmt.Sprintf("piko/v1/m/huge-%d", i), huge, s)
	}
	for name, value := range map[string]string{
		"binary": "\x00\xff\xfe", "list": `[]`, "wrong-types": `{"v":"one","inc":1,"addr":[]}`, "deep": strings.Repeat("[", 100_000),
		"newer": `{"v":99}`, "metadata": record("z", "169.254.169.254:80", time.Now()), "anywhere": record("z", "0.0.0.0:1", time.Now()),
		"no-port": record("z", "127.0.0.1", time.Now()), "..": record("z", "127.0.0.1:1", time.Now()),
		"name with spaces": record("z", "127.0.0.1:1", time.Now()), "left": `{"v":1,"inc":"z","addr":"127.0.0.1:1","state":"reborn"}`,
		"unlocked": record("z", "127.0.0.1:1", time.Now()),
	} {
		session := s
		if name == "unlocked" {
			session = ""
		}
		if name == ".." {
			continue // Consul itself refuses it
		}
		w.put("piko/v1/m/"+strings.ReplaceAll(name, " ", "%20"), value, session)
	}
	w.put("other/v1/m/foreign", record("z", "127.0.0.1:1", time.Now()), s)
	for _, value := range []string{huge, `{`, `{"v":1,"inc":"y","g":18446744073709551615,"b":-1}`, `null`, `{"v":1,"s":1,"r":[{"f":9,"s":1}]}`} {
		w.put("piko/v1/n/n1/head", value, "")
		well()
	}
	for i := range 100 { // each wakes all nodes
		w.put("piko/v1/m/binary", fmt.Sprint("rubbish ", i), s)
	}
	well()
	await(t, "the keys of n1 are repaired", settle, func() error {
		return contains(w.c.consul.CLI("kv", "get", "pikod/piko/v1/n/n1/head"), `"v":1,"inc"`)
	})
	for i, n := range w.c.nodes {
		states, err := n.states()
		if err != nil || len(states) != 4 || states["evil"] == "" {
			t.Errorf("n%d knows %v, %v: want the three nodes, and the one that was invented well", i+1, states, err)
		}
		if grown := n.rss(t) - before[i]; grown > 128<<20 { // a machine that is busy collects late
			t.Errorf("n%d has grown by %d MiB", i+1, grown>>20)
		}
		await(t, fmt.Sprintf("n%d counts bad entries and says so", i+1), settle, func() error {
			if bad, err := n.metric("piko_consul_bad_entries_total"); err != nil || bad == 0 {
				return fmt.Errorf("%.0f entries, %w", bad, or(err))
			}
			return contains(n.output(t), "cannot be read")
		})
		if lines := strings.Count(n.output(t), "cannot be read"); lines > 10 {
			t.Errorf("n%d has %d lines about what cannot be read: want it said, and not over and over", i+1, lines)
		}
	}
	well()
}

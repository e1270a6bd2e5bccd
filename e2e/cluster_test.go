package e2e

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
)

// onNode connects an agent to one node and no other.
func onNode(t testing.TB, n *node, endpoint, name string) *process {
	t.Helper()
	return startAgent(t, n, agentOptions{Connect: "connections = 1"}, offer{Endpoint: endpoint, Addr: serve(t, say(name))})
}

func TestClusterAnswersThroughEveryNode(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, "")
	onNode(t, c.nodes[0], "e", "ok")
	c.agents(t, 1, offer{Endpoint: "two", Addr: serve(t, say("two"))})
	if at := c.holders("two"); len(at) != 2 {
		t.Errorf("an agent with two sessions is at the nodes %v: want two different ones", at)
	}
	c.routed(t, "e")
	c.routed(t, "two")
	t.Run("status", func(t *testing.T) { statusOf(t, c) })
	t.Run("what a client says of the inside", func(t *testing.T) { pretend(t, c) })
	t.Run("no new connections", func(t *testing.T) {
		var before map[string]bool
		await(t, "each node has a connection to each other one", settle, func() error {
			if before = c.links(t); len(before) < len(c.nodes)*(len(c.nodes)-1) {
				return fmt.Errorf("have %v", before)
			}
			return nil
		})
		for _, n := range c.nodes {
			client := n.client(t)
			client.Transport.(*http.Transport).DisableKeepAlives = true
			for range 200 {
				if a := get(t, client, at("e", "/")); a.body != "ok" {
					t.Fatalf("status %d %s", a.StatusCode, a.body)
				}
			}
		}
		for link := range c.links(t) {
			if !before[link] {
				t.Errorf("requests opened the connection %s: want the sessions used that are there", link)
			}
		}
	})
}

// statusOf reads what `pikod status` says of a cluster whose endpoint "e" has one agent, on the first node.
func statusOf(t *testing.T, c *cluster) {
	for i, n := range c.nodes {
		await(t, "the nodes in the status", settle, func() error { // numbers are told each second
			rows := columns(showStatus(t, n, "nodes"))
			if len(rows) != len(c.nodes)+1 {
				return fmt.Errorf("%d lines: want a head and one for each node", len(rows))
			}
			for k, row := range rows[1:] {
				have, err := c.nodes[k].endpoints()
				if err != nil {
					return err
				}
				sum := 0
				for _, sessions := range have {
					sum += sessions
				}
				want := []string{fmt.Sprint("n", k+1), "up", c.nodes[k].proxy, c.nodes[k].admin, fmt.Sprint(len(have)), fmt.Sprint(sum)}
				if !slices.Equal(row, want) {
					return fmt.Errorf("n%d says %q: want %q", i+1, row, want)
				}
			}
			return nil
		})
		rows := columns(showStatus(t, n, "routes", "e"))
		if len(rows) != 3 || len(rows[2]) < 9 {
			t.Errorf("n%d says of the route %q: want the verdict, a head and one line", i+1, rows)
			continue
		}
		if got := rows[2]; i > 0 && (got[0] != "n1" || got[1] != "peer") || i == 0 && got[1] != "here" {
			t.Errorf("n%d says of the route %q", i+1, got)
		}
	}
	rows := columns(showStatus(t, c.nodes[0], "endpoints"))
	if !slices.ContainsFunc(rows, func(row []string) bool { return slices.Equal(row, []string{"e", "1"}) }) {
		t.Errorf("n1 has the endpoints %q", rows)
	}
	list := c.nodes[0].sessions(t)
	rows = columns(showStatus(t, c.nodes[0], "sessions"))
	if len(rows) != len(list)+1 || len(list) == 0 {
		t.Errorf("n1 has the sessions %q: want %d and a head", rows, len(list))
	}
}

// columns are the words of each line.
func columns(text string) [][]string {
	var rows [][]string
	for line := range strings.Lines(text) {
		rows = append(rows, strings.Fields(line))
	}
	return rows
}

// sessions are the ids of the sessions of a node.
func (n *node) sessions(t testing.TB) []string {
	t.Helper()
	_, body, err := fetch("http://" + n.admin + "/status/sessions")
	if err != nil {
		t.Fatal(err)
	}
	var list []struct{ ID string }
	if err := json.Unmarshal(body, &list); err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, s := range list {
		ids = append(ids, s.ID)
	}
	return ids
}

// pretend sends what only nodes could mean, and wants every node to do as without, and the service to hear nothing of it.
func pretend(t *testing.T, c *cluster) {
	service := serve(t, func(w http.ResponseWriter, r *http.Request) {
		reply(w, "heard:")
		for name := range r.Header {
			if strings.HasPrefix(name, "X-Piko-") {
				reply(w, " %s", name)
			}
		}
	})
	startAgent(t, c.nodes[0], agentOptions{Connect: "connections = 1"}, offer{Endpoint: "ear", Addr: service})
	c.routed(t, "ear")
	for i, n := range c.nodes {
		client := n.client(t)
		want := get(t, client, at("ear", "/")).body
		for _, name := range []string{"X-Piko-Forward", "X-Piko-Node", "X-Piko-Peer", "X-Piko-Cluster", "X-Piko-Session", "X-Piko-Hop"} {
			for _, value := range []string{"true", "n1", "n3", "n1/1"} {
				r := request(t, http.MethodGet, at("ear", "/"), nil)
				r.Header.Set(name, value)
				if a := do(t, client, r); a.body != want {
					t.Errorf("through n%d with %s: %s: status %d %q: want %q", i+1, name, value, a.StatusCode, a.body, want)
				}
			}
		}
		// To name such a field in Connection is to ask for its removal on the way; that is refused, by each node alike.
		for _, name := range []string{"X-Piko-Endpoint", "X-Piko-Forward"} {
			r := request(t, http.MethodGet, "http://"+n.proxy+"/", nil)
			r.Header.Set("X-Piko-Endpoint", "e")
			r.Header.Set("Connection", name)
			if a := do(t, client, r); a.StatusCode != 400 || a.Header.Get("Piko-Error") != "PIKO-E1005" {
				t.Errorf("through n%d with Connection: %s: status %d %s", i+1, name, a.StatusCode, a.body)
			}
		}
	}
}

// showStatus is what `pikod status` prints.
func showStatus(t testing.TB, n *node, what ...string) string {
	t.Helper()
	p := start(t, nil, "pikod", append(append([]string{"status"}, what...), "--admin", "http://"+n.admin)...)
	if code := p.exit(t, settle); code != 0 {
		t.Errorf("pikod status %s exits %d", strings.Join(what, " "), code)
	}
	return p.output(t)
}

// links are the connections to the cluster listeners, as the kernel writes them.
func (c *cluster) links(t testing.TB) map[string]bool {
	t.Helper()
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]bool{}
	for line := range strings.Lines(string(table)) {
		f := strings.Fields(line) // number, local, remote, state: 01 is established
		if len(f) < 4 || f[3] != "01" {
			continue
		}
		for _, address := range c.peers {
			a, err := net.ResolveTCPAddr("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			if strings.HasSuffix(f[2], fmt.Sprintf(":%04X", a.Port)) {
				all[f[1]+" "+f[2]] = true
			}
		}
	}
	return all
}

func TestClusterListenerKnowsNobodyElse(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 2, "")
	onNode(t, c.nodes[0], "e", "ok")
	for name, scheme := range map[string]string{"plain": "http", "TLS": "https"} {
		client := &http.Client{Timeout: settle, Transport: &http.Transport{
			DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		}}
		for _, path := range []string{"/piko/v2/peer", "/", "/piko/v2/tunnel", "/status"} {
			resp, err := client.Get(scheme + "://" + c.peers[0] + path)
			if err == nil {
				_ = resp.Body.Close()
				if scheme == "https" || resp.StatusCode != http.StatusBadRequest {
					t.Errorf("%s %s: a stranger got status %d", name, path, resp.StatusCode)
				}
			}
		}
	}
}

// It may write to Consul, which has a credential of its own.
func TestClusterDoesNotTakeANodeWithAnotherSecret(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 2, "")
	onNode(t, c.nodes[0], "e", "ok")
	c.routed(t, "e")
	rogue := startNode(t, nodeOptions{
		Proxy: `endpoint_wait = "0s"`, More: membership("rogue", freeAddress(t), "another secret, as long", c.consul.HTTP),
	})
	onNode(t, rogue, "lure", "stranger")
	for i, n := range c.nodes {
		await(t, "the node hears of the stranger", settle, func() error {
			states, err := n.states()
			if err == nil && states["rogue"] == "" {
				err = fmt.Errorf("nodes are %v", states)
			}
			return err
		})
		client := n.client(t)
		if a := get(t, rogue.client(t), at("e", "/")); a.StatusCode == http.StatusOK {
			t.Errorf("a stranger reaches an endpoint of the cluster: %s", a.body)
		}
		if a := get(t, client, at("lure", "/")); a.StatusCode == http.StatusOK {
			t.Errorf("n%d sends a request to a stranger: %s", i+1, a.body)
		}
	}
}

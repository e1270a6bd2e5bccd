package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pikoproxy/piko/internal/pikotest/consultest"
)

// rig is a cluster of which each part has a host of its own: three nodes, Consul, agents and clients. As tests see it through
// doors, what they know of clusters elsewhere holds here too: proxy and admin of a node are addresses of the tests, while
// upstream is one on the wires.
type rig struct {
	*cluster
	t       testing.TB // of the moment: what starts under it ends with it
	life    testing.TB // of the rig
	wires   *wires
	homes   []*host // of the nodes
	servers []*consultest.Consul
	vaults  []*host // of the servers of Consul
	field   *host   // of the agents
	street  *host   // of the clients
}

type rigOptions struct {
	Servers   int                        // of Consul; default 1
	Top, More string                     // lines of pikod.toml
	Node      func(r *rig, i int) string // [cluster] and [consul] of a node
	ACL       bool
}

// startRig runs everything and waits until the nodes know each other.
func startRig(t testing.TB, o rigOptions) *rig {
	t.Helper()
	r := &rig{cluster: &cluster{}, t: t, life: t, wires: newWires(t)}
	r.field, r.street = r.wires.host("field"), r.wires.host("street")
	for i := range 3 {
		r.homes = append(r.homes, r.wires.host(fmt.Sprint("n", i+1)))
	}
	var places []consultest.Place
	for i := range max(o.Servers, 1) {
		r.vaults = append(r.vaults, r.wires.host(fmt.Sprint("c", i+1)))
		places = append(places, r.vaults[i].place())
	}
	if o.Servers > 1 {
		r.servers = consultest.ClusterAt(t, places...)
	} else {
		r.servers = []*consultest.Consul{consultest.Start(t, consultest.Options{Place: places[0], ACL: o.ACL})}
	}
	r.consul = r.servers[0]
	for i, h := range r.homes {
		more := o.More
		if o.Node != nil {
			more += o.Node(r, i)
		} else {
			more += r.membership(fmt.Sprint("n", i+1))
		}
		r.nodes = append(r.nodes, r.node(h, o.Top, more))
		r.run(i)
	}
	r.awaitAll(t)
	return r
}

// row runs a subtest, which leaves the cluster whole.
func (r *rig) row(name string, f func(t *testing.T)) {
	t, ok := r.life.(*testing.T)
	if !ok {
		r.life.Fatal("rows are for tests")
	}
	t.Run(name, func(t *testing.T) {
		r.t, r.wires.t = t, t
		t.Cleanup(func() { r.wires.heal(); r.t, r.wires.t = r.life, r.life })
		f(t)
		r.wires.heal()
		r.whole(2 * settle)
	})
}

// membership is the part of pikod.toml that makes a node with this name one of the cluster.
func (r *rig) membership(id string) string {
	var consuls []string
	for _, s := range r.servers {
		consuls = append(consuls, strconv.Quote(s.HTTP))
	}
	return fmt.Sprintf("[cluster]\nnode_id = %q\nsecret = %q\n[consul]\naddress = [%s]\n", id, clusterSecret,
		strings.Join(consuls, ", "))
}

// node writes the settings of a node on a host, with doors to it.
func (r *rig) node(h *host, top, more string) *node {
	r.t.Helper()
	n := &node{upstream: h.addr + ":8001"}
	n.proxy, n.admin = r.street.door(r.life, h.addr+":8000"), h.door(r.life, "127.0.0.1:8002")
	n.file = writeFile(r.life, "pikod.toml", fmt.Sprintf("%s\n[proxy]\nlisten = %q\naccess_log = false\n"+
		"[upstream]\nlisten = %q\nallow_unauthenticated = true\n%s\n", top, h.addr+":8000", n.upstream, more))
	return n
}

// run starts the process of a node, for the first time or again.
func (r *rig) run(i int) {
	r.t.Helper()
	r.launch(i)
	r.nodes[i].awaitReady(r.t, r.nodes[i].admin)
}

func (r *rig) launch(i int) {
	r.t.Helper()
	r.nodes[i].process = r.homes[i].start(r.life, "pikod", "--config", r.nodes[i].file)
}

// agent connects an agent to some nodes, one session to each, and waits until it offers the endpoint there. The service
// answers with the endpoint's name.
func (r *rig) agent(endpoint string, at ...int) []*process {
	r.t.Helper()
	var all []*process
	for _, i := range at {
		file := agentFile(r.t, r.nodes[i], agentOptions{Connect: "connections = 1"},
			offer{Endpoint: endpoint, Addr: r.field.serve(r.t, say(endpoint))})
		before := 0
		if have, err := r.nodes[i].endpoints(); err == nil {
			before = have[endpoint]
		}
		all = append(all, r.field.start(r.t, "piko-agent", "--config", file))
		r.nodes[i].awaitEndpoint(r.t, endpoint, before+1)
	}
	return all
}

// whole waits until all nodes know each other and each has exactly the routes that lead to living agents.
func (r *rig) whole(within time.Duration, endpoints ...string) {
	r.t.Helper()
	took := await(r.t, "the cluster is whole", within, func() error {
		for i, n := range r.nodes {
			states, err := n.states()
			if err != nil {
				return err
			}
			if len(states) != len(r.nodes) {
				return fmt.Errorf("n%d sees %v", i+1, states)
			}
			for id, s := range states {
				if s != "up" {
					return fmt.Errorf("n%d sees that %s is %s", i+1, id, s)
				}
			}
			for _, endpoint := range endpoints {
				if err := r.routesAreTrue(i, endpoint); err != nil {
					return err
				}
			}
		}
		return nil
	})
	r.t.Logf("the cluster is whole after %s", took.Round(time.Millisecond))
}

// testimony is what became of one request.
type testimony struct {
	node     int
	endpoint string
	began    time.Time
	took     time.Duration
	err      error
}

func (x testimony) String() string {
	return fmt.Sprintf("%s through n%d at %s, after %s: %v", x.endpoint, x.node+1, x.began.Format("05.000"), x.took, x.err)
}

// witness asks for endpoints through nodes, over and over, until its end.
type witness struct {
	rig     *rig
	cancel  context.CancelFunc
	running sync.WaitGroup
	mu      sync.Mutex
	seen    []testimony
}

// watchOver sends 20 requests a second for each endpoint through each of the nodes, with numbers that count from 0.
func (r *rig) watchOver(endpoints []string, nodes ...int) *witness {
	t, w := r.t, &witness{rig: r}
	ctx, cancel := context.WithCancel(t.Context())
	w.cancel = cancel
	for _, i := range nodes {
		client := r.nodes[i].client(t)
		client.Timeout = settle
		for _, endpoint := range endpoints {
			w.running.Go(func() {
				tick := time.NewTicker(50 * time.Millisecond)
				defer tick.Stop()
				waiting := make(chan struct{}, mostWaiting)
				for {
					select {
					case <-tick.C:
						waiting <- struct{}{}
						w.running.Go(func() { //nolint:contextcheck // what has begun is seen through
							w.ask(t, client, i, endpoint)
							<-waiting
						})
					case <-ctx.Done():
						return
					}
				}
			})
		}
	}
	t.Cleanup(func() { w.cancel(); w.running.Wait() })
	return w
}

func (w *witness) ask(t testing.TB, client *http.Client, i int, endpoint string) {
	began := time.Now()
	a, err := try(client, request(t, http.MethodGet, at(endpoint, "/"), nil))
	if err == nil && a.body != endpoint {
		err = fmt.Errorf("status %d: %s", a.StatusCode, strings.TrimSpace(a.body))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen = append(w.seen, testimony{i, endpoint, began, time.Since(began), err})
}

// end gives what has been seen, after all requests were answered.
func (w *witness) end() []testimony {
	w.cancel()
	w.running.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	slices.SortFunc(w.seen, func(a, b testimony) int { return a.began.Compare(b.began) })
	return w.seen
}

// clean ends the watch and wants no failure among the requests that began outside the time that was given for one.
func (w *witness) clean(fault time.Time, allowed time.Duration) {
	t := w.rig.t
	t.Helper()
	var failed, wrong int
	var slow testimony
	seen := w.end()
	for _, x := range seen {
		within := !x.began.Before(fault.Add(-time.Second)) && x.began.Before(fault.Add(allowed))
		if !x.began.Before(fault) && x.took > slow.took {
			slow = x
		}
		switch {
		case x.err == nil:
		case allowed > 0 && within:
			failed++
			if failed == 1 {
				t.Logf("as may be: %s", x)
			}
		default:
			if wrong++; wrong <= 8 {
				t.Errorf("%s", x)
			}
		}
	}
	t.Logf("%d requests: %d failed within %s of the fault, %d at other times; the slowest, %s after it, took %s", len(seen), failed,
		allowed, wrong, slow.began.Sub(fault).Round(time.Millisecond), slow.took.Round(time.Millisecond))
	if len(seen) < 20 {
		t.Errorf("only %d requests: too few to tell", len(seen))
	}
}

// metric is the sum of the samples of a node's metric with this name and all of these labels, such as `result="done"`.
func (r *rig) metric(i int, name string, labels ...string) float64 {
	r.t.Helper()
	v, err := r.nodes[i].metric(name, labels...)
	if err != nil {
		r.t.Fatalf("metrics of n%d: %v", i+1, err)
	}
	return v
}

func (n *node) metric(name string, labels ...string) (sum float64, err error) {
	status, body, err := fetch("http://" + n.admin + "/metrics")
	if err != nil || status != http.StatusOK {
		return 0, fmt.Errorf("status %d: %w", status, err)
	}
	lines := bufio.NewScanner(bytes.NewReader(body))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		rest, found := strings.CutPrefix(line, name)
		if !found || rest == "" || rest[0] != ' ' && rest[0] != '{' || contains(rest, labels...) != nil {
			continue
		}
		v, err := strconv.ParseFloat(rest[strings.LastIndexByte(rest, ' ')+1:], 64)
		if err != nil {
			return 0, err
		}
		sum += v
	}
	return sum, lines.Err()
}

// ledger is what a node has done in Consul so far.
type ledger struct{ transactions, sessions, bytes float64 }

func (r *rig) ledgers() (all []ledger) {
	for i := range r.nodes {
		all = append(all, ledger{
			r.metric(i, "piko_consul_transactions_total"), r.metric(i, "piko_consul_sessions_created_total"),
			r.metric(i, "piko_consul_transaction_size_bytes_sum"),
		})
	}
	return all
}

// since tells what each node has done in Consul since before.
func (r *rig) since(before []ledger) (all []ledger) {
	for i, now := range r.ledgers() {
		all = append(all, ledger{now.transactions - before[i].transactions, now.sessions - before[i].sessions,
			now.bytes - before[i].bytes})
	}
	return all
}

// sessionIDs are the sessions of nodes that Consul has, by the name of the node.
func (r *rig) sessionIDs() map[string]string {
	r.t.Helper()
	body, err := r.consul.Ask(http.MethodGet, "/v1/session/list", "", settle)
	if err != nil {
		r.t.Fatal(err)
	}
	var list []struct{ ID, Name string }
	if err := json.Unmarshal(body, &list); err != nil {
		r.t.Fatal(err)
	}
	all := map[string]string{}
	for _, s := range list {
		all[s.Name[strings.LastIndexByte(s.Name, '/')+1:]] = s.ID
	}
	return all
}

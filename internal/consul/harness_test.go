package consul

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/sirupsen/logrus"
	"go.uber.org/goleak"

	"github.com/pikoproxy/piko/internal/cluster"
	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/pikotest/consultest"
)

func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", "8"); err != nil { // these tests wait more than they work
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

// patience is how long a test waits for what should happen.
const patience = 40 * time.Second

// towns counts clusters, so that many may share a Consul.
var towns atomic.Int64

// town is a cluster of nodes that share a Consul.
type town struct {
	t       *testing.T
	consul  *consultest.Consul
	client  *api.Client // an operator's
	cluster string
	address string
	token   string
	pace    pace
	change  func(*Options)

	mu    sync.Mutex
	alive map[string]bool // by incarnation: who answers probes
	lives atomic.Int64
}

func newTown(t *testing.T, c *consultest.Consul) *town {
	p := defaultPace()
	return &town{
		t: t, consul: c, client: operator(t, c), cluster: fmt.Sprintf("town-%d", towns.Add(1)), address: c.HTTP, token: c.Token, pace: p,
		alive: map[string]bool{},
	}
}

// house is one node.
type house struct {
	*Directory
	t        *testing.T
	town     *town
	local    *cluster.Local
	table    *cluster.Table
	registry *prometheus.Registry
	stop     func() error // ends Run and returns its error
}

// build makes a node and does not run it.
func (w *town) build(id string) *house {
	w.t.Helper()
	h := &house{
		t: w.t, town: w, local: cluster.NewLocal(), table: cluster.NewTable(), registry: prometheus.NewRegistry(),
	}
	n := w.lives.Add(1)
	log := logrus.New()
	log.SetOutput(io.Discard)
	if os.Getenv("PIKO_TEST_LOG") != "" {
		log.SetOutput(os.Stderr)
	}
	o := Options{
		Settings: config.DefaultPikod().Consul, Cluster: w.cluster, Local: h.local, Table: h.table, Probe: w.probe,
		Node: cluster.Node{
			ID: id, Incarnation: fmt.Sprintf("life-%d", n), Addr: fmt.Sprintf("127.0.0.1:%d", 20000+n),
			ProxyAddr: fmt.Sprintf("127.0.0.1:%d", 21000+n), AdminAddr: "127.0.0.1:8002", Zone: "here", Version: "1.0.0",
		},
		Log: log.WithField("node", id), Registerer: h.registry,
	}
	o.Settings.Address = config.List{w.address}
	o.Settings.Token = config.NewSecret(w.token)
	if w.change != nil {
		w.change(&o)
	}
	d, err := newDirectory(o, w.pace)
	if err != nil {
		w.t.Fatal(err)
	}
	h.Directory = d
	w.set(o.Node.Incarnation, true)
	return h
}

// join makes a node and runs it until the end of the test.
func (w *town) join(id string) *house {
	w.t.Helper()
	h := w.build(id)
	h.run()
	return h
}

func (h *house) run() {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- h.Run(ctx) }()
	h.stop = sync.OnceValue(func() error {
		cancel()
		h.town.set(h.node.Incarnation, false)
		return <-ended
	})
	h.t.Cleanup(func() { _ = h.stop() })
}

func (w *town) set(incarnation string, alive bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.alive[incarnation] = alive
}

func (w *town) probe(_ context.Context, _, incarnation string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.alive[incarnation] {
		return errors.New("connection refused")
	}
	return nil
}

// until waits for a condition.
func until(t *testing.T, what string, condition func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !condition() {
		if time.Since(began) > patience {
			t.Fatalf("still not after %v: %s", patience, what)
		}
		<-tick.C
	}
	return time.Since(began)
}

func (h *house) holders(key string) map[string]int {
	held := map[string]int{}
	for _, x := range h.table.Lookup(key) {
		held[x.Remote.Node().ID] = x.Weight
	}
	return held
}

// sees waits until the node knows exactly these holders of a key.
func (h *house) sees(key string, want map[string]int) time.Duration {
	h.t.Helper()
	return until(h.t, fmt.Sprintf("%s sees %s at %v", h.node.ID, key, want), func() bool {
		return maps.Equal(h.holders(key), want)
	})
}

// remembers fails if the node does not know exactly these holders of a key now.
func (h *house) remembers(key string, want map[string]int) {
	h.t.Helper()
	if have := h.holders(key); !maps.Equal(have, want) {
		h.t.Errorf("%s sees %s at %v, want %v", h.node.ID, key, have, want)
	}
}

// publish waits until Consul has acknowledged a key.
func (h *house) publish(key string) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := h.Published(ctx, key); err != nil {
		h.t.Fatalf("%s publishes %s: %v", h.node.ID, key, err)
	}
}

func (h *house) isReady() {
	h.t.Helper()
	select {
	case <-h.Ready():
	case <-time.After(patience):
		h.t.Fatalf("%s is not ready", h.node.ID)
	}
}

func (h *house) leave() {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := h.Leave(ctx); err != nil {
		h.t.Errorf("%s leaves: %v", h.node.ID, err)
	}
}

// metric returns the sum of a metric over its labels; of a histogram how often it was observed.
func (h *house) metric(name string) float64 {
	h.t.Helper()
	families, err := h.registry.Gather()
	if err != nil {
		h.t.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			sum += value(m)
		}
	}
	return sum
}

func value(m *dto.Metric) float64 {
	switch {
	case m.Counter != nil:
		return m.Counter.GetValue()
	case m.Gauge != nil:
		return m.Gauge.GetValue()
	case m.Histogram != nil:
		return float64(m.Histogram.GetSampleCount())
	}
	return 0
}

// operator returns a client of Consul for what an operator does.
func operator(t *testing.T, c *consultest.Consul) *api.Client {
	t.Helper()
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	client, err := api.NewClient(&api.Config{
		Address: c.HTTP, Token: c.Token, HttpClient: &http.Client{Transport: transport, Timeout: patience},
	})
	if err != nil {
		t.Fatal(err)
	}
	return client
}

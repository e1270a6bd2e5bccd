package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/pikoproxy/piko/internal/tunnel"
)

func decodeHolding(body []byte) (map[string]int, error) {
	var lines []struct {
		ID        string
		Endpoints int
	}
	if err := json.Unmarshal(body, &lines); err != nil {
		return nil, fmt.Errorf("%w: %s", err, body)
	}
	all := map[string]int{}
	for _, l := range lines {
		all[l.ID] = l.Endpoints
	}
	return all, nil
}

// routableAtOnce measures the time from an agent's asking for an endpoint to an answer through each of the nodes.
func routableAtOnce(t *testing.T, count int) {
	c := startCluster(t, 3, "")
	var clients []*http.Client
	var sessions []*tunnel.AgentSession
	f := newFleet(t)
	for _, n := range c.nodes {
		clients = append(clients, n.client(t))
		s, err := tunnel.Dial(t.Context(), tunnel.DialOptions{URL: "http://" + n.upstream})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.CloseNow(http.ErrServerClosed); s.Wait() })
		f.running.Go(func() {
			for {
				in, err := s.Accept(f.ctx)
				if err != nil {
					return
				}
				f.running.Go(func() { answerWithName(in) })
			}
		})
		sessions = append(sessions, s)
	}
	var told, took []time.Duration
	for i := range count {
		endpoint := fmt.Sprint("at-once-", i)
		began := time.Now()
		if err := sessions[i%3].Listen(t.Context(), tunnel.Listen{Endpoint: endpoint}); err != nil {
			t.Fatal(err)
		}
		told = append(told, time.Since(began))
		for k, client := range clients {
			if a := get(t, client, at(endpoint, "/")); a.body != endpoint {
				t.Errorf("%s is listening, but through n%d: status %d %s", endpoint, k+1, a.StatusCode, a.body)
			}
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(told)
	slices.Sort(took)
	median, p99 := took[count/2], took[count*99/100]
	t.Logf("listening is told after %s (p99 %s); answers have come through all nodes after %s (p99 %s)",
		told[count/2].Round(time.Microsecond), told[count*99/100].Round(time.Microsecond), median.Round(time.Microsecond),
		p99.Round(time.Microsecond))
	if median > bound(50*time.Millisecond) || p99 > bound(250*time.Millisecond) {
		t.Errorf("it takes %s at the median, %s at p99: want 50 ms and 250 ms", median, p99)
	}
}

// loadsMany has two nodes hold endpoints, half each, and a third start.
func loadsMany(t *testing.T, count int, within time.Duration) {
	c := startCluster(t, 3, "")
	c.nodes[2].signal(t, 15)
	c.nodes[2].exit(t, settle)
	f := newFleet(t)
	began := time.Now()
	f.enlist("many-", count/2, c.nodes[0])
	f.enlist("more-", count/2, c.nodes[1])
	await(t, "all endpoints are registered", 2*time.Minute, func() error {
		if n := f.listens.Load(); n < int64(count) {
			return fmt.Errorf("%d are", n)
		}
		return nil
	})
	t.Logf("%d endpoints are registered and known at both nodes after %s", count, time.Since(began).Round(time.Millisecond))
	await(t, "Consul has all", time.Minute, func() error {
		for i := range 2 {
			if keys, err := c.nodes[i].metric("piko_consul_keys"); err != nil || int(keys) != count/2 {
				return fmt.Errorf("n%d has published %.0f: %w", i+1, keys, err)
			}
		}
		return nil
	})
	t.Logf("Consul has all after %s", time.Since(began).Round(time.Millisecond))
	started := time.Now()
	c.nodes[2].run(t)
	ready := time.Since(started)
	await(t, "the new node knows all", 2*time.Minute, func() error {
		have, err := c.nodes[2].holding()
		if err == nil && (have["n1"] != count/2 || have["n2"] != count/2) {
			err = fmt.Errorf("it knows %v", have)
		}
		return err
	})
	took := time.Since(started)
	t.Logf("a node that starts is ready after %s and knows all %d after %s, with %d MiB of memory", ready.Round(time.Millisecond),
		count, took.Round(time.Millisecond), c.nodes[2].rss(t)>>20)
	if took > within {
		t.Errorf("a node needs %s for %d endpoints: want %s at most", took, count, within)
	}
	c.samples(t, "many-", count/2, c.nodes[2])
}

// samples asks for some of many endpoints.
func (c *cluster) samples(t *testing.T, prefix string, count int, through ...*node) {
	t.Helper()
	for i, n := range through {
		client := n.client(t)
		for k := i; k < count; k += count / 100 {
			name := fmt.Sprint(prefix, k)
			if a := get(t, client, at(name, "/")); a.body != name {
				t.Fatalf("%s: status %d %s", name, a.StatusCode, a.body)
			}
		}
	}
}

// movesMany kills a node that holds many endpoints, whose agents go to the two others.
func movesMany(t *testing.T, count int, within time.Duration) {
	c := startCluster(t, 3, "")
	f := newFleet(t)
	f.enlist("moved-", count, c.nodes[0], c.nodes[1], c.nodes[2])
	await(t, "all are registered", 2*time.Minute, func() error { return c.know(count, 0, 1, 2) })
	await(t, "Consul has all", time.Minute, func() error {
		keys, err := c.nodes[0].metric("piko_consul_keys")
		if err == nil && int(keys) != count {
			err = fmt.Errorf("%.0f", keys)
		}
		return err
	})
	meter := c.meter(t, 1, 2)
	c.nodes[0].kill(t)
	killed := time.Now()
	took := await(t, "all are routable again", 2*time.Minute, func() error { return c.know(count, 1, 2) })
	t.Logf("%d endpoints are routable from both living nodes %s after the death of the third", count, took.Round(time.Millisecond))
	c.samples(t, "moved-", count, c.nodes[1], c.nodes[2])
	await(t, "Consul has all", time.Minute, func() error {
		sum := 0.0
		for _, n := range c.nodes[1:] {
			keys, err := n.metric("piko_consul_keys")
			if err != nil {
				return err
			}
			sum += keys
		}
		if int(sum) != count {
			return fmt.Errorf("it has %.0f", sum)
		}
		return nil
	})
	written := time.Since(killed)
	sum, most := meter()
	t.Logf("Consul has all after %s: %.0f transactions, at most %.0f in one second", written.Round(time.Millisecond), sum, most)
	if took > within {
		t.Errorf("it took %s: want %s at most", took, within)
	}
	// The budget of the cluster is 150 a second, and each node may run 10 ahead of its share.
	if most > 150+2*10 {
		t.Errorf("%.0f transactions in a second: want 150 at most, and 10 of a burst for each node", most)
	}
}

// know wants the living to know that they hold, all together, this many endpoints.
func (c *cluster) know(count int, living ...int) error {
	for _, i := range living {
		have, err := c.nodes[i].holding()
		if err != nil {
			return err
		}
		sum := 0
		for _, k := range living {
			sum += have[fmt.Sprint("n", k+1)]
		}
		if sum != count {
			return fmt.Errorf("n%d knows %v", i+1, have)
		}
	}
	return nil
}

// meter counts the transactions of nodes until the function that it returns is called, which gives their sum and the most
// in any second.
func (c *cluster) meter(t *testing.T, nodes ...int) func() (sum, most float64) {
	stop, done := make(chan struct{}), make(chan struct{})
	type reading struct {
		at  time.Time
		sum float64
	}
	var seen []reading
	read := func() {
		r := reading{at: time.Now()}
		for _, i := range nodes {
			v, err := c.nodes[i].metric("piko_consul_transactions_total")
			if err != nil {
				return
			}
			r.sum += v
		}
		seen = append(seen, r)
	}
	read()
	go func() {
		defer close(done)
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				read()
			case <-stop:
				return
			}
		}
	}()
	return func() (sum, most float64) {
		close(stop)
		<-done
		read()
		if len(seen) < 2 {
			t.Fatal("the metrics could not be read")
		}
		for i, a := range seen {
			for _, b := range seen[i+1:] {
				if b.at.Sub(a.at) > time.Second {
					break
				}
				most = max(most, b.sum-a.sum)
			}
		}
		return seen[len(seen)-1].sum - seen[0].sum, most
	}
}

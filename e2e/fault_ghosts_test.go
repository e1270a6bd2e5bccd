package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestFaultGhosts(t *testing.T) {
	t.Parallel()
	freshGhosts(t, 5)
}

// freshGhosts kills nodes and starts others in their place, which have new names. In the end the members, the routes and
// what Consul has must be those of the living, on every node. It returns the rig.
func freshGhosts(t *testing.T, kills int) *rig {
	r := startRig(t, rigOptions{Node: func(r *rig, _ int) string { return r.membership("") }})
	r.agent("e", 0, 1, 2)
	living := r.living()
	had := map[string]bool{}
	for k := range kills {
		for _, id := range living {
			had[id] = true
		}
		i := k % len(r.nodes)
		r.nodes[i].kill(t)
		r.run(i)
		living = r.living()
		had[living[i]] = true
	}
	t.Logf("%d kills, %d names in all; the living are %v", kills, len(had), living)
	if len(had) != kills+len(r.nodes) {
		t.Errorf("there were %d names: want a new one each time", len(had))
	}
	took := await(t, "members and routes are the living", expiry+settle, func() error {
		for i := range r.nodes {
			if err := r.knowsOnly(i, living, "e"); err != nil {
				return err
			}
		}
		return nil
	})
	t.Logf("members and routes are the living %s after the last kill", took.Round(time.Millisecond))
	await(t, "Consul has the living and nobody else", settle, func() error { return r.recorded(living) })
	r.reaches("e", settle)
	return r
}

// living are the names of the nodes, as each says itself.
func (r *rig) living() (ids []string) {
	r.t.Helper()
	for _, n := range r.nodes {
		_, body, err := fetch("http://" + n.admin + "/status")
		var own struct{ Node string }
		if err == nil {
			err = json.Unmarshal(body, &own)
		}
		if err != nil || own.Node == "" {
			r.t.Fatalf("the name of a node: %s, %v", body, err)
		}
		ids = append(ids, own.Node)
	}
	return ids
}

// knowsOnly wants a node to know the living and nobody else, and to have one route to an endpoint over each of them.
func (r *rig) knowsOnly(i int, living []string, endpoint string) error {
	states, err := r.nodes[i].states()
	if err != nil {
		return err
	}
	if len(states) != len(living) {
		return fmt.Errorf("n%d knows %v", i+1, states)
	}
	for _, id := range living {
		if states[id] != "up" {
			return fmt.Errorf("n%d knows %v: want %s up", i+1, states, id)
		}
	}
	_, body, err := fetch("http://" + r.nodes[i].admin + "/status/routes/" + endpoint)
	if err != nil {
		return err
	}
	var routes struct {
		Upstreams []struct {
			Remote bool
			Node   string
		}
	}
	if err := json.Unmarshal(body, &routes); err != nil {
		return err
	}
	if len(routes.Upstreams) != len(living) {
		return fmt.Errorf("n%d has the routes %s", i+1, body)
	}
	for _, u := range routes.Upstreams {
		if u.Remote && (!slices.Contains(living, u.Node) || u.Node == living[i]) {
			return fmt.Errorf("n%d has a route over %s, which is not of %v", i+1, u.Node, living)
		}
	}
	return nil
}

// recorded wants Consul to have keys and sessions of the living, and of nobody else.
func (r *rig) recorded(living []string) error {
	keys := r.consul.CLI("kv", "get", "-keys", "-recurse", "pikod/")
	seen := map[string]bool{}
	for line := range strings.Lines(keys) {
		parts := strings.Split(strings.TrimSpace(line), "/") // pikod, piko, v1, m or n, name
		if len(parts) < 5 || !slices.Contains(living, parts[4]) {
			return fmt.Errorf("Consul has the key %s", line)
		}
		seen[parts[3]+parts[4]] = true
	}
	if len(seen) != 2*len(living) {
		return fmt.Errorf("Consul has the keys %s", keys)
	}
	sessions := r.sessionIDs()
	for id := range sessions {
		if !slices.Contains(living, id) {
			return fmt.Errorf("Consul has a session of %s", id)
		}
	}
	if have := r.services(); len(sessions) != len(living) || have != len(living) {
		return fmt.Errorf("Consul has %d sessions and %d healthy instances", len(sessions), have)
	}
	return nil
}

// catalog is how many nodes of ours Consul's catalog has, healthy or not.
func (r *rig) catalog() (names []string) {
	r.t.Helper()
	var nodes []struct{ Node string }
	if err := json.Unmarshal(r.ask(http.MethodGet, "/v1/catalog/nodes", ""), &nodes); err != nil {
		r.t.Fatal(err)
	}
	for _, n := range nodes {
		if strings.HasPrefix(n.Node, "pikod-") {
			names = append(names, n.Node)
		}
	}
	return names
}

// allDie kills all nodes at once and starts one, with a new name, which has to clean up after the dead.
func (r *rig) allDie() {
	t := r.t
	for _, n := range r.nodes {
		n.kill(t)
	}
	died := time.Now()
	await(t, "Consul has no keys of the dead", expiry+settle, func() error {
		if keys := r.consul.CLI("kv", "get", "-keys", "-recurse", "pikod/"); strings.TrimSpace(keys) != "" {
			return fmt.Errorf("it has %s", keys)
		}
		return nil
	})
	t.Logf("Consul has no keys of the dead %s after all nodes have died; %d nodes in its catalog", time.Since(died).Round(time.Millisecond),
		len(r.catalog()))
	if n := r.services(); n != 0 {
		t.Errorf("%d dead instances of the service are healthy", n)
	}
	r.run(0)
	began := time.Now()
	r.nodes = r.nodes[:1]
	await(t, "the endpoint is back", settle, func() error { return r.knowsOnly(0, r.living(), "e") })
	r.reaches("e", settle)
	await(t, "the dead are gone from the catalog", 3*time.Minute, func() error {
		if names := r.catalog(); len(names) != 1 {
			return fmt.Errorf("it has %v", names)
		}
		return nil
	})
	t.Logf("the one that has started has cleaned up after %s", time.Since(began).Round(time.Second))
}

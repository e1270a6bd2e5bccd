package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"testing"
	"time"
)

// TestFaultOperators does to what is in Consul what people do by mistake. No request may notice.
func TestFaultOperators(t *testing.T) {
	t.Parallel()
	r := startRig(t, rigOptions{})
	r.agent("here", 0)
	r.agent("there", 1)
	r.whole(settle, "here", "there")
	r.unnoticed("kv delete -recurse", func(*testing.T) { r.consul.CLI("kv", "delete", "-recurse", "pikod/") })
	r.unnoticed("sessions destroyed", func(t *testing.T) {
		for _, id := range r.sessionIDs() {
			r.ask(http.MethodPut, "/v1/session/destroy/"+id, "")
		}
	})
	r.unnoticed("nodes taken out of the catalog", func(t *testing.T) {
		for i := range r.nodes {
			r.ask(http.MethodPut, "/v1/catalog/deregister", fmt.Sprintf(`{"Node": "pikod-piko-n%d"}`, i+1))
		}
	})
	r.unnoticed("a snapshot restored", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "consul.snapshot")
		r.consul.CLI("snapshot", "save", file)
		r.agent("after", 2)
		r.settled()
		r.consul.CLI("snapshot", "restore", file)
		r.reaches("after", bound(3*time.Second))
	})
	r.row("a second node of the same name", func(t *testing.T) {
		w := r.watchOver([]string{"here", "there"}, 0, 1, 2)
		began := time.Now()
		spare := r.wires.host("spare")
		twin := spare.start(t, "pikod", "--config", r.node(spare, "", r.membership("n1")).file)
		if code := twin.exit(t, settle); code == 0 {
			t.Error("it ends with code 0")
		}
		if err := contains(twin.output(t), "another node of the cluster has this name"); err != nil {
			t.Error(err)
		}
		w.clean(began, 0)
	})
}

func (r *rig) ask(method, path, body string) []byte {
	r.t.Helper()
	answer, err := r.consul.Ask(method, path, body, settle)
	if err != nil {
		r.t.Fatal(err)
	}
	return answer
}

// unnoticed does something to Consul's data under requests and wants no request to fail and the data to be whole soon.
func (r *rig) unnoticed(name string, f func(*testing.T)) {
	r.row(name, func(t *testing.T) {
		r.settled()
		before := r.ledgers()
		w := r.watchOver([]string{"here", "there"}, 0, 1, 2)
		pause(500 * time.Millisecond)
		began := time.Now()
		f(t)
		took := await(t, "Consul has everything again", 2*settle, func() error {
			keys := r.consul.CLI("kv", "get", "-recurse", "pikod/")
			if err := contains(keys, "/m/n1", "/m/n2", "/m/n3", "n1/head", "n2/head", "n3/head", `"here"`, `"there"`); err != nil {
				return err
			}
			if n := len(r.sessionIDs()); n != 3 {
				return fmt.Errorf("there are %d sessions", n)
			}
			if n := r.services(); n != 3 {
				return fmt.Errorf("%d instances of the service are healthy", n)
			}
			return nil
		})
		t.Logf("Consul has everything again after %s", took.Round(time.Millisecond))
		r.whole(settle, "here", "there")
		pause(time.Second)
		w.clean(began, 0)
		for i, did := range r.since(before) {
			t.Logf("n%d: %.0f transactions of %.0f bytes, %.0f new sessions", i+1, did.transactions, did.bytes, did.sessions)
			if did.transactions > 15+time.Since(began).Seconds()/2 || did.sessions > 2 {
				t.Errorf("n%d sent %.0f transactions and made %.0f sessions: want it to write once", i+1, did.transactions,
					did.sessions)
			}
		}
	})
}

// services is how many instances of the service pikod are healthy, as Consul's DNS sees it.
func (r *rig) services() int {
	r.t.Helper()
	var healthy []struct{ Service struct{ ID string } }
	if err := json.Unmarshal(r.ask(http.MethodGet, "/v1/health/service/pikod?passing", ""), &healthy); err != nil {
		r.t.Fatal(err)
	}
	return len(healthy)
}

package e2e

import (
	"fmt"
	"net/http"
	"syscall"
	"testing"
	"time"
)

func TestFaultConsulStops(t *testing.T) {
	t.Parallel()
	consulStops(t, 20*time.Second)
}

// consulStops takes Consul away while an agent moves and a new one comes.
func consulStops(t *testing.T, lasting time.Duration) {
	r := startRig(t, rigOptions{})
	moves := r.agent("moves", 0)
	r.agent("stays", 0)
	r.whole(settle, "moves", "stays")
	sessions := r.sessionIDs()
	before := r.ledgers()
	w := r.watchOver([]string{"stays"}, 0, 1, 2)
	r.consul.Kill()
	gone := time.Now()
	moves[0].signal(t, syscall.SIGTERM)
	r.agent("moves", 1)
	r.agent("new", 2)
	moved := time.Now()
	for _, endpoint := range []string{"moves", "new"} {
		r.reaches(endpoint, bound(3*time.Second))
	}
	t.Logf("without Consul a new endpoint is reachable through every node after %s", time.Since(moved).Round(time.Millisecond))
	late := r.watchOver([]string{"moves", "new"}, 0, 1, 2)
	pause(lasting - time.Since(gone))
	r.consul.Restart()
	back := time.Now()
	await(t, "Consul has what changed", settle, func() error {
		return contains(r.consul.CLI("kv", "get", "-recurse", "pikod/"), `"moves"`, `"new"`)
	})
	t.Logf("Consul was gone for %s; it has what changed %s after it has a leader again", back.Sub(gone).Round(time.Second),
		time.Since(back).Round(time.Millisecond))
	pause(3 * time.Second) // for a herd, if there is one
	w.clean(gone, 0)
	late.clean(gone, 0)
	for i, did := range r.since(before) {
		t.Logf("n%d: %.0f transactions of %.0f bytes in all, %.0f new sessions", i+1, did.transactions, did.bytes, did.sessions)
		// What failed counts too. One attempt every 2 to 5 s, the heartbeats, and what changed.
		took := time.Since(gone).Seconds()
		if most := 12 + took/2; did.transactions > most || did.sessions != 0 || did.bytes > 8000+200*took {
			t.Errorf("n%d sent %.0f transactions of %.0f bytes and made %.0f sessions: want what changed and no more",
				i+1, did.transactions, did.bytes, did.sessions)
		}
	}
	if now := r.sessionIDs(); fmt.Sprint(now) != fmt.Sprint(sessions) {
		t.Errorf("the sessions are %v: want them to outlive Consul: %v", now, sessions)
	}
	r.whole(settle, "moves", "stays", "new")
}

// reaches waits until requests for an endpoint are answered through every node.
func (r *rig) reaches(endpoint string, within time.Duration) {
	r.t.Helper()
	for i, n := range r.nodes {
		client := n.client(r.t)
		await(r.t, fmt.Sprintf("%s is reached through n%d", endpoint, i+1), within, func() error {
			a, err := try(client, request(r.t, http.MethodGet, at(endpoint, "/"), nil))
			if err == nil && a.body != endpoint {
				err = fmt.Errorf("status %d: %s", a.StatusCode, a.body)
			}
			return err
		})
	}
}

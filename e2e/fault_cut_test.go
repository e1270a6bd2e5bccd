package e2e

import (
	"errors"
	"fmt"
	"syscall"
	"testing"
	"time"
)

// TestFaultCuts has each fault last for a moment; TestLongFaults has it last until Consul gives the node up.
func TestFaultCuts(t *testing.T) {
	t.Parallel()
	r := startRig(t, rigOptions{})
	r.row("between two nodes", func(*testing.T) { r.cutPeers(5 * time.Second) })
	r.row("between a node and Consul", func(*testing.T) { r.cutConsul(5 * time.Second) })
	r.row("a node that is stopped", func(*testing.T) { r.stopNode(5 * time.Second) })
}

// passive is how long a fault of a node may show: until a stream was left unanswered, or the session was silent for too
// long.
const passive = 3500 * time.Millisecond

// expiry is when Consul has given up a node that it does not hear of: twice the life of its session.
const expiry = 20 * time.Second

// cutPeers cuts n1 from n2 and from nobody else.
func (r *rig) cutPeers(lasting time.Duration) {
	t := r.t
	r.agent("both", 1, 2)
	r.agent("only", 1)
	r.whole(settle, "both", "only")
	through, past := r.watchOver([]string{"both"}, 0), r.watchOver([]string{"both", "only"}, 1, 2)
	pause(500 * time.Millisecond)
	cut := time.Now()
	r.homes[0].cut(r.homes[1])
	await(t, "n1 knows that it can't reach n2", settle, func() error { return r.sees(0, "n2", "down") })
	t.Logf("n1 takes n2 for down after %s", time.Since(cut).Round(time.Millisecond))
	r.refuses(0, "only")
	await(t, "n3 reaches both", settle, func() error { return errors.Join(r.sees(2, "n1", "up"), r.sees(2, "n2", "up")) })
	r.agent("during", 1)
	pause(lasting - time.Since(cut))
	r.wires.heal()
	healed := time.Now()
	r.reaches("only", settle)
	t.Logf("the other side is reached %s after the cut has healed", time.Since(healed).Round(time.Millisecond))
	r.whole(settle, "both", "only", "during")
	through.clean(cut, bound(passive))
	past.clean(cut, 0)
}

// refuses wants a node to answer with an error for an endpoint that it can't reach, once the request was held for as long as
// its agents may need to go elsewhere.
func (r *rig) refuses(i int, endpoint string) {
	r.t.Helper()
	const wait = 5 * time.Second // endpoint_wait
	began := time.Now()
	a := get(r.t, r.nodes[i].client(r.t), at(endpoint, "/"))
	took := time.Since(began)
	r.t.Logf("%s through n%d: status %d %s after %s", endpoint, i+1, a.StatusCode, a.Header.Get("Piko-Error"),
		took.Round(time.Millisecond))
	if a.StatusCode < 500 || a.Header.Get("Piko-Error") == "" || took > wait+bound(time.Second) {
		r.t.Errorf("want an error of the node within %s", wait+bound(time.Second))
	}
}

// sees wants a node to take another for something.
func (r *rig) sees(i int, id, state string) error {
	states, err := r.nodes[i].states()
	if err == nil && states[id] != state {
		err = fmt.Errorf("n%d sees %v: want %s to be %q", i+1, states, id, state)
	}
	return err
}

// cutConsul cuts n1 from Consul.
func (r *rig) cutConsul(lasting time.Duration) {
	t := r.t
	r.agent("here", 0)
	r.agent("there", 1)
	r.whole(settle, "here", "there")
	r.settled()
	before, sessions := r.ledgers(), r.sessionIDs()
	w := r.watchOver([]string{"here", "there"}, 0, 1, 2)
	pause(500 * time.Millisecond)
	cut := time.Now()
	r.homes[0].cut(r.vaults...)
	r.agent("late-here", 0)
	r.agent("late-there", 1)
	r.reaches("late-here", bound(3*time.Second))
	r.reaches("late-there", bound(3*time.Second))
	late := r.watchOver([]string{"late-here", "late-there"}, 0, 1, 2)
	lost := lasting > expiry+5*time.Second
	if lost {
		await(t, "Consul has given n1 up", expiry+settle, func() error { return r.sees(1, "n1", "orphan") })
		t.Logf("n1 is an orphan after %s, and keeps its routes", time.Since(cut).Round(time.Millisecond))
	}
	pause(lasting - time.Since(cut))
	r.wires.heal()
	healed := time.Now()
	await(t, "Consul has what n1 holds", settle, func() error {
		return contains(r.consul.CLI("kv", "get", "-recurse", "pikod/piko/v1/n/n1/"), `"here"`, `"late-here"`)
	})
	t.Logf("Consul has what n1 holds %s after the cut has healed", time.Since(healed).Round(time.Millisecond))
	r.whole(settle, "here", "there", "late-here", "late-there")
	w.clean(cut, 0)
	late.clean(cut, 0)
	now := r.sessionIDs()
	for i, did := range r.since(before) {
		id := fmt.Sprint("n", i+1)
		t.Logf("%s: %.0f transactions of %.0f bytes, %.0f new sessions", id, did.transactions, did.bytes, did.sessions)
		made := 0.0
		if i == 0 && (lost || healed.Sub(cut) > expiry/2 && now[id] != sessions[id]) { // on a busy machine all that has taken long
			made = 1
		}
		if did.sessions != made || (now[id] == sessions[id]) != (made == 0) {
			t.Errorf("%s made %.0f sessions: want %.0f", id, did.sessions, made)
		}
		took := time.Since(cut).Seconds()
		if most := 12 + took/2; did.transactions > most || did.bytes > 8000+200*took {
			t.Errorf("%s sent %.0f transactions of %.0f bytes: want what changed and no more", id, did.transactions, did.bytes)
		}
	}
}

// settled waits until Consul has all that the nodes hold.
func (r *rig) settled() {
	r.t.Helper()
	await(r.t, "all is published", settle, func() error {
		for i := range r.nodes {
			if age := r.metric(i, "piko_consul_dirty_oldest_seconds"); age != 0 {
				return fmt.Errorf("n%d has changes that are %g s old", i+1, age)
			}
		}
		return nil
	})
}

// stopNode suspends n3, which keeps its connections and answers nothing.
func (r *rig) stopNode(lasting time.Duration) {
	t := r.t
	r.agent("both", 1, 2)
	r.agent("near", 0)
	r.agent("lost", 2)
	r.whole(settle, "both", "near", "lost")
	before := r.ledgers()
	through, near := r.watchOver([]string{"both"}, 0, 1), r.watchOver([]string{"near"}, 0, 1)
	pause(500 * time.Millisecond)
	stopped := time.Now()
	r.nodes[2].signal(t, syscall.SIGSTOP)
	await(t, "n1 knows that n3 does not answer", settle, func() error { return r.sees(0, "n3", "down") })
	t.Logf("n1 takes n3 for down after %s", time.Since(stopped).Round(time.Millisecond))
	r.refuses(0, "lost")
	pause(lasting - time.Since(stopped))
	if lasting > expiry+5*time.Second {
		if err := contains(r.consul.CLI("kv", "get", "-keys", "-recurse", "pikod/"), "/n3"); err == nil {
			t.Error("Consul still has keys of a node that was stopped for longer than its session lives")
		}
	}
	r.nodes[2].signal(t, syscall.SIGCONT)
	resumed := time.Now()
	r.reaches("lost", settle)
	t.Logf("the node is reached again %s after it goes on", time.Since(resumed).Round(time.Millisecond))
	r.whole(settle, "both", "near", "lost")
	through.clean(stopped, bound(passive))
	near.clean(stopped, 0)
	for i, did := range r.since(before) {
		t.Logf("n%d: %.0f transactions of %.0f bytes, %.0f new sessions", i+1, did.transactions, did.bytes, did.sessions)
	}
}

// losePower takes n3 off the wires and kills it, so that nobody is told.
func (r *rig) losePower() {
	t := r.t
	r.agent("both", 1, 2)
	r.whole(settle, "both")
	w := r.watchOver([]string{"both"}, 0, 1)
	pause(500 * time.Millisecond)
	lost := time.Now()
	r.homes[2].unplug()
	r.nodes[2].kill(t)
	await(t, "Consul has nothing of n3", expiry+settle, func() error {
		if contains(r.consul.CLI("kv", "get", "-keys", "-recurse", "pikod/"), "/n3") == nil {
			return fmt.Errorf("it has its keys")
		}
		for i := range 2 {
			if states, err := r.nodes[i].states(); err != nil || len(states) != 2 {
				return fmt.Errorf("n%d sees %v: %w", i+1, states, err)
			}
		}
		return nil
	})
	t.Logf("nobody knows of n3 %s after its loss", time.Since(lost).Round(time.Millisecond))
	w.clean(lost, bound(passive))
	r.homes[2].plug()
	r.run(2)
}

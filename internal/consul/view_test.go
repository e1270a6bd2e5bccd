package consul

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/pikoproxy/piko/internal/cluster"
)

// alone returns a Directory that nobody runs, and whose Consul is not there.
func alone(t *testing.T, p pace) *Directory {
	t.Helper()
	o := plainOptions()
	o.Settings.Address = []string{"127.0.0.1:1"}
	o.Probe = func(context.Context, string, string) error { return errors.New("nobody answers") }
	d, err := newDirectory(o, p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.closeIdle)
	d.begin(t.Context())
	return d
}

func other(life int) cluster.Node {
	return cluster.Node{ID: "other", Incarnation: fmt.Sprint("life-", life), Addr: "192.0.2.1:8003", State: cluster.Up}
}

// Whoever has missed some heads catches up with the next one, and needs no list.
func TestAHeadTellsOfAllChangesThatWereMissed(t *testing.T) {
	d := alone(t, defaultPace())
	n := other(1)
	p := newPeer(d, n, d.table.Meet(n))
	d.table.Replace(n.ID, n.Incarnation, 0, nil)
	s, h := newShelf(nil), history{}
	var head []byte
	for i := range uint64(5) {
		delta := cluster.Delta{From: i, To: i + 1, Weights: map[string]int{fmt.Sprint("e", i): 1}}
		s.set(fmt.Sprint("e", i), 1)
		head = h.head(n.Incarnation, delta, &s)
		h.acknowledged()
	}
	if err := p.take(t.Context(), n, head); err != nil {
		t.Fatalf("it was not enough: %v", err)
	}
	if keys, _ := d.table.Size(n.ID); keys != 5 {
		t.Errorf("%d keys are known, want 5", keys)
	}
}

// A record that comes back in the moment in which its node is given up brings the node back.
func TestANodeComesBackWhileItIsGivenUp(t *testing.T) {
	pace := defaultPace()
	pace.probe = time.Millisecond
	d := alone(t, pace)
	v := d.view
	ctx, cancel := context.WithCancel(t.Context())
	defer func() { cancel(); v.wg.Wait() }()
	n := other(1)
	v.meet(ctx, n)
	p := v.peers[n.ID]
	p.stop()
	p.start(ctx, &v.wg, false)
	probed := p.done
	var overtaken atomic.Bool
	d.table.OnNodes(func() {
		if !overtaken.Swap(true) { // who takes in the record, by who gives the node up
			<-probed
		}
	})
	n.State = cluster.Draining
	v.meet(ctx, n)
	if _, known := d.table.Node(n.ID); !known || !v.peers[n.ID].watching {
		t.Error("the node is forgotten and has a record")
	}
}

// What is known of nodes that have died does not stay for ever.
func TestDeadNodesAreForgotten(t *testing.T) {
	pace := defaultPace()
	pace.probe = time.Millisecond
	d := alone(t, pace)
	v := d.view
	ctx, cancel := context.WithCancel(t.Context())
	defer func() { cancel(); v.wg.Wait() }()
	v.meet(ctx, other(1))
	p := v.peers["other"]
	p.stop()
	p.start(ctx, &v.wg, false)
	<-p.done
	if err := v.take(ctx, ctx, api.KVPairs{}, false); err != nil {
		t.Fatal(err)
	}
	if len(v.peers) > 0 {
		t.Errorf("%v is still known", v.peers)
	}
}

// A record is held against what its node says itself, unless that has been silent for so long that it has been asked enough.
func TestASilentNodeIsNotAskedAgain(t *testing.T) {
	pace := defaultPace()
	pace.probe = time.Millisecond
	d := alone(t, pace)
	asked := 0
	d.probe = func(context.Context, string, string) error { asked++; return nil }
	v := d.view
	ctx, cancel := context.WithCancel(t.Context())
	defer func() { cancel(); v.wg.Wait() }()
	v.meet(ctx, other(1))
	if !v.contradicts(ctx, other(2)) || asked != 1 {
		t.Errorf("a node that answers was asked %d times, and its record believed", asked)
	}
	remote := v.peers["other"].remote
	remote.SetDown(true)
	for remote.DownFor() <= 2*missesAllowed*pace.probe {
		runtime.Gosched()
	}
	if v.contradicts(ctx, other(2)) || asked != 1 {
		t.Errorf("a node that is down was asked %d times in all, want once", asked)
	}
}

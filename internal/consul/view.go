package consul

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"sync"

	"github.com/hashicorp/consul/api"

	"github.com/pikoproxy/piko/internal/cluster"
)

// errContradicted says that a record is not believed.
var errContradicted = errors.New("its record says that it is gone, or another, but it answers as the one that is known")

// view keeps the table after what Consul has of the other nodes. One goroutine follows the members; it alone touches
// the fields.
type view struct {
	d     *Directory
	peers map[string]*peer
	first bool // no list of members has arrived yet
	wg    sync.WaitGroup
}

func newView(d *Directory) *view { return &view{d: d, peers: map[string]*peer{}, first: true} }

// run follows the members until ctx ends.
func (v *view) run(ctx context.Context) {
	defer v.wg.Wait()
	v.d.follow(ctx, func(call context.Context, q *api.QueryOptions) (*api.QueryMeta, error) {
		pairs, meta, err := v.d.readClient.KV().List(v.d.base+"m/", q)
		if err != nil {
			return nil, fmt.Errorf("list the members: %w", err)
		}
		if err := v.take(ctx, call, pairs, q.AllowStale); err != nil {
			return nil, err
		}
		return meta, nil
	})
}

// take compares a list of members with what is known. That a member is missing is believed only after asking again; a
// stale list does not even raise the question. An error means that the list has to be read again.
func (v *view) take(ctx, call context.Context, pairs api.KVPairs, stale bool) error {
	d := v.d
	seen := map[string]bool{}
	var own []byte
	var missing error
	for _, pair := range pairs {
		name := path.Base(pair.Key)
		d.metrics.readBytes.Add(float64(len(pair.Value)))
		if len(seen) >= maxMembers {
			d.metrics.bad.WithLabelValues("member").Inc()
			continue
		}
		if name == d.node.ID {
			own = pair.Value
			continue
		}
		n, err := decodeMember(name, pair.Value)
		if err != nil {
			d.metrics.bad.WithLabelValues("member").Inc()
			d.complain(fmt.Errorf("node %q: %w", name, err), "the record of a node cannot be read; it is passed over")
			seen[name] = true // it may be alive: what is known of it stays
			continue
		}
		if pair.Session == "" || v.older(n) {
			continue // left over from a life that has ended
		}
		seen[name] = true
		if v.contradicts(ctx, n) {
			missing = errors.Join(missing, fmt.Errorf("node %s: %w", n.ID, errContradicted))
			continue
		}
		v.meet(ctx, n)
	}
	if stale {
		return nil
	}
	d.canary.sawMember(own)
	for name, p := range v.peers {
		switch {
		case seen[name]:
		case p.watching:
			missing = errors.Join(missing, v.confirm(ctx, call, p))
		case p.dropped.Load(): // and has not come back
			p.stop()
			delete(v.peers, name)
		}
	}
	d.members.Store(int64(len(seen)) + 1)
	d.metrics.nodes.Set(float64(len(seen)))
	d.rebudget()
	if v.first && missing == nil {
		v.first = false
		v.awaitLoads(ctx)
	}
	return missing
}

// older reports whether a record is from before the life of the node that is known, as after a restored snapshot.
func (v *view) older(n cluster.Node) bool {
	p, known := v.peers[n.ID]
	if !known || p.dropped.Load() || p.node.Incarnation == n.Incarnation || !n.Started.Before(p.node.Started) {
		return false
	}
	p.contested.Store(true)
	return !p.dropped.Load() // it may have been dropped just before it could know
}

// contradicts reports whether a record says that a node is gone, or has become another, and the node itself, which we reach
// and which has proven that it belongs to the cluster, goes on as the one that is known. Whoever can write to Consul can say
// such things. It is asked again until the two agree: a node that has been restarted does not answer as the one before. One that
// has not answered its peers for as long as an orphan may is not waited for once more: many may have been restarted at a time.
func (v *view) contradicts(ctx context.Context, n cluster.Node) bool {
	p, known := v.peers[n.ID]
	if !known || p.dropped.Load() || p.remote.DownFor() > missesAllowed*v.d.pace.probe {
		return false
	}
	other := p.node.Incarnation != n.Incarnation
	// A node that leaves has told its peers before that it would.
	left := n.State == cluster.Left && p.remote.Node().State == cluster.Up
	return (other || left) && p.answers(ctx, p.node)
}

// meet takes in the record of another node.
func (v *view) meet(ctx context.Context, n cluster.Node) {
	p, known := v.peers[n.ID]
	if known && !p.watching {
		p.stop() // first: until then the orphan may still be given up, and be forgotten by the table
	}
	if known && (p.node.Incarnation != n.Incarnation || n.State == cluster.Left || p.dropped.Load()) {
		p.stop()
		delete(v.peers, n.ID)
		known = false
	}
	if known && p.watching && p.node == n {
		return // a peer session may have told more since: that it has left, for example
	}
	remote := v.d.table.Meet(n)
	switch {
	case remote == nil: // has left
	case !known:
		p = newPeer(v.d, n, remote)
		v.peers[n.ID] = p
		p.start(ctx, &v.wg, true)
		v.d.log.WithField("node", n.ID).Info("node joined")
	case !p.watching:
		p.node = n
		p.start(ctx, &v.wg, true)
		v.d.log.WithField("node", n.ID).Info("node is back in the directory")
	default:
		p.node = n
	}
}

// confirm asks the leader, with a quorum, whether the record of a node is really gone. If so the node is an orphan.
func (v *view) confirm(ctx, call context.Context, p *peer) error {
	q := (&api.QueryOptions{RequireConsistent: true}).WithContext(call)
	pair, _, err := v.d.readClient.KV().Get(v.d.memberKey(p.node.ID), q)
	if err != nil {
		return fmt.Errorf("confirm that node %s is gone: %w", p.node.ID, err)
	}
	if pair != nil && pair.Session != "" {
		if n, err := decodeMember(p.node.ID, pair.Value); err != nil || !v.older(n) {
			return nil
		}
	}
	v.d.log.WithField("node", p.node.ID).Warn("the record of a node has vanished; asking the node itself")
	p.stop()
	p.start(ctx, &v.wg, false)
	return nil
}

// awaitLoads closes ready when the members of the first list have been read.
func (v *view) awaitLoads(ctx context.Context) {
	loads := make([]<-chan struct{}, 0, len(v.peers))
	for _, p := range v.peers {
		loads = append(loads, p.loaded)
	}
	loads = slices.Clip(loads)
	v.wg.Go(func() {
		for _, loaded := range loads {
			select {
			case <-loaded:
			case <-ctx.Done():
				return
			}
		}
		close(v.d.ready)
	})
}

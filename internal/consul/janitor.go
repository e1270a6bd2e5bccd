package consul

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"
)

// sweep removes, until ctx ends, what dead nodes left behind and no session removes: nodes of the catalog that have
// neither a record nor a session, keys that lost their lock, and locks that nobody gives back. Every node does so, each
// thing after it has been seen dead for a while and with a transaction that does nothing when the node has returned, so no
// election is needed.
func (d *Directory) sweep(ctx context.Context) {
	dead := map[string]time.Time{} // what was found dead, and since when
	for sleep(ctx, d.jitter(d.pace.sweep)) {
		if d.look(ctx, dead) == nil {
			continue
		}
		// Others have found the same. Whoever comes later finds it done.
		if !sleep(ctx, rand.N(d.pace.sweepSpread+1)) { //nolint:gosec // a delay
			return
		}
		for thing, remove := range d.look(ctx, dead) {
			if d.budget.Wait(ctx) != nil {
				return
			}
			if err := remove(ctx); err != nil {
				d.log.WithError(err).WithField("key", thing).Debug("removing what a dead node left behind")
			}
		}
	}
}

// look notes in dead what looks dead now, and returns what has done so for long enough, and how to remove each; nil for
// nothing.
func (d *Directory) look(ctx context.Context, dead map[string]time.Time) (due map[string]func(context.Context) error) {
	found, err := d.findDead(ctx)
	if err != nil {
		d.log.WithError(err).Debug("looking for what dead nodes left behind")
		return nil
	}
	maps.DeleteFunc(dead, func(thing string, _ time.Time) bool { return found[thing] == nil })
	for thing, remove := range found {
		since, known := dead[thing]
		switch {
		case !known:
			dead[thing] = time.Now()
		case time.Since(since) >= d.pace.sweepAge:
			if due == nil {
				due = map[string]func(context.Context) error{}
			}
			due[thing] = remove
		}
	}
	return due
}

// findDead returns what looks dead now, and how to remove each.
func (d *Directory) findDead(ctx context.Context) (map[string]func(context.Context) error, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*writeTime)
	defer cancel()
	kv := d.readClient.KV()
	records, _, err := kv.List(d.base+"m/", readOptions(ctx))
	if err != nil {
		return nil, fmt.Errorf("list the members: %w", err)
	}
	found := map[string]func(context.Context) error{}
	alive := map[string]bool{d.node.ID: true}
	for _, pair := range records {
		name := path.Base(pair.Key)
		switch {
		case name == d.node.ID:
		case pair.Session == "":
			found[pair.Key] = func(ctx context.Context) error { return d.removeUnlocked(ctx, pair.Key) }
		default:
			alive[name] = true
		}
	}
	prefixes, _, err := kv.Keys(d.base+"n/", "/", readOptions(ctx))
	if err != nil {
		return nil, fmt.Errorf("list what nodes hold: %w", err)
	}
	for _, prefix := range prefixes {
		if !alive[path.Base(prefix)] {
			found[prefix] = func(ctx context.Context) error { return d.removeUnlocked(ctx, prefix) }
		}
	}
	if err := d.findLocks(ctx, found); err != nil {
		return nil, err
	}
	q := readOptions(ctx)
	q.NodeMeta = map[string]string{metaCluster: d.cluster}
	nodes, _, err := d.readClient.Catalog().Nodes(q)
	if err != nil {
		return nil, fmt.Errorf("list the nodes of the catalog: %w", err)
	}
	for _, n := range nodes {
		// The name is compared too, since only such names are ours by the rules of Consul's access control.
		if id := n.Meta[metaNode]; goodName(id) && !alive[id] && n.Node == catalogName(d.cluster, id) {
			found[n.Node] = func(ctx context.Context) error { return d.removeNode(ctx, n.Node, id) }
		}
	}
	return found, nil
}

// removeNode removes a node from the catalog if it has neither session nor record.
func (d *Directory) removeNode(ctx context.Context, name, id string) error {
	ctx, cancel := context.WithTimeout(ctx, writeTime)
	defer cancel()
	q := readOptions(ctx)
	q.RequireConsistent = true
	sessions, _, err := d.readClient.Session().Node(name, q)
	if err != nil || len(sessions) > 0 {
		return err
	}
	done, _, _, err := d.writeClient.Txn().Txn(api.TxnOps{
		{KV: &api.KVTxnOp{Verb: api.KVCheckNotExists, Key: d.memberKey(id)}},
		{Node: &api.NodeTxnOp{Verb: api.NodeDelete, Node: api.Node{Node: name}}},
	}, readOptions(ctx))
	if err == nil && done && id != d.node.ID {
		d.metrics.swept.WithLabelValues("node").Inc()
		d.log.WithField("node", id).Info("removed a dead node from the catalog")
	}
	return err
}

// removeUnlocked removes the keys under a prefix that no session holds.
func (d *Directory) removeUnlocked(ctx context.Context, prefix string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*writeTime)
	defer cancel()
	pairs, _, err := d.readClient.KV().List(prefix, readOptions(ctx))
	if err != nil {
		return err
	}
	pairs = slices.DeleteFunc(pairs, func(p *api.KVPair) bool {
		return p.Session != "" || p.Key != prefix && !strings.HasSuffix(prefix, "/")
	})
	for batch := range slices.Chunk(pairs, maxOps) {
		ops := make(api.TxnOps, 0, len(batch))
		for _, p := range batch {
			ops = append(ops, &api.TxnOp{KV: &api.KVTxnOp{Verb: api.KVDeleteCAS, Key: p.Key, Index: p.ModifyIndex}})
		}
		if err := d.budget.Wait(ctx); err != nil {
			return err
		}
		done, _, _, err := d.writeClient.Txn().Txn(ops, readOptions(ctx))
		if err != nil || !done {
			return err
		}
		d.metrics.swept.WithLabelValues("key").Add(float64(len(ops)))
	}
	return nil
}

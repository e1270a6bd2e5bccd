package consul

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/consul/api"
	"golang.org/x/time/rate"

	"github.com/pikoproxy/piko/internal/cluster"
)

// missesAllowed is how many probes in a row an orphan may leave unanswered.
const missesAllowed = 3

// peer follows one incarnation of another node.
//
//	watching --record gone--> orphan --no answer, or too long--> dropped
//	   ^--------record back------'
type peer struct {
	d      *Directory
	node   cluster.Node // the view's own
	remote *cluster.Remote

	watching bool // the view's own: the record is there
	cancel   context.CancelFunc
	done     chan struct{} // closed when the goroutine of the moment has ended
	dropped  atomic.Bool   // the orphan is dead
	// contested says that there is a record of the same name from an earlier time: after the orphan's end it counts.
	contested atomic.Bool

	lists    *rate.Limiter
	loaded   chan struct{} // closed after the first answer about its head
	loadOnce sync.Once
}

func newPeer(d *Directory, n cluster.Node, remote *cluster.Remote) *peer {
	return &peer{
		d: d, node: n, remote: remote, loaded: make(chan struct{}), lists: rate.NewLimiter(rate.Every(time.Second), 3),
	}
}

// start watches the node, or probes it as an orphan, until stop is called or ctx ends.
func (p *peer) start(ctx context.Context, wg *sync.WaitGroup, watch bool) {
	ctx, p.cancel = context.WithCancel(ctx)
	done, node := make(chan struct{}), p.node
	p.done, p.watching = done, watch
	wg.Go(func() {
		defer close(done)
		if watch {
			p.watch(ctx, node)
		} else {
			p.probe(ctx, node)
		}
	})
}

// stop ends what start began and waits for it.
func (p *peer) stop() {
	p.cancel()
	<-p.done
	p.isLoaded() // nobody shall wait for a node that has gone
}

func (p *peer) isLoaded() { p.loadOnce.Do(func() { close(p.loaded) }) }

// watch follows the head of the node.
func (p *peer) watch(ctx context.Context, node cluster.Node) {
	p.d.follow(ctx, func(call context.Context, q *api.QueryOptions) (*api.QueryMeta, error) {
		pair, meta, err := p.d.readClient.KV().Get(p.d.headKey(node.ID), q)
		if err != nil {
			return nil, fmt.Errorf("read the head of node %s: %w", node.ID, err)
		}
		if pair != nil {
			p.d.metrics.readBytes.Add(float64(len(pair.Value)))
			if err := p.take(call, node, pair.Value); err != nil {
				return nil, err
			}
		}
		p.isLoaded()
		return meta, nil
	})
}

// take takes in a head: by the changes that it carries where they join on to what is known, else by a list.
func (p *peer) take(ctx context.Context, node cluster.Node, value []byte) error {
	h, err := decodeHead(value)
	if err != nil {
		p.d.metrics.bad.WithLabelValues("head").Inc()
		p.d.complain(fmt.Errorf("node %s: %w", node.ID, err), "the head of a node cannot be read; its routes stay as they are")
		return nil
	}
	if h.Incarnation != node.Incarnation {
		return nil // its record will come, or has gone
	}
	table := p.d.table
	seq, known := table.Seq(node.ID, node.Incarnation)
	if known && h.Seq <= seq {
		return nil
	}
	for _, c := range h.Recent {
		if !known || c.To <= seq {
			continue
		}
		delta, bad := c.delta()
		p.d.metrics.bad.WithLabelValues("key").Add(float64(bad))
		if !table.Apply(node.ID, node.Incarnation, delta) {
			break
		}
	}
	if seq, known = table.Seq(node.ID, node.Incarnation); known && seq >= h.Seq {
		return nil
	}
	if known {
		p.d.metrics.reloads.Inc()
	}
	return p.list(ctx, node)
}

// list reads all that the node holds.
func (p *peer) list(ctx context.Context, node cluster.Node) error {
	if err := p.lists.Wait(ctx); err != nil {
		return err
	}
	// A list is in memory several times while it is read. Many nodes may have to be read at once.
	select {
	case p.d.listing <- struct{}{}:
		defer func() { <-p.d.listing }()
	case <-ctx.Done():
		return ctx.Err()
	}
	began := time.Now()
	prefix := p.d.nodePrefix(node.ID)
	pairs, _, err := p.d.readClient.KV().List(prefix, readOptions(ctx))
	if err != nil {
		return fmt.Errorf("list what node %s holds: %w", node.ID, err)
	}
	found, size, err := readList(prefix, pairs)
	p.d.metrics.bad.WithLabelValues("key").Add(float64(found.bad))
	p.d.metrics.bad.WithLabelValues("bucket").Add(float64(found.badBuckets))
	p.d.metrics.loadTime.Observe(time.Since(began).Seconds())
	p.d.metrics.loadBytes.Observe(float64(size))
	if err != nil {
		return fmt.Errorf("list what node %s holds: %w", node.ID, err)
	}
	if found.head.Incarnation == node.Incarnation {
		p.d.table.Replace(node.ID, node.Incarnation, found.head.Seq, found.keys)
	}
	return nil
}

// listed is what a list of one node contains.
type listed struct {
	head            head
	keys            map[string]int
	bad, badBuckets int // entries and buckets that were passed over
}

// readList reads a list of all keys of a node: the buckets of the generation that the head names. All come from one
// moment. A list that misses more than half of what the head promises is refused, since somebody is deleting.
func readList(prefix string, pairs api.KVPairs) (l listed, size int, err error) {
	l.keys = map[string]int{}
	for _, pair := range pairs {
		size += len(pair.Value)
		if pair.Key == prefix+"head" {
			if l.head, err = decodeHead(pair.Value); err != nil {
				return l, size, err
			}
		}
	}
	if l.head.Version == 0 {
		return l, size, errShort
	}
	buckets := prefix + generationName(l.head.Generation)
	for _, pair := range pairs {
		if !strings.HasPrefix(pair.Key, buckets) {
			continue
		}
		bad, err := decodeBucket(pair.Value, l.keys)
		l.bad += bad
		if err != nil {
			l.badBuckets++
		}
	}
	if len(l.keys)+l.bad < l.head.Keys/2 {
		return l, size, fmt.Errorf("%d keys of %d: %w", len(l.keys), l.head.Keys, errShort)
	}
	return l, size, nil
}

// probe asks an orphan itself, until its record returns (stop), it does not answer, or too long a time has passed.
func (p *peer) probe(ctx context.Context, node cluster.Node) {
	p.d.metrics.orphans.Inc()
	defer p.d.metrics.orphans.Dec()
	p.isLoaded()
	p.remote.SetOrphan(true)
	defer p.remote.SetOrphan(false)
	began := time.Now()
	for misses := 0; misses < missesAllowed && time.Since(began) < p.d.pace.orphan; {
		wait := p.d.pace.probe
		if p.answers(ctx, node) {
			misses = 0
		} else {
			misses++
		}
		if !sleep(ctx, wait-wait/10+rand.N(wait/5+1)) { //nolint:gosec // a delay
			return
		}
	}
	if ctx.Err() != nil {
		return
	}
	p.dropped.Store(true)
	p.d.table.Forget(node.ID, node.Incarnation)
	p.d.log.WithField("node", node.ID).Warn("node is gone; its routes were dropped")
	if p.contested.Load() {
		p.d.restart("contested")
	}
}

func (p *peer) answers(ctx context.Context, node cluster.Node) bool {
	if p.d.probe == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, p.d.pace.probeTimeout)
	defer cancel()
	return p.d.probe(ctx, node.Addr, node.Incarnation) == nil
}

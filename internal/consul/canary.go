package consul

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
)

// canary compares what this node wrote with what its own watch brings: that measures how long a write takes to arrive,
// shows a watch that is stuck, and finds keys that somebody else has changed. It is safe for concurrent use.
type canary struct {
	mu      sync.Mutex
	flying  []byte    // the head that is being sent
	sent    time.Time // when; for the head that was sent last
	write   uint64    // its number
	counted uint64    // the number of the head that was measured last
	head    []byte    // the head that Consul has; nil before there is one in this session
	member  []byte    // likewise the record
	since   time.Time // when head was acknowledged
	seen    []byte    // the head that the watch brought last
	record  []byte    // the record that the watch of the members brought last
	listed  bool      // that watch has brought something
}

// begin forgets what was written in the session before.
func (c *canary) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flying, c.head, c.member = nil, nil, nil
}

func (c *canary) sending(write uint64, value []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flying, c.write, c.sent = value, write, time.Now()
}

func (c *canary) acknowledged(value []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flying, c.head, c.since = nil, value, time.Now()
}

func (c *canary) wroteMember(value []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.member, c.since = value, time.Now()
}

// sawMember notes what the watch of the members brought of this node, nil for nothing.
func (c *canary) sawMember(value []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.record, c.listed = value, true
}

// saw notes what the watch brought, nil for nothing. It returns how long ago that was sent, if it was not measured yet,
// and whether it looks like somebody else's doing.
func (c *canary) saw(value []byte) (took time.Duration, foreign bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen = value
	ours := value != nil && (bytes.Equal(value, c.flying) || bytes.Equal(value, c.head))
	if ours && c.counted != c.write {
		if h, err := decodeHead(value); err == nil && h.Write == c.write {
			c.counted = c.write
			return time.Since(c.sent), false
		}
	}
	if ours || c.head == nil {
		return 0, false
	}
	h, err := decodeHead(value)
	return 0, err != nil || h.Write >= c.write
}

// expected returns what Consul should have, if that is settled: written in this session, with nothing under way.
func (c *canary) expected() (head, member []byte, settled bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.head, c.member, c.head != nil && c.member != nil && c.flying == nil
}

// overdue reports whether what was written at least age ago has not been seen.
func (c *canary) overdue(age time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.head != nil && c.flying == nil && time.Since(c.since) > age &&
		(!bytes.Equal(c.head, c.seen) || c.listed && !bytes.Equal(c.member, c.record))
}

// watchSelf follows this node's own head until ctx ends.
func (d *Directory) watchSelf(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for sleep(ctx, d.jitter(d.pace.current)) {
			if d.canary.overdue(d.pace.current) {
				d.inspect(ctx)
			}
		}
	})
	d.follow(ctx, func(_ context.Context, q *api.QueryOptions) (*api.QueryMeta, error) {
		pair, meta, err := d.readClient.KV().Get(d.headKey(d.node.ID), q)
		if err != nil {
			return nil, fmt.Errorf("read the own head: %w", err)
		}
		if q.AllowStale {
			return meta, nil
		}
		var value []byte
		if pair != nil {
			value = pair.Value
		}
		took, foreign := d.canary.saw(value)
		if took > 0 {
			d.metrics.propagation.Observe(took.Seconds())
		}
		if foreign {
			d.inspect(ctx)
		}
		return meta, nil
	})
}

// inspect asks Consul afresh for what this node wrote last. If that was changed, everything is written again; if it was
// not, the watch is stuck and begins anew.
func (d *Directory) inspect(ctx context.Context) {
	wantHead, wantMember, settled := d.canary.expected()
	session := *d.session.Load()
	if !settled || session == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, writeTime)
	defer cancel()
	same := true
	for key, want := range map[string][]byte{d.headKey(d.node.ID): wantHead, d.memberKey(d.node.ID): wantMember} {
		pair, _, err := d.writeClient.KV().Get(key, readOptions(ctx))
		if err != nil {
			return
		}
		same = same && pair != nil && pair.Session == session && bytes.Equal(pair.Value, want)
	}
	if head, member, still := d.canary.expected(); !still || !bytes.Equal(head, wantHead) || !bytes.Equal(member, wantMember) {
		return // written meanwhile
	}
	if !same {
		d.log.Warn("keys of this node were changed by somebody else; writing them again")
		d.metrics.repairs.Inc()
		d.writer.repair()
		return
	}
	if d.canary.overdue(d.pace.current) {
		d.metrics.degraded.Set(1)
		d.log.Warn("a watch does not bring what was written; beginning all watches anew")
		d.restart("stuck")
	}
}

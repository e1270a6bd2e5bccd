package consul

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/pikoproxy/piko/internal/backoff"
	"github.com/pikoproxy/piko/internal/cluster"
)

// writer publishes what the node holds. One goroutine at a time is in run; the others speak with it through what mu
// guards.
//
//	change -> (3 ms, more may come) -> (write budget) -> transaction of the dirty buckets and the head -> acknowledged
//
// It computes every transaction from the state of that moment and not from events, so that what cancels out is never
// written, nothing can overflow, and to try again is harmless.
type writer struct {
	d      *Directory
	kick   chan struct{} // capacity 1; sent to by whoever sets a flag below
	cursor *cluster.Cursor
	store  shelf // what the node holds, in buckets; run's own
	sent   history

	seq, ackedSeq uint64              // of Local: what store holds, what Consul has
	pending       map[string]struct{} // keys that changed after ackedSeq
	urgent        bool                // a key came or went, so that waiting would show
	lazySince     time.Time           // of the oldest change that is not urgent; zero for none
	memberDirty   bool                // the record was not written yet, or must be again
	headDirty     bool
	maxBytes      int // of the values in one transaction; less after Consul refused one as too large
	repaired      time.Time

	mu         sync.Mutex
	acked      map[string]int // what Consul has, or had in the session before
	live       bool           // Consul has it in this session
	waiters    map[string]*waiter
	dirtySince time.Time // of the oldest change not acknowledged; zero for none
	wantMember bool      // flags for run
	wantRepair bool
}

const (
	maxOps       = 62      // bucket operations in a transaction: Consul takes 64 up to 1.13, and record and head come on top
	maxTxnBytes  = 330_000 // with the head at most 350 KB, and Consul takes 380 KB before base64
	minTxnBytes  = 16 << 10
	lockDelay    = time.Second
	degradedTime = 2 * time.Second
)

func newWriter(d *Directory) *writer {
	return &writer{
		d: d, kick: make(chan struct{}, 1), pending: map[string]struct{}{}, maxBytes: maxTxnBytes,
		acked: map[string]int{}, waiters: map[string]*waiter{},
	}
}

// run publishes everything under a new session and then every change, until ctx ends or the session is lost.
func (w *writer) run(ctx context.Context, session string) error {
	w.begin()
	retry := backoff.Backoff{Min: w.d.pace.retryMin, Max: w.d.pace.retryMax}
	heartbeat := time.NewTicker(w.d.jitter(w.d.pace.heartbeat))
	defer heartbeat.Stop()
	verify := time.NewTicker(w.d.jitter(w.d.pace.verify))
	defer verify.Stop()
	tags := newTagger(w.d)
	defer tags.stop()
	for {
		err := w.flush(ctx, session)
		if err == nil {
			retry.Reset()
		} else if err := w.trouble(ctx, err, &retry); err != nil {
			return err
		} else {
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.cursor.Changed():
			if !sleep(ctx, w.d.pace.collect) {
				return ctx.Err()
			}
		case <-w.kick:
		case <-w.due():
			w.urgent = true
		case <-heartbeat.C:
			w.headDirty = true
		case <-verify.C:
			if err := w.verify(ctx, session); err != nil && ctx.Err() == nil {
				w.d.log.WithError(err).Warn("what Consul has of this node could not be compared")
			}
		case <-tags.due():
			tags.publish(ctx, &w.store)
		}
	}
}

// begin prepares for a new session: Consul has nothing of ours. The changes since the last head go on from there, so that
// readers who have that one need no list.
func (w *writer) begin() {
	w.mu.Lock()
	w.live = false
	w.mu.Unlock()
	w.d.canary.begin()
	if w.cursor != nil {
		w.store.nextGeneration()
	} else {
		w.cursor = w.d.local.Follow()
		seq, weights := w.d.local.Snapshot()
		w.store = newShelf(weights)
		w.seq, w.ackedSeq = seq, seq
		for key := range weights {
			w.pending[key] = struct{}{}
		}
	}
	w.memberDirty, w.headDirty = true, true
}

// close ends the following of Local, after the last run.
func (w *writer) close() {
	if w.cursor != nil {
		w.cursor.Close()
		w.cursor = nil
	}
}

// due returns a channel that receives when changes that can wait have waited enough, or a repair may be made.
func (w *writer) due() <-chan time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.wantRepair:
		return time.After(time.Until(w.repaired.Add(w.d.pace.repair)))
	case !w.lazySince.IsZero():
		return time.After(time.Until(w.lazySince.Add(w.d.pace.lazy)))
	}
	return nil
}

// trouble waits until a transaction may be tried again, or returns why not.
func (w *writer) trouble(ctx context.Context, err error, retry *backoff.Backoff) error {
	var held *heldError
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, errLost):
		return err
	case errors.As(err, &held):
		if err := w.d.takeover(ctx, held.key); errors.Is(err, ErrDuplicate) {
			return err
		} else if err != nil {
			w.d.log.WithError(err).Warn("a key of this node is held by another session")
		}
		return w.pause(ctx, w.d.pace.retryMin)
	case errors.Is(err, errLockDelay):
		return w.pause(ctx, lockDelay)
	case status(err) == 413 && w.maxBytes > minTxnBytes:
		w.maxBytes /= 2
		return nil
	}
	if w.age() > degradedTime {
		w.d.metrics.degraded.Set(1)
	}
	w.d.complain(err, "changes could not be published; trying again")
	return retry.Wait(ctx)
}

func (w *writer) pause(ctx context.Context, t time.Duration) error {
	if !sleep(ctx, t) {
		return ctx.Err()
	}
	return nil
}

// absorb takes what changed into the buckets.
func (w *writer) absorb() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.wantMember {
		w.wantMember, w.memberDirty = false, true
	}
	if w.wantRepair && time.Since(w.repaired) >= w.d.pace.repair {
		w.wantRepair, w.repaired = false, time.Now()
		w.memberDirty, w.headDirty = true, true
		w.store.allDirty()
	}
	d := w.cursor.Next()
	w.seq = d.To
	for key, weight := range d.Weights {
		w.store.set(key, weight)
		if weight == w.acked[key] && !w.store.isDirty(key) {
			delete(w.pending, key)
			continue
		}
		w.pending[key] = struct{}{}
		if (weight > 0) != (w.acked[key] > 0) {
			w.urgent = true
		}
	}
	if len(w.pending) > 0 && w.lazySince.IsZero() {
		w.lazySince = time.Now()
	}
	if len(w.pending) > 0 && w.dirtySince.IsZero() {
		w.dirtySince = time.Now()
	}
	w.d.metrics.dirty.Set(float64(len(w.pending)))
}

// flush writes what is dirty, if it may not wait: first what does not fit into the last transaction, then the rest with
// the head, which alone makes it valid.
func (w *writer) flush(ctx context.Context, session string) error {
	w.absorb()
	if !w.urgent && !w.memberDirty && !w.headDirty {
		return nil
	}
	w.store.fit()
	for {
		began := time.Now()
		if err := w.d.budget.Wait(ctx); err != nil {
			return err
		}
		w.d.rebudget()
		w.d.metrics.budgetWait.Observe(time.Since(began).Seconds())
		if last, err := w.write(ctx, session); err != nil || last {
			return err
		}
	}
}

// write sends one transaction and reports whether it was the last of a flush.
func (w *writer) write(ctx context.Context, session string) (last bool, err error) {
	t := transaction{d: w.d, session: session}
	record := encodeMember(w.d.self())
	if w.memberDirty {
		t.lock(w.d.memberKey(w.d.node.ID), record)
	}
	prefix := w.d.nodePrefix(w.d.node.ID)
	var done []int
	for _, i := range slices.Sorted(maps.Keys(w.store.dirty)) {
		value := encode(w.store.parts[i])
		if len(done) >= maxOps-len(w.store.stale) || len(done) > 0 && t.bytes+len(value) > w.maxBytes {
			break
		}
		t.lock(prefix+w.store.bucket(i), value)
		done = append(done, i)
	}
	last = len(done) == len(w.store.dirty)
	var value []byte
	if last {
		value = w.head()
		t.lock(w.d.headKey(w.d.node.ID), value)
		for generation := range w.store.stale {
			t.deleteTree(prefix + generationName(generation))
		}
		w.d.canary.sending(w.sent.write, value)
	}
	if err := t.send(ctx); err != nil {
		return false, err
	}
	if w.memberDirty {
		w.memberDirty = false
		w.d.canary.wroteMember(record)
	}
	for _, i := range done {
		delete(w.store.dirty, i)
	}
	if last {
		w.acknowledge(value)
	}
	return last, nil
}

// head returns the value of the head for what the buckets hold now.
func (w *writer) head() []byte {
	d := cluster.Delta{From: w.ackedSeq, To: w.seq, Weights: make(map[string]int, len(w.pending))}
	for key := range w.pending {
		d.Weights[key] = w.store.weight(key)
	}
	return w.sent.head(w.d.node.Incarnation, d, &w.store)
}

// acknowledge notes that Consul has all that the buckets hold and wakes those who waited for it.
func (w *writer) acknowledge(value []byte) {
	w.d.canary.acknowledged(value)
	w.sent.acknowledged()
	w.ackedSeq, w.headDirty, w.urgent, w.lazySince = w.seq, false, false, time.Time{}
	clear(w.store.stale)
	w.d.metrics.degraded.Set(0)
	w.d.metrics.dirty.Set(0)
	w.d.metrics.keys.Set(float64(w.store.n))
	w.d.metrics.buckets.Set(float64(len(w.store.parts)))
	w.mu.Lock()
	defer w.mu.Unlock()
	w.dirtySince = time.Time{}
	for key := range w.pending {
		if weight := w.store.weight(key); weight > 0 {
			w.acked[key] = weight
			w.tellLocked(key)
		} else {
			delete(w.acked, key)
		}
	}
	clear(w.pending)
	if w.live {
		return
	}
	w.live = true
	for key := range w.waiters {
		if w.acked[key] > 0 {
			w.tellLocked(key)
		}
	}
}

// touchMember has the record written again.
func (w *writer) touchMember() {
	w.mu.Lock()
	w.wantMember = true
	w.mu.Unlock()
	w.wake()
}

// repair has everything written again, at most once in a while.
func (w *writer) repair() {
	w.mu.Lock()
	w.wantRepair = true
	w.mu.Unlock()
	w.wake()
}

func (w *writer) wake() {
	select {
	case w.kick <- struct{}{}:
	default:
	}
}

// age returns how long ago the oldest change was made that Consul has not acknowledged.
func (w *writer) age() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.dirtySince.IsZero() {
		return 0
	}
	return time.Since(w.dirtySince)
}

// farewell writes that the node has left. It is called after the last run.
func (w *writer) farewell(ctx context.Context, session string) error {
	ctx, cancel := context.WithTimeout(ctx, writeTime)
	defer cancel()
	t := transaction{d: w.d, session: session}
	t.lock(w.d.memberKey(w.d.node.ID), encodeMember(w.d.self()))
	return t.send(ctx)
}

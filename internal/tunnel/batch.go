package tunnel

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/pikoproxy/piko/internal/websocket"
)

const (
	// maxFrame bounds the data frames of our streams, so that no stream holds up the others for long, and that yamux,
	// which keeps a buffer of the largest frame it ever wrote, keeps little.
	maxFrame = 32 << 10

	// maxBatch bounds what waits for the socket. With the resets of all streams and the urgent frames it stays below the
	// message limit of 256 KiB.
	maxBatch = 240 << 10

	urgentRoom = 8 * frameSize
	batchFront = websocket.HeaderRoom + urgentRoom
	smallBatch = 16 << 10
	largeBatch = batchFront + maxBatch + 8<<10

	flusherIdle = time.Second
)

var errFinished = errors.New("write after the end")

// writer is what a link has to send.
//
//	          append                     empty for 1-2 s, or closed
//	(none) ------------> flushing <---+ ----------------------------> (none)
//	                       | empty    | append
//	                       +-> parked-+
type writer struct {
	batch    *batch
	spare    *batch
	urgent   [urgentRoom]byte
	nurgent  int
	head     [frameSize]byte // of a data frame whose body comes with the next Write
	wantBody int
	running  bool // there is a flusher
	parked   bool
	retire   bool
	muted    bool // after our Close frame: what yamux still says is dropped
	flushes  uint64
	seen     uint64 // flushes when the idle timer last fired
	idle     *time.Timer
	room     sync.Cond
}

// batch holds frames to be sent as one message, behind room for the message's header and for urgent frames.
type batch struct{ b []byte }

// The caches are shared by all sessions, so that idle ones hold no buffer.
var (
	smallBatches = sync.Pool{New: func() any { return &batch{make([]byte, batchFront, smallBatch)} }}
	largeBatches = sync.Pool{New: func() any { return &batch{make([]byte, batchFront, largeBatch)} }}
)

func (b *batch) recycle() {
	b.b = b.b[:batchFront]
	switch cap(b.b) {
	case smallBatch:
		smallBatches.Put(b)
	case largeBatch:
		largeBatches.Put(b)
	}
}

// Write takes frames from yamux, which writes a header and then, for data, the body. It returns when they are in the batch,
// so what it takes may never be sent: the session then ends. Only one goroutine calls it. It keeps no reference to p.
func (l *link) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.wantBody == 0 {
		if len(p) != frameSize {
			return 0, fmt.Errorf("write of %d bytes, want a frame header", len(p))
		}
		if h := frame(p); h.kind() == kindData && h.length() > 0 {
			copy(l.head[:], p)
			l.wantBody = int(h.length())
			return len(p), nil
		}
		return len(p), l.frameLocked(p, nil)
	}
	if len(p) != l.wantBody {
		return 0, fmt.Errorf("write of %d bytes, want a body of %d", len(p), l.wantBody)
	}
	l.wantBody = 0
	return len(p), l.frameLocked(l.head[:], p)
}

// frameLocked queues a frame of yamux once there is room. The caller holds mu, which is released while waiting.
func (l *link) frameLocked(h frame, body []byte) error {
	need := len(h) + len(body)
	for !l.closed && !l.broken && !l.muted && l.batch != nil && len(l.batch.b)-batchFront+need > maxBatch {
		l.room.Wait()
	}
	if l.muted {
		return nil
	}
	if l.closed || l.broken {
		return errFinished
	}
	if !l.outboundLocked(h) {
		return nil
	}
	// A plain window update never depends on a frame before it, since the peer knows the stream: it has sent data on it.
	if h.kind() == kindWindow && h.flags() == 0 {
		l.urgentLocked(h, true)
		return nil
	}
	l.appendLocked(h, body)
	return nil
}

// urgentLocked queues a frame to be sent first. When there is no room for it, it goes with the others, or, if it need not be
// sent and the batch is full, nowhere. The caller holds mu.
func (l *link) urgentLocked(h frame, must bool) {
	switch {
	case l.muted:
	case l.nurgent+len(h) <= urgentRoom:
		l.nurgent += copy(l.urgent[l.nurgent:], h)
		l.wakeLocked()
	case must || l.batch == nil || len(l.batch.b) < maxBatch:
		l.appendLocked(h, nil)
	}
}

// appendLocked queues a frame. The caller holds mu.
func (l *link) appendLocked(h frame, body []byte) {
	if l.muted {
		return
	}
	need := len(h) + len(body)
	if l.batch == nil {
		if l.spare != nil && need <= smallBatch-batchFront {
			l.batch, l.spare = l.spare, nil
		} else if need <= smallBatch-batchFront {
			l.batch = smallBatches.Get().(*batch)
		} else {
			l.batch = largeBatches.Get().(*batch)
		}
	}
	if b := l.batch; len(b.b)+need > cap(b.b) && cap(b.b) == smallBatch {
		l.batch = largeBatches.Get().(*batch)
		l.batch.b = append(l.batch.b, b.b[batchFront:]...)
		l.keepLocked(b)
	}
	l.batch.b = append(append(l.batch.b, h...), body...)
	l.wakeLocked()
}

// keepLocked keeps a small batch for the next round, and gives back others. The caller holds mu.
func (l *link) keepLocked(b *batch) {
	if l.spare == nil && cap(b.b) == smallBatch && l.running && !l.retire {
		b.b = b.b[:batchFront]
		l.spare = b
		return
	}
	b.recycle()
}

// wakeLocked makes sure that a flusher runs. The caller holds mu.
func (l *link) wakeLocked() {
	switch {
	case l.closed || l.broken:
	case !l.running:
		l.running, l.retire = true, false
		l.idle = time.AfterFunc(flusherIdle, l.checkIdle)
		go l.flush() // Close waits for it
	case l.parked:
		l.parked = false
		l.wake <- struct{}{} // never blocks: it has room for one, and parked is set once for each receive
	}
}

// checkIdle ends the flusher when it had nothing to do since the last time. A timer that is armed once a second costs less
// than one that is armed for every flush.
func (l *link) checkIdle() {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case !l.running:
	case l.parked && l.flushes == l.seen:
		l.retire, l.parked = true, false
		l.wake <- struct{}{}
	default:
		l.seen = l.flushes
		l.idle.Reset(flusherIdle)
	}
}

// flush sends batches until there is nothing to send for a while, or the session ends. It is made runnable by the first
// frame, and gets to run when yamux's sender has no more: that alone gathers frames, without a timer.
func (l *link) flush() {
	l.mu.Lock()
	for {
		for l.batch == nil && l.nurgent == 0 {
			if l.closed || l.retire || l.broken {
				l.endFlusherLocked()
				l.mu.Unlock()
				return
			}
			l.parked = true
			l.mu.Unlock()
			<-l.wake
			l.mu.Lock()
		}
		b, p := l.takeLocked()
		l.mu.Unlock()
		err := l.ws.WriteReserved(p)
		l.mu.Lock()
		l.keepLocked(b)
		if err != nil {
			l.endFlusherLocked()
			l.mu.Unlock()
			l.fail(fmt.Errorf("write: %w", err))
			return
		}
	}
}

// takeLocked takes all that waits, ready for the WebSocket. The caller holds mu.
func (l *link) takeLocked() (*batch, []byte) {
	b := l.batch
	if b == nil {
		if b = l.spare; b == nil {
			b = smallBatches.Get().(*batch)
		}
		l.spare = nil
	}
	l.batch = nil
	copy(b.b[batchFront-l.nurgent:], l.urgent[:l.nurgent])
	p := b.b[urgentRoom-l.nurgent:]
	l.nurgent = 0
	l.flushes++
	l.room.Broadcast()
	return b, p
}

// endFlusherLocked tidies up after the flusher. The caller holds mu.
func (l *link) endFlusherLocked() {
	l.running = false
	l.idle.Stop()
	l.idle = nil
	if l.spare != nil {
		l.spare.recycle()
		l.spare = nil
	}
	if l.batch != nil {
		l.batch.recycle()
		l.batch = nil
	}
	l.nurgent = 0
	l.room.Broadcast()
}

// awaitFlusher waits until there is no flusher. The link is closed, broken or muted.
func (l *link) awaitFlusher() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.room.Broadcast() // frees a Write that waits for room
	for l.running {
		l.retire = true
		if l.parked {
			l.parked = false
			l.wake <- struct{}{}
		}
		l.room.Wait()
	}
}

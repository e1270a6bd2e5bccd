package tunnel

import (
	"errors"
	"sync"
	"time"

	"github.com/pikoproxy/piko/internal/socket"
	"github.com/pikoproxy/piko/internal/websocket"
)

const (
	// maxFrame bounds the data frames of our streams, so that no stream holds up the others for long. Two make a block.
	maxFrame = socket.Block / 2

	// maxBatch bounds what waits for the socket. With the ends of all streams and the urgent frames it stays below the
	// message limit of 256 KiB.
	maxBatch = 224 << 10

	// smallShare is the part of a batch that is left to frames of at most maxSmall bytes. However many streams wait to send
	// much, a small answer goes with the next batch.
	smallShare = 32 << 10
	maxSmall   = 4 << 10

	urgentRoom = 8 * frameSize
	batchFront = websocket.HeaderRoom + urgentRoom
	smallBatch = 16 << 10
	largeBatch = batchFront + 256<<10 - urgentRoom

	// maxLate bounds the frames that do not wait for room and for which there is none: ends of some 87,000 streams.
	maxLate = 1 << 20

	flusherIdle = time.Second

	// aloneAfter is after how many messages with one frame each a writer no longer waits for others, and probeEvery how often
	// it looks whether there are any by now.
	aloneAfter = 32
	probeEvery = 16

	// enough frames in a batch, or one for each enoughOf streams, are not made to wait for more, nor is as much as a long one:
	// the far end has something to do meanwhile, and what each would save of the price of a write is little by then.
	enough   = 8
	enoughOf = 8
)

var (
	errUnread = errors.New("peer takes nothing and asks for more")
	errStuck  = errors.New("frames waited too long for the socket")
)

// writer is what a link has to send. Whenever something waits, somebody sends: one at a time.
//
//	         write, nobody sends             more has come meanwhile
//	(nobody) -------------------> the writer ------------------------> the flusher
//	    |                            |                                    |    |
//	    | other frame                | done                          done |    | empty for 1-2 s
//	    +----> the flusher           +------------> (nobody) <------------+    +--> ends
//
// Who has just written sends it himself: that spares it the way to another goroutine. But he waits until everybody else who is
// about to write has done so, or until there is enough, which then is sent by who has written last: that joins frames without a
// timer. The flusher takes over when that is not enough.
type writer struct {
	batch   *batch
	late    []byte // frames that go after the batch, for want of room in it
	urgent  [urgentRoom]byte
	nurgent int
	owing   []*Stream // whom there was no room to credit
	frames  int       // of data, in the batch
	alone   int       // messages in a row that had one such frame, though others were given the time to add theirs
	turn    uint32    // the number of the last duty to send
	yield   bool      // whoever has just written is to give them that time
	sending bool      // somebody sends
	waiting bool      // and waits for others before
	writing bool      // and is writing to the socket
	running bool      // there is a flusher
	parked  bool      // it waits for wake
	handed  bool      // it is to send on
	retire  bool
	muted   bool // after our Close frame: what is still written is dropped
	flushes uint64
	seen    uint64        // flushes when the idle timer last fired
	asked   uint64        // flushes when moved last reported some
	wake    chan struct{} // to the flusher, when it is parked
	idle    *time.Timer
	room    chan struct{} // closed when there may be room, or the session ends; nil: nobody waits
	stuck   *time.Timer   // ends the session when nothing is flushed
	stalls  uint64        // flushes when stuck was last armed
}

// batch holds frames to be sent as one message, behind room for the message's header and for urgent frames. They are masked
// already. The length of the urgent frames is a multiple of that of the key, so that it does not matter to the others.
type batch struct {
	b         []byte
	key, next uint32 // of the message, and of the next byte
}

// add appends a piece, for which there must be room.
func (b *batch) add(p []byte) {
	n := len(b.b)
	b.b = b.b[:n+len(p)]
	b.next = websocket.Mask(b.b[n:], p, b.next)
}

// The caches are shared by all sessions, so that idle ones hold no buffer.
var (
	smallBatches = sync.Pool{New: func() any { return &batch{b: make([]byte, batchFront, smallBatch)} }}
	largeBatches = sync.Pool{New: func() any { return &batch{b: make([]byte, batchFront, largeBatch)} }}
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

// fullLocked reports whether a frame with a body of n bytes has to wait. The caller holds mu.
func (l *link) fullLocked(n int) bool {
	most := maxBatch
	if n > maxSmall {
		most -= smallShare
	}
	full := l.late != nil || l.batch != nil && len(l.batch.b)-batchFront+frameSize+n > most
	return full && !l.muted && !l.closed && !l.broken
}

// awaitRoomLocked returns what is closed when there may be room. The caller holds mu.
func (l *link) awaitRoomLocked() <-chan struct{} {
	if l.room == nil {
		l.room = make(chan struct{})
		l.watchLocked()
	}
	return l.room
}

// watchLocked begins to watch whether the session is stuck, unless that is watched already. The caller holds mu.
func (l *link) watchLocked() {
	if l.stuck == nil {
		l.stalls = l.flushes
		l.stuck = time.AfterFunc(l.writeTimeout, l.checkStuck)
	}
}

// roomLocked wakes those who wait for room, or for nobody to send. The caller holds mu.
func (l *link) roomLocked() {
	if l.room != nil {
		close(l.room)
		l.room = nil
	}
}

// checkStuck ends the session when somebody waits for room, or for the socket, and nothing was flushed since the timer was
// armed.
func (l *link) checkStuck() {
	l.mu.Lock()
	waiting := l.room != nil || l.writing
	stuck := waiting && l.flushes == l.stalls
	if l.stuck = nil; waiting && !stuck && !l.closed && !l.broken {
		l.watchLocked()
	}
	l.mu.Unlock()
	if stuck {
		l.fail(errStuck)
	}
}

// queueLocked queues a frame without a body that does not wait for room, and has it sent. The caller holds mu.
func (l *link) queueLocked(h frame) {
	l.appendLocked(h, nil)
	l.kickLocked(false)
}

// urgentLocked queues a frame to be sent first, or when there is no room for that with the others. The caller holds mu.
func (l *link) urgentLocked(h frame) {
	if l.muted || l.closed || l.broken {
		return
	}
	if l.nurgent+len(h) > urgentRoom {
		l.queueLocked(h)
		return
	}
	l.nurgent += copy(l.urgent[l.nurgent:], h)
	l.kickLocked(false)
}

// appendLocked queues a frame, which the caller then has sent by kickLocked. The caller holds mu.
func (l *link) appendLocked(h frame, body []byte) {
	if l.muted || l.closed || l.broken {
		return
	}
	if l.late != nil {
		l.lateLocked(h)
		return
	}
	need := len(h) + len(body)
	if l.batch == nil {
		if need <= smallBatch-batchFront {
			l.batch = l.newBatch(&smallBatches)
		} else {
			l.batch = l.newBatch(&largeBatches)
		}
	}
	if b := l.batch; len(b.b)+need > cap(b.b) {
		if cap(b.b) == largeBatch {
			l.lateLocked(h)
			return
		}
		l.batch = largeBatches.Get().(*batch)
		l.batch.b = append(l.batch.b, b.b[batchFront:]...)
		l.batch.key, l.batch.next = b.key, b.next
		b.recycle()
	}
	l.batch.add(h)
	l.batch.add(body)
}

// newBatch borrows a batch and decides on its key.
func (l *link) newBatch(from *sync.Pool) *batch {
	b := from.Get().(*batch)
	b.key = l.ws.Key()
	b.next = b.key
	return b
}

// lateLocked queues a frame without a body behind a batch that has no room. It ends the session when there are more such
// frames than streams that the peer could have taken. The caller holds mu.
func (l *link) lateLocked(h frame) {
	if len(l.late)+len(h) > maxLate {
		l.failLocked(errUnread)
		l.jobs.Go(func() { _ = l.ws.Reset() }) // an error says only that the socket is closed already
		return
	}
	l.late = append(l.late, h...)
}

// refillLocked begins the next batch with the frames that are late. The caller holds mu.
func (l *link) refillLocked() {
	if l.late == nil {
		return
	}
	n := min(len(l.late), maxBatch/frameSize*frameSize)
	l.batch = l.newBatch(&largeBatches)
	l.batch.add(l.late[:n])
	if l.late = l.late[n:]; len(l.late) == 0 {
		l.late = nil
	}
}

// sendLocked sends what waits by one write. It reports false when that fails: nobody sends any more then, and the session ends.
// The caller holds mu, which is released meanwhile.
func (l *link) sendLocked() bool {
	b, p := l.takeBatchLocked()
	if cap(b.b) == largeBatch { // its writer may send it himself, and then waits for no room
		l.watchLocked()
	}
	l.writing = true
	l.mu.Unlock()
	err := l.ws.WriteMasked(p, b.key)
	if err != nil {
		l.writeFailed(err)
	}
	l.mu.Lock()
	l.writing = false
	b.recycle()
	if err == nil {
		return true
	}
	l.sending = false
	l.dropLocked()
	l.roomLocked()
	return false
}

// takeBatchLocked takes all that waits, ready for the WebSocket. The caller holds mu.
func (l *link) takeBatchLocked() (*batch, []byte) {
	b := l.batch
	if b == nil {
		b = l.newBatch(&smallBatches)
	}
	l.batch = nil
	websocket.Mask(b.b[batchFront-l.nurgent:batchFront], l.urgent[:l.nurgent], b.key)
	p := b.b[urgentRoom-l.nurgent:]
	l.nurgent = 0
	l.flushes++
	if l.frames > 1 {
		l.alone = 0
	} else if l.yield {
		l.alone = min(l.alone+1, aloneAfter)
	}
	l.frames, l.yield = 0, false
	l.refillLocked()
	l.payLocked()
	l.roomLocked()
	return b, p
}

// dropLocked gives up what waits. The caller holds mu.
func (l *link) dropLocked() {
	if l.batch != nil {
		l.batch.recycle()
		l.batch = nil
	}
	l.late = nil
	l.nurgent = 0
}

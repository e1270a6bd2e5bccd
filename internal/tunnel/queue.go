package tunnel

import (
	"sync"

	"github.com/pikoproxy/piko/internal/socket"
)

// Sizes of chunks, in bytes. A huge one comes behind at least as much as a large one holds, so that a peer can't make us hold
// much more than it has sent.
const (
	smallChunk = 4 << 10
	largeChunk = 32 << 10
	hugeChunk  = socket.Block
)

// chunk is a piece of what a stream has received and nobody has read yet.
type chunk struct {
	next *chunk
	r, w int // read up to, written up to
	b    []byte
}

// The caches are shared by all sessions, so that streams hold nothing once they are read empty.
var (
	smallChunks = sync.Pool{New: func() any { return &chunk{b: make([]byte, smallChunk)} }}
	largeChunks = sync.Pool{New: func() any { return &chunk{b: make([]byte, largeChunk)} }}
	hugeChunks  = sync.Pool{New: func() any { return &chunk{b: make([]byte, hugeChunk)} }}
)

// newChunk returns a chunk for n bytes that come behind others.
func newChunk(n, behind int) *chunk {
	switch {
	case behind >= largeChunk:
		return hugeChunks.Get().(*chunk)
	case n <= smallChunk:
		return smallChunks.Get().(*chunk)
	}
	return largeChunks.Get().(*chunk)
}

func (c *chunk) recycle() {
	c.next, c.r, c.w = nil, 0, 0
	switch len(c.b) {
	case smallChunk:
		smallChunks.Put(c)
	case largeChunk:
		largeChunks.Put(c)
	case hugeChunk:
		hugeChunks.Put(c)
	}
}

// queue is what a stream has received and nobody has read yet.
type queue struct {
	head, tail *chunk
	size       int
}

// add copies p to the end.
func (q *queue) add(p []byte) {
	if c := q.tail; c != nil && c == q.head && len(c.b) == smallChunk && c.w+len(p) > smallChunk {
		q.outgrow()
	}
	for len(p) > 0 {
		if q.tail == nil || q.tail.w == len(q.tail.b) {
			c := newChunk(len(p), q.size)
			if q.tail == nil {
				q.head = c
			} else {
				q.tail.next = c
			}
			q.tail = c
		}
		n := copy(q.tail.b[q.tail.w:], p)
		q.tail.w += n
		q.size += n
		p = p[n:]
	}
}

// outgrow moves what is in a queue of one small chunk to a large one, so that it goes on together with what comes behind.
func (q *queue) outgrow() {
	small, large := q.head, largeChunks.Get().(*chunk)
	large.w = copy(large.b, small.b[small.r:small.w])
	small.recycle()
	q.head, q.tail = large, large
}

// take moves what fits from the front to p.
func (q *queue) take(p []byte) int {
	total := 0
	for q.head != nil && total < len(p) {
		c := q.head
		n := copy(p[total:], c.b[c.r:c.w])
		c.r += n
		total += n
		if c.r < c.w {
			break
		}
		q.head = c.next
		c.recycle()
	}
	if q.head == nil {
		q.tail = nil
	}
	q.size -= total
	return total
}

// pop takes the front chunk, which must exist and is the caller's to recycle.
func (q *queue) pop() *chunk {
	c := q.head
	if q.head = c.next; q.head == nil {
		q.tail = nil
	}
	c.next = nil
	q.size -= c.w - c.r
	return c
}

// drop forgets everything.
func (q *queue) drop() {
	for q.head != nil {
		c := q.head
		q.head = c.next
		c.recycle()
	}
	q.tail, q.size = nil, 0
}

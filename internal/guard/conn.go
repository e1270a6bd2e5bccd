package guard

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	bufferSize   = 4 << 10
	readInPlace  = 512       // a reader with less room than this gets its bytes by way of our buffer
	aheadLimit   = 4 << 10   // bytes that may follow a request with Upgrade before it is answered
	discardLimit = 256 << 10 // bytes read behind a refusal, so that its answer arrives
)

// Conn is the connection of a client, guarded. All errors of reading are those of the connection below, or io.EOF.
type Conn struct {
	net.Conn
	listener *Listener

	// All of these belong to the reader.
	state      state
	mayPreface bool // nothing was read yet, and HTTP/2 may begin without TLS
	opening    bool // and then nothing but the beginning of a first request
	foreign    bool // which was none of HTTP
	timed      bool // the time for a head is running
	head       head
	trailer    trailer
	limits     Limits
	left       int64 // bytes of the body or chunk
	counted    int   // digits of a chunk size, or bytes of a chunk extension
	discarded  int
	poison     string // what is left to be read in the place of what was refused
	err        error  // what reading has ended with
	held       held
	ready      int   // length of a head that Next has returned, and nobody has taken yet
	shown      *Head // by Next

	holding atomic.Bool
	refusal atomic.Uint32

	mu    sync.Mutex // guards the following
	asked time.Time  // the read deadline that net/http wants
	began time.Time  // when the first byte of a head has come; zero: none is on its way
}

// secureConn is a Conn over TLS. net/http asks for its state, and fills http.Request.TLS.
type secureConn struct {
	*Conn
	tls *tls.Conn
}

// ConnectionState returns the state of TLS.
func (c *secureConn) ConnectionState() tls.ConnectionState { return c.tls.ConnectionState() }

// held is a buffer for what cannot be handed out at once:
//
//	[ handed out | judged, to be handed out | gap | to be judged | room ]
//	             out                     outEnd   in             inEnd
type held struct {
	buf                    *buffer // nil: nothing is held
	out, outEnd, in, inEnd int
}

type buffer struct {
	b       []byte
	doubled int
}

// buffers has a pool for each size, each twice the one before: a connection that rests shall not get a large buffer to
// wait with because another head was large.
var buffers [5]sync.Pool // the largest is for 64 KiB; larger ones are left to the garbage collector

// bufferOf returns a buffer of bufferSize, doubled so many times.
func bufferOf(doubled int) *buffer {
	if doubled < len(buffers) {
		if b, ok := buffers[doubled].Get().(*buffer); ok {
			return b
		}
	}
	return &buffer{b: make([]byte, bufferSize<<doubled), doubled: doubled}
}

func (b *buffer) release() {
	if b.doubled < len(buffers) {
		buffers[b.doubled].Put(b)
	}
}

func (h *held) toJudge() []byte { return h.buf.b[h.in:h.inEnd] }

// room makes room for more to be judged, when nothing is to be handed out.
func (h *held) room() []byte {
	if h.buf == nil {
		h.buf = bufferOf(0)
	}
	if h.in > 0 {
		h.inEnd = copy(h.buf.b, h.toJudge())
		h.in = 0
	}
	h.out, h.outEnd = 0, 0
	if h.inEnd == len(h.buf.b) {
		larger := bufferOf(h.buf.doubled + 1)
		copy(larger.b, h.buf.b)
		h.buf.release()
		h.buf = larger
	}
	return h.buf.b[h.inEnd:]
}

// settle gives the buffer back when it is empty.
func (h *held) settle() {
	if h.buf != nil && h.out == h.outEnd && h.in == h.inEnd {
		h.buf.release()
		*h = held{}
	}
}

// Read reads what may pass.
func (c *Conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		switch {
		case c.ready > 0:
			c.yield()
			continue
		case c.held.out < c.held.outEnd:
			n := copy(p, c.held.buf.b[c.held.out:c.held.outEnd])
			c.held.out += n
			c.held.settle()
			return n, nil
		case c.poison != "":
			n := copy(p, c.poison)
			c.poison = c.poison[n:]
			return n, nil
		case c.foreign:
			return 0, io.EOF
		case c.state == refused:
			return 0, c.discard()
		case c.state == passing && c.held.buf == nil && c.err == nil:
			return c.Conn.Read(p)
		case c.state == inHold && !c.holding.Load():
			c.state = inHead
			c.judgeHeld()
			continue
		case c.err != nil:
			if err := c.atEnd(); err != nil {
				return 0, err
			}
			continue
		}
		if n, err := c.fill(p); n > 0 || err != nil {
			return n, err
		}
	}
}

// fill reads once. It returns what may pass, if p was read into; otherwise that is held.
func (c *Conn) fill(p []byte) (int, error) {
	// net/http reads single bytes only to see whether the client is still there, for as long as an answer takes, and
	// that shall not cost a buffer.
	if c.held.buf != nil || (len(p) < readInPlace && len(p) > 1) {
		n, err := c.Conn.Read(c.held.room())
		c.held.inEnd += n
		c.judgeHeld()
		c.held.settle()
		return 0, c.noted(err)
	}
	n, err := c.Conn.Read(p)
	w, r := c.judge(p[:n])
	if r < n {
		for rest := p[r:n]; len(rest) > 0; {
			m := copy(c.held.room(), rest)
			c.held.inEnd += m
			rest = rest[m:]
		}
	}
	c.time()
	return w, c.noted(err)
}

// judgeHeld judges what is held, when nothing is to be handed out.
func (c *Conn) judgeHeld() {
	if h := &c.held; h.buf != nil {
		w, r := c.judge(h.toJudge())
		h.out, h.outEnd = h.in, h.in+w
		h.in += r
		if c.state == inHold && h.inEnd-h.in >= aheadLimit {
			c.refuse(aheadOfUpgrade)
			h.in = h.inEnd
		}
	}
	c.time()
}

// noted keeps an error for later, when everything before it was handed out. That a deadline has passed is no such
// error: the next read may have another.
func (c *Conn) noted(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		if c.late() {
			c.end(slowHead)
			return nil
		}
		return err
	}
	c.err = err
	return nil
}

// atEnd returns the error that reading has ended with, unless that is to be taken for a doubt: a head that broke off.
func (c *Conn) atEnd() error {
	if c.state == inHead && c.held.in < c.held.inEnd && errors.Is(c.err, io.EOF) {
		c.end(brokenOff)
		return nil
	}
	return c.err
}

// end refuses what is held of a head.
func (c *Conn) end(r Refusal) {
	c.refuse(r)
	c.held.in = c.held.inEnd
	c.held.settle()
	c.time()
}

// discard reads on behind a refusal, so that the client is seen to leave.
func (c *Conn) discard() error {
	buf := bufferOf(0)
	defer buf.release()
	for c.discarded < discardLimit {
		if c.err != nil {
			return c.err
		}
		n, err := c.Conn.Read(buf.b)
		c.discarded += n
		if err != nil {
			return err
		}
	}
	return io.EOF
}

// time starts and stops the time that a head may take. net/http has such a limit too, but it sees a head only when it
// is complete.
func (c *Conn) time() {
	begun := c.state == inHead && c.held.in < c.held.inEnd
	if begun == c.timed {
		return
	}
	c.timed = begun
	c.mu.Lock()
	defer c.mu.Unlock()
	c.began = time.Time{}
	if begun {
		c.began = time.Now()
	}
	_ = c.setReadDeadlineLocked() // fails only on a closed connection
}

// late reports whether a head has begun and its time is over. A deadline that lay in the past when it was set is none:
// net/http so ends a read.
func (c *Conn) late() bool {
	if !c.timed {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now, limit := time.Now(), c.headLimitLocked()
	return !limit.IsZero() && !now.Before(limit) || c.asked.After(c.began) && !now.Before(c.asked)
}

// headLimitLocked returns when the head must have come; zero: whenever it likes.
func (c *Conn) headLimitLocked() time.Time {
	if c.began.IsZero() || c.listener.o.HeaderTimeout <= 0 {
		return time.Time{}
	}
	return c.began.Add(c.listener.o.HeaderTimeout)
}

// Begun reports whether a part of a head has come, but not all of it.
func (c *Conn) Begun() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.began.IsZero()
}

// SetReadDeadline is that of the connection, except that a head must always arrive within its time.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = t
	return c.setReadDeadlineLocked()
}

func (c *Conn) setReadDeadlineLocked() error {
	t := c.asked
	if limit := c.headLimitLocked(); !limit.IsZero() && (t.IsZero() || limit.Before(t)) {
		t = limit
	}
	return c.Conn.SetReadDeadline(t)
}

// SetDeadline sets both deadlines.
func (c *Conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func (c *Conn) pass(outer net.Conn) net.Conn {
	if c.state == refused {
		// Too much was sent ahead, and is lost.
		c.poison, c.err = "", c.Refusal()
		return outer
	}
	c.state = passing
	c.holding.Store(false)
	if h := &c.held; h.buf != nil && h.in < h.inEnd {
		h.out, h.outEnd, h.in = h.in, h.inEnd, h.inEnd
	}
	c.time()
	if c.held.buf == nil && c.err == nil {
		return c.Conn
	}
	return outer
}

// NetConn returns the connection below.
func (c *Conn) NetConn() net.Conn { return c.Conn }

// CloseWrite ends our direction: nothing more will be sent, and reading goes on.
func (c *Conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// Reset closes the connection in a way that no end can take for a regular one.
func (c *Conn) Reset() error {
	inner := c.Conn
	if secured, ok := inner.(*tls.Conn); ok {
		inner = secured.NetConn()
	}
	if own, ok := inner.(interface{ Reset() error }); ok {
		return own.Reset()
	}
	if tcp, ok := inner.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // fails only on a closed socket
		return tcp.Close()
	}
	return c.Conn.Close()
}

// Package h2 is the client's end of HTTP/2 (RFC 9113) on a connection that carries one exchange at a time. It is made for
// streams of a session, which multiplexes already and has a window for each stream: what HTTP/2 would do beside that is
// left out, and what is left costs little.
//
//	Begin ─> Open ─┬─> Next ─> ... ─> the end of the answer ──┬─> End ─> Flush
//	               └─> Send ─> ... ─> the end of the request ─┘
//
// # Who reads
//
// Frames are read by whoever needs one, and no goroutine waits for them in between: mostly that is the caller of Next. While
// it is busy elsewhere, a Send that waits for its window reads too, and so does Attend. What they read of the answer is
// kept, at most as much as the window allows, and Next returns it. Whoever reads holds the reading turn; the rest of the state
// is guarded by a lock that is never held while reading or writing.
//
// # Who writes
//
// Frames are collected, and Flush writes all there are. While one goroutine writes, others only add to what it writes next.
//
// # Limits
//
// A service can make this end hold the window of one exchange, one frame, and header sections of [Limits.Header] bytes. Frames
// that bring nothing forward (PING, SETTINGS, empty DATA and the like) are counted, and too many of them break the connection.
//
// A Conn is safe for concurrent use as far as its methods say so. It starts no goroutines.
package h2

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"sync"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

var (
	// ErrMalformed tells that the service has sent what is no HTTP/2, or no answer.
	ErrMalformed = errors.New("malformed answer")
	// ErrUnprocessed tells that the service has done nothing about the request, so that it may be sent again.
	ErrUnprocessed = errors.New("request refused unprocessed")
	// ErrEnded tells a sender that nobody wants the rest of the request.
	ErrEnded = errors.New("exchange has ended")
)

// ResetError tells that the service has broken the exchange off.
type ResetError struct{ Code http2.ErrCode }

// Error names the code.
func (e ResetError) Error() string { return "reset by the service: " + e.Code.String() }

const (
	window      = 1 << 20      // bytes of an answer that may be on their way
	maxWindow   = 1<<31 - 1    // what the protocol allows
	firstWindow = 1<<16 - 1    // before anybody has said anything
	frameHead   = 9            // bytes
	maxFrame    = 16 << 10     // bytes of a frame's payload, both ways
	maxWaiting  = 64 << 10     // bytes that wait to be written before senders wait too
	maxKept     = 2 << 10      // bytes of a buffer that a connection keeps between exchanges
	readerSize  = 4 << 10      // of the buffer for reading
	maxID       = 1<<31 - 1024 // of a stream
)

// Limits bound an answer.
type Limits struct {
	Header int  // bytes of a header section, counted as SETTINGS_MAX_HEADER_LIST_SIZE is
	Fields int  // in one section
	NoBody bool // the request was HEAD: the answer has none whatever it says
}

// Pool lends connections what they need only while they carry an exchange. The zero value is ready.
type Pool struct{ inputs, rooms sync.Pool }

// input is what frames are read with.
type input struct {
	br     *bufio.Reader
	framer *http2.Framer
}

func (p *Pool) input(r io.Reader) *input {
	in, ok := p.inputs.Get().(*input)
	if !ok {
		in = &input{br: bufio.NewReaderSize(nil, readerSize)}
		in.framer = http2.NewFramer(nil, in.br)
		in.framer.SetMaxReadFrameSize(maxFrame)
		in.framer.SetReuseFrames()
	}
	in.br.Reset(r)
	return in
}

type room [maxFrame]byte

func (p *Pool) room() *room {
	if r, ok := p.rooms.Get().(*room); ok {
		return r
	}
	return new(room)
}

// Conn is a connection. Make one with [Pool.New].
type Conn struct {
	rw   io.ReadWriter
	pool *Pool

	// The reading turn guards the following.
	in      *input // nil between exchanges, unless something is left in it
	dec     *hpack.Decoder
	section section

	mu       sync.Mutex // guards the following
	changed  sync.Cond
	reading  bool // somebody has the reading turn
	away     bool // the caller of Next is busy elsewhere
	attended int  // calls of Attend
	flushing bool
	out      []byte
	spare    []byte
	greets   bool // the preface was written
	greeted  bool // that of the service has come
	goaway   bool
	initial  int64 // the service's window for a new stream
	sendAll  int64 // what may be sent on the connection
	takenAll int64 // bytes not yet given back to the service's window of the connection
	flood    flood
	err      error // nothing can be read any more
	writeErr error // nothing can be written any more

	// Of the exchange, or the last one.
	id        uint32
	limits    Limits
	answer    answer
	running   bool // between Begin and End
	ended     bool // the answer is complete
	sent      bool // the request is complete, as far as out goes
	stopped   bool // nobody wants the rest of the request
	wrote     bool // bytes of the request have left
	reset     bool // by the service
	send      int64
	recv      int64
	taken     int64
	opening   bool                // Next was not called yet: it will send what there is
	queue     []Event             // read by others than the caller of Next
	given     []hpack.HeaderField // of the last Event
	lent      *room               // what the last Event is in
	failure   error               // of the exchange alone
	suspended error               // reading was interrupted between two frames; the connection is whole
}

// New returns a connection on a fresh stream. It writes nothing yet. Deadlines of the stream are the caller's business; one
// that passes while nothing but the beginning of a frame has been read leaves the connection whole.
func (p *Pool) New(rw io.ReadWriter) *Conn {
	c := &Conn{rw: rw, pool: p, initial: firstWindow, sendAll: firstWindow}
	c.changed.L = &c.mu
	c.dec = hpack.NewDecoder(4096, c.section.add)
	return c
}

// Usable reports whether the connection can carry another exchange, as far as what was read tells.
func (c *Conn) Usable() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.usableLocked()
}

func (c *Conn) usableLocked() bool {
	return !c.running && c.err == nil && c.writeErr == nil && !c.goaway && c.id < maxID
}

// Empty reports whether everything that was read has been used.
func (c *Conn) Empty() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.in == nil
}

// Complete reports whether the whole answer has come, and the whole request has been given to Flush.
func (c *Conn) Complete() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ended && c.sent
}

// Drain reads the frames that have come since the last exchange, until reading fails: the caller sees to it that it does when
// nothing more is there, by a deadline. It reports whether the connection can carry another exchange.
func (c *Conn) Drain() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.suspended = nil; c.usableLocked() && c.suspended == nil; {
		c.stepLocked(false)
	}
	c.suspended = nil
	c.restLocked()
	return c.usableLocked()
}

// Begin prepares the connection for an exchange.
func (c *Conn) Begin(limits Limits) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.usableLocked() {
		return fmt.Errorf("%w: the connection carries no more of them", ErrUnprocessed)
	}
	c.limits = limits
	if !c.greets {
		c.greets = true
		c.greetLocked()
	}
	if c.id > 0 {
		c.id++
	}
	c.id++ // 1, 3, 5
	c.running, c.away, c.opening = true, true, true
	c.ended, c.sent, c.stopped, c.wrote, c.reset = false, false, false, false, false
	c.suspended, c.failure = nil, nil
	c.send, c.recv, c.taken = c.initial, window, 0
	c.answer = answer{length: -1}
	return nil
}

// greetLocked writes the preface. The caller holds mu.
func (c *Conn) greetLocked() {
	c.out = append(c.out, http2.ClientPreface...)
	c.out = appendFrame(c.out, http2.FrameSettings, 0, 0, 3*6)
	for _, s := range []http2.Setting{
		{ID: http2.SettingEnablePush, Val: 0},
		{ID: http2.SettingInitialWindowSize, Val: window},
		{ID: http2.SettingMaxHeaderListSize, Val: uint32(min(max(c.limits.Header, 0), maxWindow))},
	} {
		c.out = append(c.out, byte(s.ID>>8), byte(s.ID)) //nolint:gosec // G115: its two bytes
		c.out = append32(c.out, s.Val)
	}
	// The window of the connection never is what holds a service up: there is one exchange at a time.
	c.updateLocked(0, maxWindow-firstWindow)
}

// End ends the exchange, complete or not, after it has made Send and Attend return. Where they wait for the stream, the
// caller has made that fail. If something is missing the service is told so. It reports whether the connection can carry
// another exchange, once Flush has succeeded.
func (c *Conn) End() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopped, c.away = true, false
	c.changed.Broadcast()
	for c.reading || c.attended > 0 {
		c.changed.Wait()
	}
	if !c.running {
		return false
	}
	if (!c.ended || !c.sent) && !c.reset && c.wrote {
		c.out = appendFrame(c.out, http2.FrameRSTStream, 0, c.id, 4)
		c.out = append32(c.out, uint32(http2.ErrCodeCancel))
	}
	c.running, c.queue = false, nil
	c.giveBackLocked()
	c.restLocked()
	return c.usableLocked()
}

// Stop makes Send return, now and from now on.
func (c *Conn) Stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopped = true
	c.changed.Broadcast()
}

func (c *Conn) giveBackLocked() {
	if c.lent != nil {
		c.pool.rooms.Put(c.lent)
		c.lent = nil
	}
}

// restLocked gives back what the connection needs no more. The caller holds mu, and nobody reads.
func (c *Conn) restLocked() {
	if c.in != nil && c.in.br.Buffered() == 0 && c.err == nil {
		c.in.br.Reset(nil)
		c.pool.inputs.Put(c.in)
		c.in = nil
	}
	c.section.fields, c.given = forget(c.section.fields), forget(c.given)
	if cap(c.spare) > maxKept {
		c.spare = nil
	}
	if cap(c.out) > maxKept && len(c.out) == 0 {
		c.out = nil
	}
}

// Close is for who keeps connections: the stream below is the caller's to close.
func (c *Conn) Close() error { return nil }

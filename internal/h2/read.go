package h2

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Kind says what an Event is.
type Kind int

// What answers are made of.
const (
	Informational Kind = iota // a head that another one follows
	Head
	Data
	Trailer
)

// Event is a piece of the answer. It is valid until the next call of Next or End.
type Event struct {
	Kind   Kind
	Status int
	Fields []hpack.HeaderField // names in lower case, as they came
	Data   []byte
	End    bool // nothing follows
}

// answer is what is known of the answer of the exchange.
type answer struct {
	head   bool  // it has come
	noBody bool  // and there must be none
	length int64 // as announced; -1: it was not
	got    int64
}

// Next returns the next piece of the answer. Before it waits for one it calls idle, and sends what there is to send. After an
// error the exchange is over. It is for one goroutine at a time.
func (c *Conn) Next(idle func()) (Event, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.giveBackLocked()
	c.away, c.opening = false, false
	defer func() { c.away = true }()
	if c.attended > 0 {
		c.changed.Broadcast()
	}
	told := false
	for {
		if len(c.queue) > 0 {
			e := c.queue[0]
			c.queue = slices.Delete(c.queue, 0, 1)
			c.tookLocked(int64(len(e.Data)))
			return e, nil
		}
		if err := c.failedLocked(); err != nil {
			return Event{}, err
		}
		if c.reading || !c.readyLocked() {
			if !told {
				told = true
				c.mu.Unlock()
				idle()
				c.mu.Lock()
				continue
			}
			if len(c.out) > 0 && !c.flushing && c.writeErr == nil {
				c.flushLocked()
				continue
			}
		}
		if c.reading {
			c.changed.Wait()
			continue
		}
		if e, ok := c.stepLocked(true); ok {
			c.tookLocked(int64(len(e.Data)))
			return e, nil
		}
	}
}

// Attend answers the service, and reads what of the answer fits its window, until Next is called again. It is for the time in
// which that takes longer than usual. id is the exchange's, see ID.
func (c *Conn) Attend(id uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.attended++
	for c.running && c.id == id && c.away && !c.ended && c.failedLocked() == nil {
		switch {
		case c.reading:
			c.changed.Wait()
		case len(c.out) > 0 && !c.flushing && c.writeErr == nil:
			c.flushLocked()
		default:
			c.stepLocked(false)
		}
	}
	c.attended--
	c.changed.Broadcast()
}

// ID tells the exchanges of a connection apart.
func (c *Conn) ID() uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.id
}

// failedLocked returns why the exchange can't go on. The caller holds mu.
func (c *Conn) failedLocked() error {
	switch {
	case c.failure != nil:
		return c.failure
	case c.err != nil && c.running && !c.wrote:
		return fmt.Errorf("%w: %w", ErrUnprocessed, c.err)
	case c.err != nil:
		return c.err
	}
	return c.suspended
}

// readyLocked reports whether a whole frame has been read from the stream. The caller holds mu, and nobody reads.
func (c *Conn) readyLocked() bool {
	if c.in == nil || c.in.br.Buffered() < frameHead {
		return false
	}
	h, err := c.in.br.Peek(frameHead)
	return err == nil && c.in.br.Buffered() >= frameHead+(int(h[0])<<16|int(h[1])<<8|int(h[2]))
}

// stepLocked reads one frame and does what it says. A piece of the answer is returned to the caller of Next, and kept for it
// if that is not who calls. The caller holds mu, which is released in between, and nobody reads.
func (c *Conn) stepLocked(direct bool) (e Event, ok bool) {
	c.reading = true
	c.mu.Unlock()
	f, err := c.read()
	c.mu.Lock()
	c.reading = false
	defer c.changed.Broadcast()
	if s, yes := errors.AsType[suspension](err); yes {
		c.suspended = s.error
		return e, false
	}
	if err == nil {
		e, ok, err = c.handleLocked(f, direct)
	}
	if err != nil {
		c.err = err
		return e, false
	}
	switch {
	case ok && direct:
		c.given = append(c.given[:0], e.Fields...) // others may read the next section meanwhile
		e.Fields = c.given
	case ok:
		e.Fields = slices.Clone(e.Fields)
		c.queue = append(c.queue, e)
		return e, false
	}
	return e, ok
}

// suspension is an error before anything of a frame was taken from the buffer.
type suspension struct{ error }

// read returns the next frame; of header sections the first one, with the whole decoded. The caller has the reading turn.
func (c *Conn) read() (http2.Frame, error) {
	if c.in == nil {
		c.in = c.pool.input(c.rw)
	}
	if _, err := c.in.br.Peek(frameHead); err != nil {
		if t, ok := errors.AsType[net.Error](err); ok && t.Timeout() {
			return nil, suspension{err}
		}
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("read from the service: %w", err)
	}
	f, err := c.in.framer.ReadFrame()
	if err != nil {
		return nil, broken(err)
	}
	if h, ok := f.(*http2.HeadersFrame); ok {
		return f, c.decode(h)
	}
	return f, nil
}

// broken tells what is wrong with a frame from what is wrong with the stream.
func broken(err error) error {
	_, frame := errors.AsType[http2.StreamError](err)
	_, conn := errors.AsType[http2.ConnectionError](err)
	if frame || conn || errors.Is(err, http2.ErrFrameTooLarge) {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read from the service: %w", err)
}

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
}

// handleLocked does what a frame says. The caller holds mu.
func (c *Conn) handleLocked(f http2.Frame, direct bool) (e Event, ok bool, err error) {
	if s, settings := f.(*http2.SettingsFrame); !c.greeted && (!settings || s.IsAck()) {
		return e, false, malformed("not the preface of HTTP/2")
	}
	h := f.Header()
	ours := c.running && !c.ended && !c.reset && h.StreamID == c.id
	if h.StreamID > c.id || h.StreamID != 0 && h.StreamID%2 == 0 {
		return e, false, malformed("%s on a stream that is not open", h.Type)
	}
	switch f := f.(type) {
	case *http2.DataFrame:
		return c.dataLocked(f, ours, direct)
	case *http2.HeadersFrame:
		c.flood.progress(0)
		if !ours {
			break
		}
		e, err = c.sectionReadLocked(f.StreamEnded())
		return e, err == nil, err
	case *http2.RSTStreamFrame:
		if ours {
			c.reset, c.failure = true, ResetError{f.ErrCode}
			if f.ErrCode == http2.ErrCodeRefusedStream && !c.answer.head {
				c.failure = fmt.Errorf("%w: %w", ErrUnprocessed, c.failure)
			}
		}
	case *http2.GoAwayFrame:
		c.goaway = true
		if c.running && !c.ended && f.LastStreamID < c.id {
			c.reset, c.failure = true, fmt.Errorf("%w: the service goes away: %s", ErrUnprocessed, f.ErrCode)
		}
	case *http2.SettingsFrame:
		c.greeted = true
		err = c.settingsLocked(f)
	case *http2.PingFrame:
		if !f.IsAck() {
			c.out = append(appendFrame(c.out, http2.FramePing, http2.FlagPingAck, 0, len(f.Data)), f.Data[:]...)
		}
	case *http2.WindowUpdateFrame:
		err = c.windowLocked(f, ours)
	case *http2.PushPromiseFrame:
		err = malformed("a push that nobody has asked for")
	}
	if err == nil && (c.flood.another() || len(c.out) > 2*maxWaiting) {
		err = malformed("too many frames of %s and the like", h.Type)
	}
	return e, false, err
}

func (c *Conn) settingsLocked(f *http2.SettingsFrame) error {
	if f.IsAck() {
		return nil
	}
	err := f.ForeachSetting(func(s http2.Setting) error {
		if err := s.Valid(); err != nil {
			return broken(err)
		}
		if s.ID != http2.SettingInitialWindowSize {
			return nil
		}
		c.send += int64(s.Val) - c.initial
		c.initial = int64(s.Val)
		if c.send > maxWindow {
			return malformed("window of more than 2^31-1 bytes")
		}
		return nil
	})
	if err == nil {
		c.out = appendFrame(c.out, http2.FrameSettings, http2.FlagSettingsAck, 0, 0)
	}
	return err
}

func (c *Conn) windowLocked(f *http2.WindowUpdateFrame, ours bool) error {
	switch {
	case f.StreamID == 0:
		c.sendAll += int64(f.Increment)
	case ours:
		c.send += int64(f.Increment)
	}
	if max(c.send, c.sendAll) > maxWindow {
		return malformed("window of more than 2^31-1 bytes")
	}
	return nil
}

// dataLocked takes a part of the body. The caller holds mu.
func (c *Conn) dataLocked(f *http2.DataFrame, ours, direct bool) (e Event, ok bool, err error) {
	data, end := f.Data(), f.StreamEnded()
	// The window of the connection is so wide that it is given back in large pieces.
	if c.takenAll += int64(f.Length); c.takenAll >= maxWindow/4 {
		c.updateLocked(0, c.takenAll)
		c.takenAll = 0
	}
	if len(data) > 0 {
		c.flood.progress(len(data))
	} else if c.flood.another() {
		return e, false, malformed("too many empty DATA frames")
	}
	if !ours {
		return e, false, nil
	}
	c.recv -= int64(f.Length)
	c.answer.got += int64(len(data))
	switch {
	case !c.answer.head:
		err = malformed("body before the head")
	case c.recv < 0:
		err = malformed("more than the window allows")
	case c.answer.noBody && len(data) > 0:
		err = malformed("a body where none can be")
	default:
		err = c.lengthLocked(end)
	}
	if err != nil {
		return e, false, err
	}
	c.ended = end
	c.tookLocked(int64(f.Length) - int64(len(data)))
	e = Event{Kind: Data, End: end}
	switch {
	case len(data) == 0:
	case direct:
		c.lent = c.pool.room()
		e.Data = c.lent[:copy(c.lent[:], data)]
	default:
		e.Data = slices.Clone(data)
	}
	return e, end || len(data) > 0, nil
}

// lengthLocked compares the body with what was announced. The caller holds mu.
func (c *Conn) lengthLocked(end bool) error {
	a := &c.answer
	if a.noBody || a.length < 0 || a.got == a.length || a.got < a.length && !end {
		return nil
	}
	return malformed("a body of %d bytes where %d were announced", a.got, a.length)
}

// tookLocked gives bytes of the answer back to the window that somebody has taken. The caller holds mu.
func (c *Conn) tookLocked(n int64) {
	c.taken += n
	if c.taken >= window/4 && c.running && !c.ended {
		c.updateLocked(c.id, c.taken)
		c.recv += c.taken
		c.taken = 0
	}
}

// sectionReadLocked takes a header section that was decoded. The caller holds mu.
func (c *Conn) sectionReadLocked(end bool) (Event, error) {
	s, a := &c.section, &c.answer
	e := Event{Fields: s.fields, Status: s.status, End: end}
	switch {
	case s.bad != nil:
		return e, s.bad
	case a.head && s.status != 0, !a.head && s.status == 0:
		return e, malformed("a status where none can be, or none where one must be")
	case a.head && !end:
		return e, malformed("trailers that do not end the answer")
	case a.head:
		e.Kind = Trailer
	case s.status == http.StatusSwitchingProtocols, s.status < 200 && end:
		return e, malformed("status %d", s.status)
	case s.status < 200:
		e.Kind = Informational
		return e, nil
	default:
		e.Kind = Head
		a.head, a.length = true, s.length
		a.noBody = c.limits.NoBody || s.status == http.StatusNoContent || s.status == http.StatusNotModified
	}
	if err := c.lengthLocked(end); err != nil {
		return e, err
	}
	c.ended = end
	return e, nil
}

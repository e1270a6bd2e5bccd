package tunnel

import (
	"errors"
	"io"
	"os"
)

// mixedFor is how often in a row what is read at once must be for one stream before the goroutine that reads hands it on
// itself. Where many streams are busy, goroutines are woken to share the work, and what they cause to be written goes out together.
const mixedFor = 16

// directFrom is from how many bytes on what is read is handed on directly also where many streams are busy: to copy it, and to
// wake somebody for it, costs more than is gained by sharing.
const directFrom = 8 << 10

// trier is a writer that can be asked not to wait.
type trier interface {
	// TryWrite writes what it can of p without waiting for anybody, and returns how much that is. What was wrong, the next
	// Write tells.
	TryWrite(p []byte) int
}

// passage is what came for a stream whose WriteTo waits.
type passage struct {
	s    *Stream
	data []byte
	done int // how much of it was written
}

// WriteTo implements [io.WriterTo]: it writes what the far end sends to w until that has ended its direction. If w has a
// method TryWrite(p []byte) int, which must never block, what comes while nothing waits is given to that by the goroutine
// that reads the session, without a way over another one. Reads of others wait meanwhile.
func (s *Stream) WriteTo(w io.Writer) (int64, error) {
	s.rmu.Lock()
	defer s.rmu.Unlock()
	l := s.l
	total := int64(0)
	var sink func([]byte) int
	if t, ok := w.(trier); ok {
		sink = func(p []byte) int {
			n := t.TryWrite(p)
			total += int64(n)
			return n
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		c, err := s.nextLocked(sink)
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
		s.consumedLocked(c.w - c.r)
		l.mu.Unlock()
		n, err := w.Write(c.b[c.r:c.w])
		c.recycle()
		l.mu.Lock()
		if total += int64(n); err != nil {
			return total, err
		}
	}
}

// nextLocked waits until something is in the queue, and takes a chunk of it. What comes meanwhile is offered to sink. The caller
// holds the link's mu.
func (s *Stream) nextLocked(sink func([]byte) int) (*chunk, error) {
	for {
		if ready, err := s.readyLocked(); err != nil {
			return nil, err
		} else if ready {
			return s.in.pop(), nil
		}
		s.sink = sink
		s.l.mu.Unlock()
		<-s.rwake
		s.l.mu.Lock()
		for s.passing { // the end is not to overtake it
			s.l.mu.Unlock()
			<-s.rwake
			s.l.mu.Lock()
		}
		s.sink = nil
	}
}

// readyLocked reports whether there is something to read, or why there will be nothing any more. The caller holds the link's mu.
func (s *Stream) readyLocked() (bool, error) {
	if err := s.usableLocked(); err != nil {
		return false, err
	}
	if s.in.size > 0 {
		return true, nil
	}
	if err := s.endLocked(); err != nil {
		return false, err
	}
	if s.rlimit.passed() {
		return false, os.ErrDeadlineExceeded
	}
	return false, nil
}

// directLocked notes p for the sink of a stream, and reports whether that is possible. The caller holds mu.
func (l *link) directLocked(s *Stream, p []byte) bool {
	switch {
	case l.first == 0:
		l.first = s.id
		l.mixed = max(l.mixed-1, 0)
	case l.first != s.id:
		l.mixed = mixedFor
	}
	if s.sink == nil || !s.passing && (s.in.size > 0 || l.mixed > 0 && len(p) < directFrom) {
		return false
	}
	s.passing = true
	s.flight += len(p)
	if n := len(l.direct); n > 0 && l.direct[n-1].s == s {
		// Only headers stand between the two, which have been read: moved together they are one write.
		d := &l.direct[n-1]
		d.data = append(d.data, p...)
		return true
	}
	l.direct = append(l.direct, passage{s: s, data: p})
	return true
}

// pass offers what was noted to the sinks. Only the goroutine that reads calls it.
func (l *link) pass() {
	l.first = 0
	if len(l.direct) == 0 {
		return
	}
	for i := range l.direct {
		if d := &l.direct[i]; !d.s.clogged {
			d.done = d.s.sink(d.data)
			d.s.clogged = d.done < len(d.data)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, d := range l.direct {
		d.s.passedLocked(d.data, d.done)
		l.direct[i] = passage{}
	}
	l.direct = l.direct[:0]
}

// passedLocked notes that n bytes of p were written. The others have to wait. The caller holds the link's mu.
func (s *Stream) passedLocked(p []byte, n int) {
	s.passing, s.clogged = false, false
	if s.flight > 0 { // else it was dropped meanwhile
		s.flight -= len(p)
		s.in.add(p[n:])
		s.consumedLocked(n)
	}
	if ready, err := s.readyLocked(); ready || err != nil {
		signal(s.rwake)
	}
}

// TryWrite writes as much of p as there is room for, without waiting for the far end, the socket, or another Write.
func (s *Stream) TryWrite(p []byte) int {
	if !s.wmu.TryLock() {
		return 0
	}
	defer s.wmu.Unlock()
	l := s.l
	l.mu.Lock()
	defer l.mu.Unlock()
	total := 0
	for total < len(p) && s.writableLocked() == nil {
		n := min(len(p)-total, maxFrame, int(s.send))
		if n <= 0 || l.fullLocked(n) {
			break
		}
		s.dataLocked(p[total : total+n])
		total += n
	}
	l.kickLocked(false)
	return total
}

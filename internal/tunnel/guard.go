package tunnel

import (
	"fmt"
	"math"
	"time"
)

const (
	pingEvery    = time.Second / 20
	pingBurst    = 100
	glitchEvery  = time.Minute / 1000
	glitchBurst  = 1000
	stallTimeout = 10 * time.Second

	// maxHeld bounds what all streams of a session hold unread, besides the control stream. Beyond half of it no stream's
	// window grows. When it would be exceeded, the stream that holds most is reset: the peer kept to the windows that it
	// was given, so that neither the session nor the streams that are read are to suffer.
	maxHeld = 64 << 20
)

// guard is what a link knows of the streams. It judges every frame: a peer can neither confuse us nor make us hold more
// than the windows allow.
type guard struct {
	streams   map[uint32]*Stream
	finished  map[*Stream]struct{} // gone, but not read to the end
	told      int64                // of what is held, so much is on the account
	nstreams  int                  // without the control stream
	opening   int                  // admitted, but not opened yet
	lastLocal uint32               // the highest
	lastPeer  uint32
	emptied   chan struct{}
	pings     meter
	glitches  meter
	belated   belated
	pingID    uint32
	pingSent  time.Duration
	answered  chan struct{} // closed by the answer to our ping; nil: none is expected
	blamed    string        // an abuse that is not reported yet
	control   *Stream
	onControl func() // reads the control stream
	hearing   bool   // it runs
}

// belated is what the peer may still send on streams that were reset here before it hears of that: however many they are, and
// however long it takes, no more than it was allowed to before.
type belated struct {
	bytes int64 // of data
	ends  int   // FIN
	acks  int
}

// reset notes a stream that is reset here.
func (b *belated) reset(s *Stream) {
	if !s.finIn {
		b.bytes += s.recv
		b.ends++
	}
	if s.local && !s.acked {
		b.acks++
	}
}

// covers reports whether a frame may be one of those.
func (b *belated) covers(h frame) bool {
	data, fin, ack := int64(0), 0, 0
	if h.kind() == kindData {
		data = int64(h.length())
	}
	if h.flags()&flagFIN != 0 {
		fin = 1
	}
	if h.flags()&flagACK != 0 {
		ack = 1
	}
	if h.kind() == kindData && data+int64(fin+ack) == 0 || data > b.bytes || fin > b.ends || ack > b.acks {
		return false
	}
	b.bytes -= data
	b.ends -= fin
	b.acks -= ack
	return true
}

// mine reports whether streams of this number are opened here.
func (l *link) mine(stream uint32) bool { return (stream&1 == 1) == l.client }

// inboundLocked handles the header of a frame from the peer, and sets body, into and fin. The caller holds mu.
func (l *link) inboundLocked(h frame) *AbuseError {
	kind, flags, id, length := h.kind(), h.flags(), h.stream(), h.length()
	if h.version() != 0 || kind > kindGoAway || flags > flagSYN|flagACK|flagFIN|flagRST {
		return protocolAbuse(h)
	}
	switch kind {
	case kindPing:
		return l.pingLocked(h)
	case kindGoAway:
		return l.goAwayLocked(length)
	}
	if id == 0 {
		return protocolAbuse(h)
	}
	if kind == kindData {
		if length > largestWindow {
			return &AbuseError{AbuseWindow, fmt.Sprintf("frame of %d bytes", length)}
		}
		l.body, l.into = int(length), nil
	}
	if flags&flagSYN != 0 {
		if abuse := l.openedLocked(h); abuse != nil {
			return abuse
		}
	}
	s := l.streams[id]
	if s == nil {
		return l.strayLocked(h)
	}
	return l.frameLocked(s, h)
}

// goAwayLocked takes the peer's GoAway. The caller holds mu.
func (l *link) goAwayLocked(code uint32) *AbuseError {
	l.away = true
	l.stopLocked()
	if code != goAwayNormal {
		l.over = true
		if l.cause == nil {
			l.cause = fmt.Errorf("peer sent GoAway with code %d", code)
		}
	}
	return nil
}

// frameLocked handles a frame of a stream that exists. The caller holds mu.
func (l *link) frameLocked(s *Stream, h frame) *AbuseError {
	flags, length := h.flags(), int64(h.length())
	if s.finIn && flags&flagFIN != 0 || !s.local && flags&flagACK != 0 && flags&flagSYN == 0 {
		return protocolAbuse(h)
	}
	if s.local && !s.acked {
		l.acknowledgedLocked(s, flags&(flagRST|flagACK) != flagRST)
	}
	if h.kind() == kindWindow {
		if s.send += length; s.send > math.MaxInt32 {
			return &AbuseError{AbuseWindow, fmt.Sprintf("send window of %d bytes", s.send)}
		}
		if length > 0 {
			signal(s.wwake)
		}
	} else if abuse := l.announcedLocked(s, h); abuse != nil {
		return abuse
	}
	switch {
	case flags&flagRST != 0:
		l.into = nil
		s.rstIn = true
		l.forgetLocked(s)
		s.wakeLocked()
	case flags&flagFIN != 0 && l.into != nil: // after the body
		l.fin = true
	case flags&flagFIN != 0 && !s.gone:
		l.peerEndsLocked(s)
	}
	if s == l.control && (h.kind() == kindData || flags&(flagFIN|flagRST) != 0) {
		l.controlLocked()
	}
	return nil
}

// announcedLocked makes ready for the body of a data frame. The caller holds mu.
func (l *link) announcedLocked(s *Stream, h frame) *AbuseError {
	length := int64(h.length())
	if length > s.recv {
		return &AbuseError{AbuseWindow, fmt.Sprintf("frame of %d bytes for a window of %d", length, s.recv)}
	}
	if s.finIn && length > 0 {
		return protocolAbuse(h)
	}
	s.recv -= length
	if s.closed || length == 0 {
		return nil
	}
	if s != l.control {
		if !l.makeRoomLocked(s, length) {
			return nil
		}
		l.held += length
		l.settleLocked()
	}
	s.unread += length
	l.into = s
	return nil
}

// makeRoomLocked resets the streams that hold most until length more bytes can be held for s. It reports false when s itself
// had to go. The caller holds mu.
func (l *link) makeRoomLocked(s *Stream, length int64) bool {
	for l.held+length > maxHeld {
		hog, most := s, s.unread+length
		for _, other := range l.streams {
			if other != l.control && other.unread > most {
				hog, most = other, other.unread
			}
		}
		for other := range l.finished {
			if other.unread > most {
				hog, most = other, other.unread
			}
		}
		hog.lost = true
		hog.dropLocked()
		l.resetLocked(hog)
		hog.wakeLocked()
		if hog == s {
			return false
		}
	}
	return true
}

// peerEndsLocked notes that the peer has ended its direction. The caller holds mu.
func (l *link) peerEndsLocked(s *Stream) {
	s.finIn = true
	signal(s.rwake)
	if s.finOut {
		l.forgetLocked(s)
	}
}

// acknowledgedLocked notes the first frame of the peer for a stream of ours. The caller holds mu.
func (l *link) acknowledgedLocked(s *Stream, acked bool) {
	s.acked = acked
	signal(s.rwake)
	l.unplaceLocked(s)
}

// openedLocked judges SYN from the peer. The caller holds mu.
func (l *link) openedLocked(h frame) *AbuseError {
	id := h.stream()
	control := l.native && !l.client && id == controlStream
	if l.mine(id) || !l.accepts && !control {
		return &AbuseError{AbuseStream, fmt.Sprintf("stream %d opened", id)}
	}
	// Streams opened at the same time may come in any order.
	if l.streams[id] != nil || control && l.control != nil || h.flags()&(flagACK|flagRST) != 0 {
		return protocolAbuse(h)
	}
	l.lastPeer = max(l.lastPeer, id)
	s := l.addLocked(id, false)
	if !control { // which is acknowledged with our hello
		l.greetLocked(s)
		l.kickLocked(false)
	}
	l.born = append(l.born, s)
	return nil
}

// strayLocked judges a frame of a stream that does not exist. Late frames are to be expected: data until the peer has
// seen our reset, and window updates even after both ends have closed a stream. The caller holds mu.
func (l *link) strayLocked(h frame) *AbuseError {
	id := h.stream()
	last := l.lastPeer
	if l.mine(id) {
		last = l.lastLocal
	}
	if id <= last && (h.kind() == kindWindow && h.flags()&^flagRST == 0 || l.belated.covers(h)) {
		return nil
	}
	if !l.glitches.take(l.now(), glitchEvery, glitchBurst) {
		return &AbuseError{AbuseGlitches, "too many frames of streams that do not exist"}
	}
	return nil
}

// pingLocked answers a ping, or takes the answer to ours. The caller holds mu.
func (l *link) pingLocked(h frame) *AbuseError {
	if !l.pings.take(l.now(), pingEvery, pingBurst) {
		return &AbuseError{AbusePing, "too many pings"}
	}
	switch {
	case h.flags()&flagSYN != 0:
		pong := makeFrame(kindPing, flagACK, 0, h.length())
		l.urgentLocked(pong[:]) // also when there is no room: a classic agent without an answer leaves
	case l.answered != nil && h.length() == l.pingID:
		l.rtt.Store(int64(max(l.now()-l.pingSent, 1)))
		close(l.answered)
		l.answered = nil
	}
	return nil
}

func protocolAbuse(h frame) *AbuseError {
	return &AbuseError{AbuseProtocol, fmt.Sprintf("frame of version %d, kind %d, flags %#x, stream %d, length %d",
		h.version(), h.kind(), h.flags(), h.stream(), h.length())}
}

package tunnel

import (
	"fmt"
	"math"
	"time"
)

const (
	pingEvery     = time.Second / 20
	pingBurst     = 100
	glitchEvery   = time.Minute / 1000
	glitchBurst   = 1000
	rememberedMax = 2048 // ids of streams reset here whose late frames are expected
	stallTimeout  = 10 * time.Second
)

// guard is what a link knows of the streams. It judges every frame before yamux sees it, so that a peer can neither make
// yamux fail nor make it hold more than the windows allow.
type guard struct {
	flows       map[uint32]*flow
	nflows      int    // without the control stream
	opening     int    // admitted, but yamux has not sent SYN
	lastLocal   uint32 // the highest
	lastPeer    uint32
	unsettled   int     // streams acknowledged by frames that yamux may not have handled yet
	finished    []*flow // likewise
	emptied     chan struct{}
	pings       meter
	glitches    meter
	resets      map[uint32]struct{}
	resetOrder  []uint32
	pingID      uint32
	pingSent    time.Duration
	pingPending bool
	blamed      string // an abuse that is not reported yet
	control     *flow  // whose reader is or was running
	onControl   func() // reads the control stream
	hearing     bool   // it runs
}

// flow is the state of one stream as seen on the wire.
type flow struct {
	id      uint32
	local   bool // opened here
	control bool
	acked   bool
	finIn   bool
	finOut  bool
	settled bool // yamux has handled the peer's FIN
	discard bool // closed here: what comes is not wanted
	gone    bool // yamux has no such stream, or will not have when it has read what we give it
	recv    int64
	send    int64
	in      int64         // bytes received
	acks    chan struct{} // closed when acked or gone; nil when nobody waits
	timer   *time.Timer   // resets a closed stream
}

// mine reports whether streams of this number are opened here.
func (l *link) mine(stream uint32) bool { return (stream&1 == 1) == l.client }

// settleLocked is called when yamux asks for more: it has handled all it was given. The caller holds mu.
func (l *link) settleLocked() {
	for ; l.unsettled > 0; l.unsettled-- {
		select {
		case <-l.syn:
		default: // each acknowledged stream had put one in, so this is not reached; blocking here would be worse
		}
	}
	for i, f := range l.finished {
		f.settled = true
		l.finished[i] = nil
	}
	l.finished = l.finished[:0]
}

// inboundLocked judges the header of a frame from the peer, and changes it where yamux would trip. It reports whether
// yamux is to see it, and sets body and skip. The caller holds mu.
func (l *link) inboundLocked(h frame) (bool, *AbuseError) {
	kind, flags, id, length := h.kind(), h.flags(), h.stream(), h.length()
	if h.version() != 0 || kind > kindGoAway || flags > flagSYN|flagACK|flagFIN|flagRST {
		return false, protocolAbuse(h)
	}
	l.skip = false
	switch kind {
	case kindPing:
		return false, l.pingLocked(h)
	case kindGoAway:
		l.away = true
		l.stopLocked()
		if length != goAwayNormal && l.cause == nil {
			l.cause = fmt.Errorf("peer sent GoAway with code %d", length)
		}
		return true, nil
	}
	if id == 0 {
		return false, protocolAbuse(h)
	}
	if kind == kindData {
		if length > largestWindow {
			return false, &AbuseError{AbuseWindow, fmt.Sprintf("frame of %d bytes", length)}
		}
		l.body = int(length)
	}
	if flags&flagSYN != 0 {
		if abuse := l.openedLocked(h); abuse != nil {
			return false, abuse
		}
	}
	f := l.flows[id]
	if f == nil {
		l.skip = true
		return false, l.strayLocked(h)
	}
	return l.flowLocked(f, h)
}

// flowLocked judges a frame of a stream that exists. The caller holds mu.
func (l *link) flowLocked(f *flow, h frame) (bool, *AbuseError) {
	flags, length := h.flags(), int64(h.length())
	if f.finIn && flags&flagFIN != 0 || !f.local && flags&flagACK != 0 && flags&flagSYN == 0 {
		return false, protocolAbuse(h)
	}
	if f.local {
		if f.acked {
			flags &^= flagACK // yamux would count it twice
		} else {
			f.acked = flags&(flagRST|flagACK) != flagRST
			flags |= flagACK // also with RST, else yamux keeps an entry for the stream for ever
			l.unsettled++
		}
		h.setFlags(flags)
		if f.acks != nil {
			close(f.acks)
			f.acks = nil
		}
	}
	switch h.kind() {
	case kindWindow:
		if f.send += length; f.send > math.MaxInt32 {
			return false, &AbuseError{AbuseWindow, fmt.Sprintf("send window of %d bytes", f.send)}
		}
	case kindData:
		if length > f.recv {
			return false, &AbuseError{AbuseWindow, fmt.Sprintf("frame of %d bytes for a window of %d", length, f.recv)}
		}
		if f.finIn && length > 0 {
			return false, protocolAbuse(h)
		}
		f.recv -= length
		f.in += length
		if f.discard {
			l.skip = true
			h.strip()
		}
	}
	if flags&flagFIN != 0 {
		f.finIn = true
		l.finished = append(l.finished, f)
	}
	if flags&flagRST != 0 || f.finIn && f.finOut {
		l.endLocked(f)
	}
	if f.control && (h.kind() == kindData || flags&(flagFIN|flagRST) != 0) {
		l.controlLocked(f)
	}
	return !f.discard || flags != 0, nil
}

// openedLocked judges SYN from the peer. The caller holds mu.
func (l *link) openedLocked(h frame) *AbuseError {
	id := h.stream()
	allowed := l.accepts || l.native && !l.client && id == controlStream
	if l.mine(id) || !allowed {
		return &AbuseError{AbuseStream, fmt.Sprintf("stream %d opened", id)}
	}
	// Streams opened at the same time may come in any order.
	if l.flows[id] != nil || h.flags()&(flagACK|flagRST) != 0 {
		return protocolAbuse(h)
	}
	l.lastPeer = max(l.lastPeer, id)
	l.addLocked(&flow{id: id, recv: initialWindow, send: initialWindow})
	return nil
}

// strayLocked judges a frame of a stream that does not exist. Late frames are to be expected: data until the peer has
// seen our reset, and window updates even after both ends have closed a stream. The caller holds mu.
func (l *link) strayLocked(h frame) *AbuseError {
	id := h.stream()
	if _, ok := l.resets[id]; ok {
		if h.flags()&(flagFIN|flagRST) != 0 {
			delete(l.resets, id)
		}
		return nil
	}
	last := l.lastPeer
	if l.mine(id) {
		last = l.lastLocal
	}
	if h.kind() == kindWindow && h.flags()&^flagRST == 0 && id <= last {
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
		l.urgentLocked(pong[:], false)
	case l.pingPending && h.length() == l.pingID:
		l.pingPending = false
		l.rtt.Store(int64(max(l.now()-l.pingSent, 1)))
	}
	return nil
}

// outboundLocked takes note of a frame of yamux and reports whether it is to be sent. Frames of streams that are gone are
// not. The caller holds mu.
func (l *link) outboundLocked(h frame) bool {
	if h.kind() > kindWindow {
		return true
	}
	flags, id, length := h.flags(), h.stream(), int64(h.length())
	if flags&flagSYN != 0 {
		l.lastLocal = max(l.lastLocal, id)
		f := &flow{id: id, local: true, recv: initialWindow, send: initialWindow}
		l.addLocked(f)
		if !f.control {
			l.opening--
		}
	}
	f := l.flows[id]
	if f == nil {
		return false
	}
	if h.kind() == kindData {
		f.send -= length
	} else {
		f.recv += length
	}
	if flags&flagACK != 0 {
		f.acked = true
	}
	if flags&flagFIN != 0 {
		f.finOut = true
	}
	if flags&flagRST != 0 {
		l.rememberLocked(id)
	}
	if flags&flagRST != 0 || f.finIn && f.finOut {
		l.endLocked(f)
	}
	return true
}

// addLocked registers a stream. The caller holds mu.
func (l *link) addLocked(f *flow) {
	if l.flows == nil {
		l.flows = make(map[uint32]*flow)
	}
	l.flows[f.id] = f
	f.control = l.native && f.id == controlStream
	if !f.control {
		l.nflows++
	}
}

// endLocked forgets a stream that both ends have ended or one has reset. The caller holds mu.
func (l *link) endLocked(f *flow) {
	if f.gone {
		return
	}
	f.gone = true
	delete(l.flows, f.id)
	if f.timer != nil {
		f.timer.Stop()
	}
	if f.acks != nil {
		close(f.acks)
		f.acks = nil
	}
	if !f.control {
		l.nflows--
	}
	l.emptyLocked()
}

// emptyLocked tells who waits for the end of all streams. The caller holds mu.
func (l *link) emptyLocked() {
	if l.nflows+l.opening > 0 {
		return
	}
	if l.emptied != nil {
		close(l.emptied)
		l.emptied = nil
	}
	if len(l.flows) == 0 {
		l.flows = nil // maps do not shrink
	}
}

func protocolAbuse(h frame) *AbuseError {
	return &AbuseError{AbuseProtocol, fmt.Sprintf("frame of version %d, kind %d, flags %#x, stream %d, length %d",
		h.version(), h.kind(), h.flags(), h.stream(), h.length())}
}

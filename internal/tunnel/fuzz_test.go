package tunnel

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/pikoproxy/piko/internal/websocket"
)

func FuzzControlMessage(f *testing.F) {
	for _, body := range []any{
		Hello{Version: 1, AgentID: "a", Labels: map[string]string{"k": "v"}}, Listen{"e", ProtocolTCP, 3},
		Drain{"why", time.Unix(0, 0).UTC()}, verdict{"e", CodeDraining, "r"}, bearer{"t"}, welcome{Version: 1, NodeID: "n"},
	} {
		b, err := appendMessage(nil, "hello", body)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte("\x00\x01\x00\x01{}"))
	f.Add([]byte("\x00\x00\x00\x04null"))
	f.Fuzz(func(t *testing.T, b []byte) {
		kind, object, err := readMessage(bytes.NewReader(b), nil)
		if err != nil {
			return
		}
		if len(object) > maxMessage {
			t.Fatalf("%d bytes", len(object))
		}
		// Whatever can be read can be decoded or refused, and what is decoded can be sent again.
		var known []any
		known = also[Hello](known, object)
		known = also[Listen](known, object)
		known = also[Drain](known, object)
		known = also[verdict](known, object)
		known = also[bearer](known, object)
		known = also[welcome](known, object)
		for _, v := range known {
			if b, err := appendMessage(nil, kind, v); err == nil {
				if again, _, err := readMessage(bytes.NewReader(b), nil); err != nil || again != kind {
					t.Errorf("%T sent again: type %q, %v", v, again, err)
				}
			}
		}
	})
}

func also[T any](known []any, object []byte) []any {
	if v, err := decode[T](object); err == nil {
		return append(known, v)
	}
	return known
}

func FuzzStreamHeader(f *testing.F) {
	for _, v := range []any{Header{"e", ProtocolHTTP, "192.0.2.1:1", "00-1-2-01"}, verdict{Code: CodeOverloaded, Reason: "full"}} {
		b, err := appendBlock(nil, v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte{0, 0})
	f.Add([]byte{0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, err := readHeader(bytes.NewReader(b)); err == nil {
			if again, err := appendBlock(nil, h); err == nil {
				if h2, err := readHeader(bytes.NewReader(again)); err != nil || h2 != h {
					t.Errorf("%+v read back as %+v, %v", h, h2, err)
				}
			}
		}
		err := readAnswer(bytes.NewReader(b))
		if err == nil && !bytes.HasPrefix(b, []byte{0, 0}) {
			t.Errorf("%x was taken for an acceptance", b)
		}
		if refused, ok := errors.AsType[*RefusedError](err); ok && len(refused.Reason) > maxReason {
			t.Errorf("reason of %d bytes", len(refused.Reason))
		}
	})
}

// offline is a link without a socket: what is written to it stays in the batch.
func offline(r role) *link {
	return &link{role: r, ws: new(websocket.Conn), start: time.Now(), syn: make(chan struct{}, maxUnacknowledged), window: initialWindow,
		closing: make(chan struct{}), done: make(chan struct{}), writer: writer{sending: true}}
}

// give passes received bytes through the guard, as run does.
func (l *link) give(b []byte) *AbuseError {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer func() { l.fed, l.born = l.fed[:0], nil }()
	return l.takeLocked(b)
}

func roles() []role {
	return []role{{}, {native: true}, {client: true, native: true}, {client: true, native: true, accepts: true},
		{native: true, accepts: true}}
}

// frames makes seeds out of frames.
func frames(list ...[frameSize]byte) []byte {
	var b []byte
	for _, h := range list {
		b = append(b, h[:]...)
		if frame(h[:]).kind() == kindData {
			b = append(b, make([]byte, frame(h[:]).length())...)
		}
	}
	return b
}

func seeds(f *testing.F) {
	for who := range roles() {
		for _, id := range []uint32{1, 2, 3} {
			f.Add(uint8(who), uint16(7), frames(
				makeFrame(kindWindow, flagSYN, id, 100), makeFrame(kindData, 0, id, 20), makeFrame(kindPing, flagSYN, 0, 1),
				makeFrame(kindWindow, 0, id, 5), makeFrame(kindData, flagFIN, id, 3), makeFrame(kindWindow, flagRST, id, 0)))
			f.Add(uint8(who), uint16(1), frames(
				makeFrame(kindWindow, flagACK, id, 100), makeFrame(kindData, 0, id, 300), makeFrame(kindWindow, flagFIN, id, 0),
				makeFrame(kindData, 0, 77, 9), makeFrame(kindGoAway, 0, 0, 0)))
		}
	}
	f.Add(uint8(0), uint16(3), frames(makeFrame(kindWindow, flagRST, 2, 0), makeFrame(kindWindow, flagACK|flagFIN, 4, 0),
		makeFrame(kindData, flagACK, 6, 30), makeFrame(kindWindow, flagACK, 6, 1<<31)))
}

// state is what a link has received, as text.
func (l *link) state() string {
	text := fmt.Sprintf("%d streams, %d held, away %v, over %v\n", l.nstreams, l.held, l.away, l.over)
	for id := range uint32(20) {
		if s := l.streams[id]; s != nil {
			text += fmt.Sprintf("%d: %v %v %d %d %d %d\n", id, s.acked, s.finIn, s.recv, s.send, s.unread, s.in.size)
		}
	}
	if l.batch != nil {
		text += fmt.Sprintf("%x", l.batch.b[batchFront:])
	}
	return text + fmt.Sprintf("%x", l.urgent[:l.nurgent])
}

func FuzzFramesMeanTheSameHoweverTheyAreSplit(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, who uint8, step uint16, b []byte) {
		r := roles()[int(who)%len(roles())]
		whole, pieces := offline(r), offline(r)
		for _, l := range []*link{whole, pieces} {
			for range 3 {
				opened(t, l)
			}
		}
		wantAbuse := whole.give(b)
		var haveAbuse *AbuseError
		for rest := b; len(rest) > 0 && haveAbuse == nil; {
			n := min(len(rest), int(step)%50+1)
			haveAbuse = pieces.give(rest[:n])
			rest = rest[n:]
		}
		if wantAbuse != nil || haveAbuse != nil {
			if wantAbuse == nil || haveAbuse == nil || *wantAbuse != *haveAbuse {
				t.Fatalf("whole: %v, in pieces: %v", wantAbuse, haveAbuse)
			}
			return
		}
		if want, have := whole.state(), pieces.state(); want != have {
			t.Fatalf("whole: %s\nin pieces: %s", want, have)
		}
	})
}

// script turns bytes into frames that are nearly right, four bytes a frame.
func script(ops []byte) []byte {
	lengths := []uint32{0, 0, 1, 13, 700, 100 << 10, 1 << 31, 1<<32 - initialWindow}
	var b []byte
	for ; len(ops) >= 4 && len(b) < 1<<20; ops = ops[4:] {
		kind := []byte{kindData, kindWindow, kindData, kindWindow, kindPing, kindGoAway}[ops[0]%6]
		length := lengths[ops[3]%8]
		if kind == kindGoAway {
			length = 0
		}
		h := makeFrame(kind, uint16(ops[1]&15), uint32(ops[2]%10), length)
		b = append(b, h[:]...)
		if kind == kindData && length <= 100<<10 {
			b = append(b, make([]byte, length)...)
		}
	}
	return b
}

// sound reports what can't be, whatever the peer has sent.
func (l *link) sound(t *testing.T) {
	t.Helper()
	n, held := 0, int64(0)
	for _, s := range l.streams {
		if s != l.control {
			n++
		}
		if s != l.control {
			held += s.unread
		}
		if s.recv < 0 || s.unread < int64(s.in.size) || s.recv+s.unread > max(l.window, initialWindow) {
			t.Errorf("stream %d: window %d, unread %d, of which %d are here", s.id, s.recv, s.unread, s.in.size)
		}
		if s.gone || s.finIn && s.finOut {
			t.Errorf("stream %d is gone, but not forgotten", s.id)
		}
	}
	if n != l.nstreams || len(l.syn) > maxUnacknowledged {
		t.Errorf("%d streams, counted as %d; %d not acknowledged", n, l.nstreams, len(l.syn))
	}
	if held > l.held {
		t.Errorf("%d bytes held, counted as %d", held, l.held)
	}
}

// FuzzNothingConfusesALink has a peer send frames that are nearly right, while streams are used.
func FuzzNothingConfusesALink(f *testing.F) {
	for who := range roles() {
		for id := range byte(7) {
			f.Add(uint8(who), uint16(who)*7, []byte{1, 2, id, 0, 0, 0, id, 4, 1, 4, id, 0, 1, 4, id, 0, 1, 8, id, 0})
			f.Add(uint8(who), uint16(who)*9, []byte{1, 1, id, 2, 0, 0, id, 5, 0, 0, id, 5, 0, 0, id, 5, 1, 0, id, 7, 5, 0, 0, 0})
		}
	}
	f.Fuzz(func(t *testing.T, who uint8, step uint16, ops []byte) {
		rest := script(ops)
		l := offline(roles()[int(who)%len(roles())])
		var mine []*Stream
		for range 3 {
			mine = append(mine, opened(t, l))
		}
		buf := make([]byte, 100)
		for i := 0; len(rest) > 0; i++ {
			n := min(len(rest), int(step)%97+1)
			abuse := l.give(rest[:n])
			l.sound(t)
			if abuse != nil || l.over {
				break
			}
			rest = rest[n:]
			s := mine[i%3]
			switch (int(step) >> (i % 13)) & 7 {
			case 1:
				s.CloseWrite()
			case 2:
				s.Reset()
			case 3:
				l.mu.Lock()
				ready := s.in.size > 0
				l.mu.Unlock()
				if ready {
					s.Read(buf)
				}
			}
			l.sound(t)
		}
		l.endStreams()
		if l.nstreams != 0 || len(l.syn) != 0 || len(l.streams) != 0 {
			t.Errorf("%d streams, %d not acknowledged after the end", l.nstreams, len(l.syn))
		}
		for _, s := range mine { // nothing blocks
			for err := error(nil); err == nil; {
				_, err = s.Read(buf)
			}
		}
	})
}

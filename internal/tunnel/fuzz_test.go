package tunnel

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/yamux"
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
	l := &link{role: r, start: time.Now(), syn: make(chan struct{}, maxUnacknowledged),
		closing: make(chan struct{}), done: make(chan struct{})}
	l.room.L = &l.mu
	l.running = true // so that none is started
	return l
}

// give passes received bytes through the guard, as Read does.
func (l *link) give(b []byte) ([]byte, *AbuseError) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := append(append([]byte(nil), l.held[:l.nheld]...), b...)
	n, abuse := l.filterLocked(p)
	return p[:n], abuse
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

func FuzzGuardSeesTheSameHoweverItIsSplit(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, who uint8, step uint16, b []byte) {
		r := roles()[int(who)%len(roles())]
		whole, pieces := offline(r), offline(r)
		for _, l := range []*link{whole, pieces} {
			for id := uint32(2); id < 8; id += 2 {
				h := makeFrame(kindWindow, flagSYN, id-uint32(b2i(r.client)), 0)
				l.Write(h[:])
			}
		}
		want, wantAbuse := whole.give(b)
		var have []byte
		var haveAbuse *AbuseError
		for rest := b; len(rest) > 0 && haveAbuse == nil; {
			n := min(len(rest), int(step)%50+1)
			var out []byte
			out, haveAbuse = pieces.give(rest[:n])
			have, rest = append(have, out...), rest[n:]
		}
		if wantAbuse != nil || haveAbuse != nil {
			if wantAbuse == nil || haveAbuse == nil || *wantAbuse != *haveAbuse {
				t.Fatalf("whole: %v, in pieces: %v", wantAbuse, haveAbuse)
			}
			return
		}
		if !bytes.Equal(want, have) {
			t.Fatalf("whole: %x\nin pieces: %x", want, have)
		}
		if whole.nflows < 0 || whole.nflows != pieces.nflows {
			t.Errorf("%d and %d streams", whole.nflows, pieces.nflows)
		}
	})
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// guarded is a connection for yamux that delivers bytes through the guard, once released.
type guarded struct {
	l       *link
	release chan struct{}
	mu      sync.Mutex
	rest    []byte
	abuse   *AbuseError
	closed  bool
}

func (g *guarded) Read(p []byte) (int, error) {
	<-g.release
	g.mu.Lock()
	defer g.mu.Unlock()
	for {
		g.l.mu.Lock()
		g.l.settleLocked()
		n := g.l.ownLocked(p)
		g.l.mu.Unlock()
		if n > 0 {
			return n, nil
		}
		if len(g.rest) == 0 || g.abuse != nil || g.closed {
			return 0, io.EOF
		}
		n = min(len(g.rest), 100, len(p)-frameSize)
		if len(p) <= frameSize {
			n = min(len(g.rest), len(p)-g.l.nheld)
		}
		var out []byte
		out, g.abuse = g.l.give(g.rest[:n])
		g.rest = g.rest[n:]
		if len(out) > 0 && g.abuse == nil {
			return copy(p, out), nil
		}
	}
}

func (g *guarded) Write(p []byte) (int, error) { return g.l.Write(p) }
func (g *guarded) Close() error {
	g.l.mu.Lock()
	defer g.l.mu.Unlock()
	g.l.closed = true
	g.l.room.Broadcast()
	return nil
}

// complaints is a yamux logger that keeps what points to a peer at fault.
type complaints struct {
	silence
	mu    sync.Mutex
	lines []string
}

func (c *complaints) Printf(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	harmless := strings.Contains(line, "[WARN]") || strings.Contains(line, "read stream data") ||
		strings.Contains(line, "Failed to read header") || strings.Contains(line, "Failed to write") ||
		strings.Contains(line, "go away")
	if !harmless {
		c.mu.Lock()
		c.lines = append(c.lines, line)
		c.mu.Unlock()
	}
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

// FuzzGuardLetsNothingThroughThatYamuxTripsOver runs a real yamux session behind the guard.
func FuzzGuardLetsNothingThroughThatYamuxTripsOver(f *testing.F) {
	for who := range roles() {
		for id := range byte(7) {
			f.Add(uint8(who), uint16(who)*7, []byte{1, 2, id, 0, 0, 0, id, 4, 1, 4, id, 0, 1, 4, id, 0, 1, 8, id, 0})
			f.Add(uint8(who), uint16(who)*9, []byte{1, 1, id, 2, 0, 0, id, 5, 0, 0, id, 5, 0, 0, id, 5, 1, 0, id, 7, 5, 0, 0, 0})
		}
	}
	f.Fuzz(func(t *testing.T, who uint8, step uint16, ops []byte) {
		b := script(ops)
		r := roles()[int(who)%len(roles())]
		g := &guarded{l: offline(r), release: make(chan struct{}), rest: b}
		log := &complaints{}
		config := &yamux.Config{AcceptBacklog: 512, KeepAliveInterval: time.Hour, ConnectionWriteTimeout: time.Minute,
			MaxStreamWindowSize: 512 << 10, Logger: log}
		start := yamux.Server
		if r.client {
			start = yamux.Client
		}
		ys, err := start(g, config)
		if err != nil {
			t.Fatal(err)
		}
		defer ys.Close()
		for i := range 3 {
			g.l.syn <- struct{}{}
			st, err := ys.OpenStream()
			if err != nil {
				t.Fatal(err)
			}
			switch (int(step) >> i) & 3 {
			case 1:
				st.Close()
			case 2:
				g.l.reset(g.l.flow(st.StreamID()))
			}
		}
		close(g.release)
		<-ys.CloseChan()
		ys.Close()
		log.mu.Lock()
		defer log.mu.Unlock()
		if len(log.lines) > 0 {
			t.Errorf("yamux: %s", strings.Join(log.lines, "; "))
		}
		if _, err := json.Marshal(g.abuse); err != nil {
			t.Error(err)
		}
	})
}

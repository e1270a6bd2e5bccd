package tunnel

import (
	"context"
	"errors"
	"io"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"
)

// badPeer is a session whose agent is played by the test, frame by frame.
type badPeer struct {
	*rawPeer
	n      *node
	s      *Session
	window uint32 // of the last stream opened
}

func newBadPeer(t *testing.T, o NodeOptions) *badPeer {
	t.Helper()
	n := newNode(t, o)
	raw := dialRaw(t, n.URL, PathClassic+"/e", "")
	raw.answerPing(t)
	return &badPeer{raw, n, n.session(t), 0}
}

// open has the node open a stream and acknowledges it.
func (p *badPeer) open(t *testing.T) (*Stream, uint32) {
	t.Helper()
	opened := make(chan *Stream, 1)
	go func() {
		st, err := p.s.Open(context.Background(), Header{})
		if err != nil {
			t.Error(err)
		}
		opened <- st
	}()
	syn, _ := p.expect(t, kindWindow)
	for syn.flags()&flagSYN == 0 { // of a stream before
		syn, _ = p.expect(t, kindWindow)
	}
	p.window = initialWindow + syn.length()
	p.send(t, makeFrame(kindWindow, flagACK, syn.stream(), 0), nil)
	st := receive(t, opened, "stream")
	if st == nil {
		t.FailNow()
	}
	return st, syn.stream()
}

// wantAbuse checks that the session ended for a reason that was reported once.
func (p *badPeer) wantAbuse(t *testing.T, reason string) {
	t.Helper()
	if got := receive(t, p.n.abuses, "abuse"); got != reason {
		t.Errorf("abuse %s, want %s", got, reason)
	}
	receive(t, p.s.Done(), "end of the session")
	abuse, ok := errors.AsType[*AbuseError](p.s.Err())
	if !ok || abuse.Reason != reason {
		t.Errorf("session ended with %v, want %s", p.s.Err(), reason)
	}
	wantError(t, p.s.Err(), ErrSessionClosed)
	p.s.Wait()
	if len(p.n.abuses) > 0 {
		t.Errorf("reported twice: %s", <-p.n.abuses)
	}
}

// flood writes the same frames again and again until the node has enough or count are sent.
func (p *badPeer) flood(count int, h [frameSize]byte, body []byte) {
	var b []byte
	for range 100 {
		b = append(append(b, h[:]...), body...)
	}
	for range count / 100 {
		if _, err := p.Write(b); err != nil {
			return
		}
	}
}

func TestY1PingFlood(t *testing.T) {
	noLeaks(t)
	p := newBadPeer(t, NodeOptions{})
	p.mute = true
	before := runtime.NumGoroutine()
	p.flood(300_000, makeFrame(kindPing, flagSYN, 0, 1), nil)
	if n := runtime.NumGoroutine() - before; n > 10 {
		t.Errorf("%d more goroutines", n)
	}
	p.wantAbuse(t, AbusePing)
}

func TestY1FewPingsAreAnsweredInOrder(t *testing.T) {
	noLeaks(t)
	p := newBadPeer(t, NodeOptions{})
	for i := range uint32(90) {
		p.send(t, makeFrame(kindPing, flagSYN, 0, i), nil)
		pong, _ := p.expect(t, kindPing)
		if pong.flags() != flagACK || pong.length() != i {
			t.Fatalf("answer %v to ping %d", pong, i)
		}
	}
}

func TestY2Y3AgentOpensAStream(t *testing.T) {
	for name, id := range map[string]uint32{"its own": 1, "ours": 2} {
		t.Run(name, func(t *testing.T) {
			noLeaks(t)
			p := newBadPeer(t, NodeOptions{})
			go p.flood(2000, makeFrame(kindData, flagSYN, id, 1000), make([]byte, 1000))
			p.wantAbuse(t, AbuseStream)
		})
	}
	t.Run("native, beside the control stream", func(t *testing.T) {
		noLeaks(t)
		n := newNode(t, NodeOptions{})
		a := n.dial(t, DialOptions{})
		p := &badPeer{nil, n, n.session(t), 0}
		a.l.syn <- struct{}{}
		a.l.begin(patience{ctx: t.Context()}, nil) // fails when the node is quick
		p.wantAbuse(t, AbuseStream)
	})
	t.Run("peer, from the accepting end", func(t *testing.T) {
		noLeaks(t)
		n := newNode(t, NodeOptions{})
		abuses := make(chan string, 1)
		s, err := DialPeer(timeout(t), DialOptions{URL: n.URL}, NodeOptions{OnAbuse: func(r string) { abuses <- r }})
		if err != nil {
			t.Fatal(err)
		}
		a := receive(t, n.peers, "peer session")
		a.l.syn <- struct{}{}
		a.l.begin(patience{ctx: t.Context()}, nil)
		if got := receive(t, abuses, "abuse"); got != AbuseStream {
			t.Errorf("abuse %s", got)
		}
		s.Wait()
	})
}

func TestY4DataAfterCloseIsNotKept(t *testing.T) {
	noLeaks(t)
	p := newBadPeer(t, NodeOptions{CloseWait: 50 * time.Millisecond})
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	body := make([]byte, 128<<10)
	most := 0
	for range 100 {
		st, id := p.open(t)
		st.Close()
		most = max(most, p.s.Streams())
		p.send(t, makeFrame(kindData, 0, id, uint32(len(body))), body)
		p.send(t, makeFrame(kindData, 0, id, uint32(len(body))), body)
	}
	if most == 0 {
		t.Error("streams that the agent has not closed are not counted")
	}
	go io.Copy(io.Discard, p)
	eventually(t, "streams reset", func() bool { return p.s.Streams() == 0 })
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 2<<20 {
		t.Errorf("%d KiB held for 25 MiB sent", grown>>10)
	}
	if p.s.Err() != nil {
		t.Errorf("session ended: %v", p.s.Err())
	}
}

func TestY5StreamsThatAreNeverAcknowledged(t *testing.T) {
	noLeaks(t)
	p := newBadPeer(t, NodeOptions{OpenTimeout: 20 * time.Millisecond})
	syns := make(chan uint32, 4096)
	go func() {
		for {
			h, _, err := p.frame()
			if err != nil {
				return
			}
			if h.flags()&flagSYN != 0 {
				syns <- h.stream()
			}
		}
	}()
	failed := make(chan error, 64)
	for range 8 { // more in all than there may be unacknowledged at a time
		for range cap(failed) {
			go func() {
				_, err := p.s.Open(t.Context(), Header{})
				failed <- err
			}()
		}
		for range cap(failed) {
			wantError(t, receive(t, failed, "end of Open"), ErrOpenTimeout)
		}
	}
	eventually(t, "streams forgotten", func() bool { return p.s.Streams() == 0 })
	if err := p.s.Err(); err != nil {
		t.Fatalf("session ended: %v", err)
	}
	// Late acknowledgements change nothing, and a new stream works.
	for range len(syns) {
		p.send(t, makeFrame(kindWindow, flagACK, <-syns, 0), nil)
	}
	p.s.o.OpenTimeout = testTimeout
	opened := make(chan struct{})
	var acks sync.WaitGroup
	acks.Go(func() {
		for { // some of the streams before may not have been heard of yet
			select {
			case id := <-syns:
				p.send(t, makeFrame(kindWindow, flagACK, id, 0), nil)
			case <-opened:
				return
			}
		}
	})
	st, err := p.s.Open(timeout(t), Header{})
	close(opened)
	acks.Wait()
	if err != nil {
		t.Fatal(err)
	}
	st.Reset()
	nothingInFlight(t, p.s)
}

// nothingInFlight checks, when no stream is left, that none is taken for not acknowledged.
func nothingInFlight(t *testing.T, s *Session) {
	t.Helper()
	eventually(t, "streams forgotten", func() bool { return len(s.l.syn) == 0 && s.Streams() == 0 })
}

func TestY5OpenEndsWithItsContext(t *testing.T) {
	noLeaks(t)
	p := newBadPeer(t, NodeOptions{})
	for range 3 {
		cause := errors.New("client gone")
		ctx, stop := context.WithCancelCause(t.Context())
		failed := make(chan error, 1)
		go func() {
			_, err := p.s.Open(ctx, Header{})
			failed <- err
		}()
		syn, _ := p.expect(t, kindWindow)
		stop(cause)
		wantError(t, receive(t, failed, "end of Open"), cause)
		rst, _ := p.expect(t, kindWindow)
		if rst.stream() != syn.stream() || rst.flags() != flagRST {
			t.Errorf("agent was told %v, want a reset", rst)
		}
	}
	if err := p.s.Err(); err != nil {
		t.Fatalf("session ended: %v", err)
	}
}

func TestY6WindowOverflow(t *testing.T) {
	noLeaks(t)
	p := newBadPeer(t, NodeOptions{})
	_, id := p.open(t)
	p.send(t, makeFrame(kindWindow, 0, id, 1<<32-initialWindow), nil)
	p.wantAbuse(t, AbuseWindow)
}

func TestY7FramesOfStreamsThatDoNotExist(t *testing.T) {
	for name, h := range map[string][frameSize]byte{
		"data":   makeFrame(kindData, 0, 1000, 10),
		"window": makeFrame(kindWindow, 0, 1000, 10),
	} {
		t.Run(name, func(t *testing.T) {
			noLeaks(t)
			p := newBadPeer(t, NodeOptions{})
			var body []byte
			if frame(h[:]).kind() == kindData {
				body = make([]byte, 10)
			}
			p.flood(900, h, body)
			p.send(t, makeFrame(kindPing, flagSYN, 0, 1), nil)
			p.expect(t, kindPing) // still there
			go p.flood(10_000, h, body)
			p.wantAbuse(t, AbuseGlitches)
		})
	}
}

func TestY7LateFramesOfOurResetsAreNoGlitches(t *testing.T) {
	noLeaks(t)
	p := newBadPeer(t, NodeOptions{})
	for range 12 {
		st, id := p.open(t)
		st.Reset()
		p.expect(t, kindWindow)
		p.flood(200, makeFrame(kindData, 0, id, 100), make([]byte, 100))
	}
	p.send(t, makeFrame(kindPing, flagSYN, 0, 1), nil)
	p.expect(t, kindPing)
	if err := p.s.Err(); err != nil {
		t.Fatalf("session ended: %v", err)
	}
}

func TestY8FrameThatIsNotContinued(t *testing.T) {
	for name, b := range map[string][]byte{
		"no body":     func() []byte { h := makeFrame(kindData, 0, 2, 200<<10); return h[:] }(),
		"half header": {0, 1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			noLeaks(t)
			p := newBadPeer(t, NodeOptions{})
			p.mute = true
			p.open(t)
			keep(t, p.s, KeeperOptions{Stall: 20 * time.Millisecond, Interval: 5 * time.Millisecond})
			if _, err := p.Write(b); err != nil {
				t.Fatal(err)
			}
			p.wantAbuse(t, AbuseStall)
		})
	}
}

// keep runs a Keeper for a session until the test ends.
func keep(t *testing.T, s *Session, o KeeperOptions) {
	t.Helper()
	k := NewKeeper(o)
	k.Add(s)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		<-done
	})
}

func TestY9FramesThatNoPeerSends(t *testing.T) {
	version := makeFrame(kindWindow, 0, 2, 0)
	version[0] = 1
	tests := map[string]struct {
		frames [][frameSize]byte
		reason string
	}{
		"version":              {[][frameSize]byte{version}, AbuseProtocol},
		"kind":                 {[][frameSize]byte{makeFrame(4, 0, 2, 0)}, AbuseProtocol},
		"flags":                {[][frameSize]byte{makeFrame(kindWindow, 0x10, 2, 0)}, AbuseProtocol},
		"stream 0":             {[][frameSize]byte{makeFrame(kindWindow, 0, 0, 0)}, AbuseProtocol},
		"two FIN":              {[][frameSize]byte{makeFrame(kindWindow, flagFIN, 2, 0), makeFrame(kindWindow, flagFIN, 2, 0)}, AbuseProtocol},
		"data after FIN":       {[][frameSize]byte{makeFrame(kindWindow, flagFIN, 2, 0), makeFrame(kindData, 0, 2, 5)}, AbuseProtocol},
		"more than any window": {[][frameSize]byte{makeFrame(kindData, 0, 7, 1<<31)}, AbuseWindow},
		"more than the window": {nil, AbuseWindow},
		"the window in parts":  {nil, AbuseWindow},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			noLeaks(t)
			p := newBadPeer(t, NodeOptions{})
			p.open(t)
			for _, h := range test.frames {
				p.send(t, h, nil)
			}
			switch name {
			case "more than the window":
				p.send(t, makeFrame(kindData, 0, 2, p.window+1), nil)
			case "the window in parts":
				part := make([]byte, 256<<10)
				for range p.window/(256<<10) + 1 { // the node may have enough before the last
					h := makeFrame(kindData, 0, 2, uint32(len(part)))
					p.Write(append(h[:], part...))
				}
			}
			p.wantAbuse(t, test.reason)
		})
	}
}

func TestWebSocketAbuseIsReported(t *testing.T) {
	noLeaks(t)
	p := newBadPeer(t, NodeOptions{})
	p.message(0x81, []byte("text"))
	p.wantAbuse(t, AbuseWebSocket)
}

func TestControlMessagesThatCannotBeReadAreAbuse(t *testing.T) {
	for name, b := range map[string]string{
		"too long":   "\x00\x01\x00\x01",
		"no JSON":    "\x00\x00\x00\x02{{",
		"no object":  "\x00\x00\x00\x02[]",
		"wrong type": "\x00\x00\x00\x1e" + `{"type":"listen","weight":"x"}`,
	} {
		t.Run(name, func(t *testing.T) {
			noLeaks(t)
			n := newNode(t, NodeOptions{})
			a := n.dial(t, DialOptions{})
			p := &badPeer{nil, n, n.session(t), 0}
			io.WriteString(a.ctl.st, b)
			p.wantAbuse(t, AbuseControl)
		})
	}
}

func TestControlMessagesFromLaterVersionsAreIgnored(t *testing.T) {
	noLeaks(t)
	h := &recorder{events: make(chan string, 4)}
	n := newNode(t, NodeOptions{Handler: h})
	a := n.dial(t, DialOptions{})
	n.session(t)
	a.Send("teleport", map[string]any{"to": []int{1, 2}})
	a.Send("listen", map[string]any{"endpoint": "e", "colour": "red", "weight": 2})
	h.want(t, "listen e  2")
}

func TestStreamsBeyondTheLimitAreRefusedHere(t *testing.T) {
	noLeaks(t)
	n := newNode(t, NodeOptions{MaxStreams: 2})
	a := n.dial(t, DialOptions{})
	s := n.session(t)
	one, _ := connect(t, s, a)
	go echo(a)
	if _, err := s.Open(timeout(t), Header{Endpoint: "e"}); err != nil {
		t.Fatal(err)
	}
	one.CloseWrite() // half closed counts
	_, err := s.Open(timeout(t), Header{Endpoint: "e"})
	wantRefused(t, err, CodeOverloaded)
	one.Reset()
	if _, err = s.Open(timeout(t), Header{Endpoint: "e"}); err != nil {
		t.Fatalf("after one was reset: %v", err)
	}
}

func TestStreamsBeyondWhatTheAgentTakesAreReset(t *testing.T) {
	noLeaks(t)
	n := newNode(t, NodeOptions{})
	a := n.dial(t, DialOptions{MaxUnaccepted: 3})
	s := n.session(t)
	results := make(chan error, 5)
	for range cap(results) {
		go func() {
			_, err := s.Open(t.Context(), Header{Endpoint: "e"})
			results <- err
		}()
	}
	for range 2 {
		wantRefused(t, receive(t, results, "refusal"), CodeReset)
	}
	go echo(a)
	for range 3 {
		if err := receive(t, results, "answer"); err != nil {
			t.Error(err)
		}
	}
}

func TestSessionEndsWithItsControlStream(t *testing.T) {
	for name, end := range map[string]func(*Stream){
		"FIN":             func(st *Stream) { st.CloseWrite() },
		"RST":             func(st *Stream) { st.Reset() },
		"half a message":  func(st *Stream) { st.Write([]byte{0, 0}); st.CloseWrite() },
		"after a message": func(st *Stream) { st.Write([]byte("\x00\x00\x00\x02{}")); st.CloseWrite() },
	} {
		t.Run(name, func(t *testing.T) {
			noLeaks(t)
			s, a := pair(t)
			end(a.ctl.st)
			receive(t, s.Done(), "end of the session")
		})
	}
}

// rawNative is a native agent that is played by the test, after the hello.
func rawNative(t *testing.T, n *node) *rawPeer {
	t.Helper()
	raw := dialRaw(t, n.URL, PathTunnel, Subprotocol)
	raw.answerPing(t)
	hello, err := appendMessage(nil, "hello", Hello{Version: Version})
	if err != nil {
		t.Fatal(err)
	}
	raw.send(t, makeFrame(kindWindow, flagSYN, controlStream, 0), nil)
	raw.send(t, makeFrame(kindData, 0, controlStream, uint32(len(hello))), hello)
	return raw
}

func TestAgentThatReadsNoControlMessagesIsGivenUp(t *testing.T) {
	noLeaks(t)
	n := newNode(t, NodeOptions{})
	raw := rawNative(t, n)
	s := n.session(t)
	s.patience = 50 * time.Millisecond
	go io.Copy(io.Discard, raw) // what never comes is a window update
	err := error(nil)
	for err = s.Listening("e"); err == nil; err = s.Listening("e") {
		continue
	}
	wantError(t, err, os.ErrDeadlineExceeded)
	receive(t, s.Done(), "end of the session")
}

func TestControlMessageThatIsNotContinuedEndsTheSession(t *testing.T) {
	noLeaks(t)
	s, a := pair(t)
	s.l.mu.Lock()
	s.patience = 20 * time.Millisecond
	s.l.mu.Unlock()
	a.ctl.st.Write([]byte{0, 0, 0, 9, '{'})
	receive(t, s.Done(), "end of the session")
	wantError(t, s.Err(), os.ErrDeadlineExceeded)
}

func TestStreamWithoutHeaderIsReset(t *testing.T) {
	noLeaks(t)
	s, a := pair(t)
	a.l.mu.Lock()
	a.patience = 20 * time.Millisecond
	a.l.mu.Unlock()
	s.l.syn <- struct{}{}
	st, err := s.l.begin(patience{ctx: t.Context()}, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = st.Read(make([]byte, 1))
	wantError(t, err, ErrReset)
	eventually(t, "stream no longer waits", func() bool { return a.waiting.Load() == 0 })
}

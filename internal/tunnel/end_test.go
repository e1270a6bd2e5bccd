package tunnel

import (
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"testing"
	"time"
)

// pour writes to a new stream until that fails, as soon as begin is closed.
func pour(t *testing.T, p *badPeer, begin <-chan struct{}) <-chan error {
	t.Helper()
	st, id := p.open(t)
	p.send(t, makeFrame(kindWindow, 0, id, 1<<30), nil)
	failed := make(chan error, 1)
	go func() {
		<-begin
		for {
			if _, err := st.Write(make([]byte, maxFrame)); err != nil {
				failed <- err
				return
			}
		}
	}()
	return failed
}

// stuck is a session whose agent has stopped reading, with a Write that is blocked because of it: it waits for room, while that of
// another stream may wait for the socket.
func stuck(t *testing.T, o NodeOptions) (p *badPeer, blocked <-chan error) {
	t.Helper()
	p = newBadPeer(t, o)
	l, begin := p.s.l, make(chan struct{})
	one, other := pour(t, p, begin), pour(t, p, begin)
	close(begin)
	failed := make(chan error, 2)
	go func() {
		failed <- <-one
		failed <- <-other
	}()
	var flushes uint64
	var since time.Time
	eventually(t, "batch full", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.closed || l.broken { // by a short WriteTimeout already
			return true
		}
		if l.room == nil || l.flushes != flushes {
			flushes, since = l.flushes, time.Now()
		}
		return l.fullLocked(maxFrame) && time.Since(since) > 50*time.Millisecond // the socket takes nothing more
	})
	l.mu.Lock()
	if l.batch != nil && len(l.batch.b)-batchFront > maxBatch {
		t.Errorf("%d bytes wait for the socket", len(l.batch.b)-batchFront)
	}
	l.mu.Unlock()
	return p, failed
}

func TestEndOfTheSessionFreesABlockedWrite(t *testing.T) {
	for name, end := range map[string]func(*badPeer){
		"CloseNow": func(p *badPeer) { p.s.CloseNow(nil) },
		"Shutdown": func(p *badPeer) {
			ctx, stop := context.WithCancel(context.Background())
			stop()
			p.s.Shutdown(ctx)
		},
		"agent gone": func(p *badPeer) { p.Conn.Close() },
		"Close":      func(p *badPeer) { p.s.l.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			noLeaks(t)
			p, blocked := stuck(t, NodeOptions{})
			end(p)
			wantError(t, receive(t, blocked, "end of Write"), ErrSessionClosed)
			p.s.Wait()
		})
	}
}

func TestOpenAndControlAreBoundedWhileTheSocketIsStuck(t *testing.T) {
	noLeaks(t)
	p, blocked := stuck(t, NodeOptions{})
	p.s.o.OpenTimeout = 30 * time.Millisecond
	_, err := p.s.Open(t.Context(), Header{})
	wantError(t, err, ErrOpenTimeout)
	p.s.CloseNow(nil)
	receive(t, blocked, "end of Write")
}

func TestSilentPeerWithFullBuffersIsFound(t *testing.T) {
	noLeaks(t)
	p, blocked := stuck(t, NodeOptions{})
	keep(t, p.s, KeeperOptions{Interval: 5 * time.Millisecond, Dead: 50 * time.Millisecond})
	receive(t, p.s.Done(), "end of the session")
	wantError(t, p.s.Err(), ErrSilent)
	wantError(t, receive(t, blocked, "end of Write"), ErrSilent)
}

func TestIdlePeerIsKeptByItsPongs(t *testing.T) {
	noLeaks(t)
	p := newBadPeer(t, NodeOptions{})
	go io.Copy(io.Discard, p)
	p.s.l.rtt.Store(0)
	keep(t, p.s, KeeperOptions{Interval: 2 * time.Millisecond, Dead: testTimeout})
	for range 5 {
		last := p.s.l.ws.LastRead()
		eventually(t, "another pong", func() bool { return p.s.l.ws.LastRead().After(last) })
	}
	eventually(t, "round-trip time from a pong", func() bool { return p.s.RTT() > 0 })
	if err := p.s.Err(); err != nil {
		t.Fatal(err)
	}
}

func TestAgentFindsASilentNode(t *testing.T) {
	noLeaks(t)
	n := newNode(t, NodeOptions{})
	a := n.dial(t, DialOptions{Heartbeat: 5 * time.Millisecond, Dead: 300 * time.Millisecond})
	s := n.session(t)
	eventually(t, "a pong", func() bool { return a.l.pinged.Load() > 0 || a.Err() != nil }) // it may have been found too early
	s.l.mu.Lock()
	s.l.ws.SetReadDeadline(time.Unix(1, 0)) // the reader now waits for the lock, and answers no ping
	receive(t, a.Done(), "end of the session")
	s.l.mu.Unlock()
	wantError(t, a.Err(), ErrSilent)
	receive(t, a.Draining(), "end of Draining")
}

func TestWriteThatTakesTooLongEndsTheSession(t *testing.T) {
	noLeaks(t)
	p, blocked := stuck(t, NodeOptions{WriteTimeout: 50 * time.Millisecond})
	wantError(t, receive(t, blocked, "end of Write"), ErrSessionClosed)
	receive(t, p.s.Done(), "end of the session")
}

// Who sends what he has written waits for no room, but for the socket.
func TestLoneWriteThatTakesTooLongEndsTheSession(t *testing.T) {
	noLeaks(t)
	begun := make(chan struct{})
	close(begun)
	p := newBadPeer(t, NodeOptions{WriteTimeout: 50 * time.Millisecond})
	wantError(t, receive(t, pour(t, p, begun), "end of Write"), errStuck)
	receive(t, p.s.Done(), "end of the session")
}

func TestEndOfTheSessionIsNotTheEndOfTheStream(t *testing.T) {
	for name, end := range map[string]func(*badPeer){
		"FIN of TCP":  func(p *badPeer) { p.Conn.(*net.TCPConn).CloseWrite() },
		"Close frame": func(p *badPeer) { p.message(0x88, []byte{3, 0xe8}) },
		"RST of TCP": func(p *badPeer) {
			p.Conn.(*net.TCPConn).SetLinger(0)
			p.Conn.Close()
		},
		"GoAway 1": func(p *badPeer) {
			h := makeFrame(kindGoAway, 0, 0, 1)
			p.Write(h[:])
		},
		"CloseNow": func(p *badPeer) { p.s.CloseNow(nil) },
	} {
		t.Run(name, func(t *testing.T) {
			noLeaks(t)
			p := newBadPeer(t, NodeOptions{})
			st, id := p.open(t)
			p.send(t, makeFrame(kindData, 0, id, 4), []byte("half"))
			got := make([]byte, 8)
			if n, err := io.ReadFull(st, got[:4]); err != nil {
				t.Fatalf("%d bytes, %v", n, err)
			}
			end(p)
			n, err := st.Read(got)
			if n != 0 || errors.Is(err, io.EOF) || !errors.Is(err, ErrSessionClosed) {
				t.Errorf("read %d bytes, %v", n, err)
			}
			if _, err = st.Write(got); !errors.Is(err, ErrSessionClosed) {
				t.Errorf("write: %v", err)
			}
		})
	}
}

func TestEndOfTheStreamOutlivesTheSession(t *testing.T) {
	noLeaks(t)
	p := newBadPeer(t, NodeOptions{})
	st, id := p.open(t)
	p.send(t, makeFrame(kindData, flagFIN, id, 5), []byte("whole"))
	p.send(t, makeFrame(kindPing, flagSYN, 0, 1), nil)
	p.expect(t, kindPing) // what came before is handled when the next is read
	p.send(t, makeFrame(kindPing, flagSYN, 0, 1), nil)
	p.expect(t, kindPing)
	p.Conn.Close()
	receive(t, p.s.Done(), "end of the session")
	b, err := io.ReadAll(st)
	if err != nil || string(b) != "whole" {
		t.Fatalf("have %q, %v", b, err)
	}
}

func TestResetFreesBothEndsAtOnce(t *testing.T) {
	for _, who := range []string{"opener", "acceptor"} {
		t.Run(who, func(t *testing.T) {
			noLeaks(t)
			s, a := pair(t)
			near, far := connect(t, s, a)
			other, otherFar := connect(t, s, a)
			near.Write([]byte("unread"))
			failed := make(chan error, 2)
			for _, st := range []*Stream{near, far} {
				go func() {
					b := make([]byte, 10)
					for {
						if _, err := st.Read(b); err != nil {
							failed <- err
							return
						}
					}
				}()
			}
			if who == "opener" {
				near.Reset()
			} else {
				far.Reset()
			}
			wantError(t, receive(t, failed, "end of Read"), ErrReset)
			wantError(t, receive(t, failed, "end of Read"), ErrReset)
			eventually(t, "stream forgotten", func() bool {
				return s.Streams() == 1 && a.Streams() == 1
			})
			_, err := near.Write([]byte("x"))
			wantError(t, err, ErrReset)
			exchangeOneWay(t, other, otherFar, "not affected")
			exchangeOneWay(t, otherFar, other, "not affected")
		})
	}
}

func TestResetInTheMiddleOfAFrame(t *testing.T) {
	noLeaks(t)
	p := newBadPeer(t, NodeOptions{})
	go func() {
		st, err := p.s.Open(t.Context(), Header{})
		if err == nil {
			io.Copy(struct{ io.Writer }{st}, struct{ io.Reader }{st})
		}
	}()
	syn, _ := p.expect(t, kindWindow)
	p.send(t, makeFrame(kindWindow, flagACK, syn.stream(), 0), nil)
	st, id := p.open(t)
	h := makeFrame(kindData, 0, id, 100<<10)
	p.send(t, h, make([]byte, 50<<10))
	p.Write([]byte{0})
	st.Reset()
	p.Write(make([]byte, 50<<10-1))
	p.send(t, makeFrame(kindData, 0, syn.stream(), 5), []byte("other"))
	if _, body := p.expect(t, kindData); string(body) != "other" {
		t.Errorf("other stream echoed %q", body)
	}
	eventually(t, "stream forgotten", func() bool { return p.s.Streams() == 1 })
}

func TestCloseDeliversWhatWasWritten(t *testing.T) {
	noLeaks(t)
	s, a := pair(t)
	near, far := connect(t, s, a)
	go func() {
		near.Write(make([]byte, 1<<20))
		near.Close()
	}()
	if n, err := io.Copy(io.Discard, far); n != 1<<20 || err != nil {
		t.Fatalf("%d bytes, %v", n, err)
	}
	far.Close()
	eventually(t, "streams forgotten", func() bool { return s.Streams() == 0 && a.Streams() == 0 })
}

func TestClosedStreamIsResetWhenTheFarEndStaysOpen(t *testing.T) {
	noLeaks(t)
	n := newNode(t, NodeOptions{CloseWait: 20 * time.Millisecond})
	a := n.dial(t, DialOptions{})
	s := n.session(t)
	near, far := connect(t, s, a)
	near.Close()
	if _, err := io.ReadAll(far); err != nil && !errors.Is(err, ErrReset) {
		t.Fatal(err)
	}
	eventually(t, "far end reset", func() bool {
		_, err := far.Write([]byte("more"))
		return errors.Is(err, ErrReset)
	})
	eventually(t, "streams forgotten", func() bool { return s.Streams() == 0 && a.Streams() == 0 })
}

func TestStreamThatNobodyReadsSlowsNoOther(t *testing.T) {
	noLeaks(t)
	s, a := pair(t)
	slow, _ := connect(t, s, a)
	go echo(a)
	fast, err := s.Open(timeout(t), Header{Endpoint: "e"})
	if err != nil {
		t.Fatal(err)
	}
	blocked := make(chan error, 1)
	go func() {
		_, err := slow.Write(make([]byte, 64<<20)) // more than any window
		blocked <- err
	}()
	for range 1000 {
		exchange(t, fast, "quick")
	}
	if len(blocked) > 0 {
		t.Fatalf("the slow stream is not slow: %v", <-blocked)
	}
	slow.Reset()
	wantError(t, receive(t, blocked, "end of Write"), ErrReset)
}

func TestIdleTellsWhatIsWrongWithAStream(t *testing.T) {
	noLeaks(t)
	s, a := pair(t)
	near, far := connect(t, s, a)
	if !near.Idle() {
		t.Error("fresh stream is not idle")
	}
	far.Write([]byte("unasked"))
	eventually(t, "bytes noticed", func() bool { return !near.Idle() })
	io.ReadFull(near, make([]byte, 7))
	if !near.Idle() {
		t.Error("not idle after everything was read")
	}
	far.CloseWrite()
	eventually(t, "end noticed", func() bool { return !near.Idle() })
}

func TestIdleSessionRunsNothingOfItsOwn(t *testing.T) {
	noLeaks(t)
	n := newNode(t, NodeOptions{})
	const count = 50
	before := runtime.NumGoroutine()
	for range count {
		dialRaw(t, n.URL, PathClassic+"/e", "").answerPing(t)
		n.session(t)
	}
	eventually(t, "one goroutine a session", func() bool { return runtime.NumGoroutine() <= before+count })
}

func TestEndOfTheSessionSendsWhatWasWritten(t *testing.T) {
	noLeaks(t)
	n := newNode(t, NodeOptions{})
	raw := rawNative(t, n)
	s := n.session(t)
	opened := make(chan *Stream, 1)
	go func() {
		st, err := s.Open(t.Context(), Header{Endpoint: "e"})
		if err != nil {
			t.Error(err)
		}
		opened <- st
	}()
	header, _ := raw.expect(t, kindData)
	for header.stream() == controlStream {
		header, _ = raw.expect(t, kindData)
	}
	raw.send(t, makeFrame(kindData, flagACK, header.stream(), 2), []byte{0, 0})
	raw.send(t, makeFrame(kindWindow, 0, header.stream(), 1<<30), nil)
	st := receive(t, opened, "stream")
	if st == nil {
		return
	}
	ended := make(chan error, 1)
	go func() {
		var err error
		for err == nil { // until the agent, which does not read, has filled all buffers
			_, err = st.Write(make([]byte, maxFrame))
		}
		ended <- err
	}()
	var flushes uint64
	var since time.Time
	full := func() int64 {
		s.l.mu.Lock()
		defer s.l.mu.Unlock()
		if !s.l.writing || s.l.flushes != flushes {
			flushes, since = s.l.flushes, time.Now()
		}
		if time.Since(since) < 50*time.Millisecond {
			return 0
		}
		return initialWindow + 1<<30 - st.send - int64(header.length())
	}
	eventually(t, "socket full", func() bool { return full() > 0 })
	want := full()
	go s.l.Close()
	eventually(t, "closing", func() bool { return running("(*link).awaitFlusher") || s.Err() != nil })
	have := int64(0)
	for {
		h, body, err := raw.frame()
		if err != nil {
			if !errors.Is(err, errCloseFrame) {
				t.Errorf("ended with %v", err)
			}
			break
		}
		if h.kind() == kindData {
			have += int64(len(body))
		}
	}
	if have < want {
		t.Errorf("%d of %d bytes arrived", have, want)
	}
	wantError(t, receive(t, ended, "end of Write"), ErrSessionClosed)
}

func TestAgentThatLeavesRefusesNewStreams(t *testing.T) {
	noLeaks(t)
	s, a := pair(t)
	near, far := connect(t, s, a)
	done := make(chan error, 1)
	go func() { done <- a.Shutdown(t.Context()) }()
	receive(t, a.Closing(), "end of Closing")
	_, err := s.Open(timeout(t), Header{Endpoint: "e"})
	wantRefused(t, err, CodeDraining)
	exchangeOneWay(t, near, far, "still served")
	near.Close()
	far.Close()
	if err := receive(t, done, "end of Shutdown"); err != nil {
		t.Error(err)
	}
}

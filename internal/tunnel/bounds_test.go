package tunnel

import (
	"io"
	"strings"
	"testing"
	"time"
)

// acknowledged opens a stream of an offline link, which the peer acknowledges.
func acknowledged(t *testing.T, l *link) *Stream {
	t.Helper()
	st := opened(t, l)
	mustGive(t, l, makeFrame(kindWindow, flagACK, st.id, 0))
	return st
}

func mustGive(t *testing.T, l *link, list ...[frameSize]byte) {
	t.Helper()
	if abuse := l.give(frames(list...)); abuse != nil {
		t.Fatal(abuse)
	}
}

// count is how many bytes a link and a stream count as unread.
func count(st *Stream) (held, unread int64) {
	st.l.mu.Lock()
	defer st.l.mu.Unlock()
	return st.l.held, st.unread
}

// reading begins a Read, and returns once it waits.
func reading(t *testing.T, st *Stream) <-chan error {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		_, err := st.Read(make([]byte, 100))
		done <- err
	}()
	eventually(t, "Read waits", func() bool {
		st.l.mu.Lock()
		defer st.l.mu.Unlock()
		return st.dst != nil
	})
	return done
}

func TestBytesAreCountedOnceWhenAStreamEndsUnderARead(t *testing.T) {
	for name, end := range map[string]func(*Stream) error{"Close": (*Stream).Close, "Reset": (*Stream).Reset} {
		t.Run(name, func(t *testing.T) {
			st := acknowledged(t, offline(role{}))
			read := reading(t, st)
			mustGive(t, st.l, makeFrame(kindData, 0, st.id, 60)) // does not wake it
			end(st)
			if err := receive(t, read, "end of Read"); err == nil {
				t.Error("Read returned bytes of a stream that had ended here")
			}
			if held, unread := count(st); held != 0 || unread != 0 {
				t.Errorf("%d bytes held, %d unread on the stream", held, unread)
			}
		})
	}
}

func TestEndThatComesWithDataEndsAClosedStream(t *testing.T) {
	st := acknowledged(t, offline(role{}))
	st.Close()
	mustGive(t, st.l, makeFrame(kindData, flagFIN, st.id, 30))
	if n := st.l.number(); n != 0 {
		t.Errorf("%d streams are left", n)
	}
}

func TestControlStreamIsOpenedOnce(t *testing.T) {
	l := offline(role{native: true})
	syn, rst := makeFrame(kindWindow, flagSYN, controlStream, 0), makeFrame(kindWindow, flagRST, controlStream, 0)
	mustGive(t, l, syn, rst)
	if abuse := l.give(syn[:]); abuse == nil || abuse.Reason != AbuseProtocol {
		t.Errorf("opened again: %v", abuse)
	}
}

func TestControlStreamOpenedAgainLeavesNothingBehind(t *testing.T) {
	noLeaks(t)
	n := newNode(t, NodeOptions{})
	raw := dialRaw(t, n.URL, PathTunnel, Subprotocol)
	syn, rst := makeFrame(kindWindow, flagSYN, controlStream, 0), makeFrame(kindWindow, flagRST, controlStream, 0)
	raw.answerPing(t)
	// An error says that the node has had enough.
	_, _ = raw.Write(frames(syn, rst, syn, rst, syn, rst, syn))
	if got := receive(t, n.abuses, "abuse"); got != AbuseProtocol {
		t.Errorf("abuse %s", got)
	}
}

// fill has the peer send n bytes on a stream.
func fill(t *testing.T, st *Stream, n int) {
	t.Helper()
	mustGive(t, st.l, makeFrame(kindData, 0, st.id, uint32(n)))
}

func TestStreamThatHoldsMostIsResetForWantOfMemory(t *testing.T) {
	l := offline(role{})
	l.window = largestWindow
	hogs := []*Stream{acknowledged(t, l), acknowledged(t, l), acknowledged(t, l), acknowledged(t, l)}
	small := acknowledged(t, l)
	drained(t, l)
	fill(t, small, 1000)
	for i, st := range hogs {
		fill(t, st, largestWindow-1000*(i+1))
	}
	worst := hogs[0]
	mustGive(t, l, makeFrame(kindWindow, flagFIN, worst.id, 0)) // must not make what is lost look like all
	fill(t, small, 100_000)
	if held, unread := count(small); held > maxHeld || unread != 101_000 {
		t.Errorf("%d bytes held, %d by the stream that holds little", held, unread)
	}
	if n, err := io.ReadFull(small, make([]byte, 101_000)); err != nil {
		t.Errorf("stream that holds little: %d bytes and %v", n, err)
	}
	_, err := worst.Read(make([]byte, 1))
	wantError(t, err, ErrUnread)
	wantError(t, err, ErrReset)
	_, err = worst.Write(make([]byte, 1))
	wantError(t, err, ErrUnread)
	for _, st := range hogs[1:] {
		if _, err := st.Read(make([]byte, 1)); err != nil {
			t.Errorf("stream that holds less: %v", err)
		}
	}
	resets := 0
	for _, h := range drained(t, l) {
		if h.flags()&flagRST != 0 {
			if resets++; h.stream() != worst.id {
				t.Errorf("stream %d is reset", h.stream())
			}
		}
	}
	if resets != 1 || l.closed || l.broken {
		t.Errorf("%d resets, session ended: %v", resets, l.ended())
	}
}

func TestStreamThatHasEndedIsLostForWantOfMemory(t *testing.T) {
	l := offline(role{})
	l.window = largestWindow
	var list []*Stream
	for range 5 {
		list = append(list, acknowledged(t, l))
	}
	for i, st := range list[:4] {
		fill(t, st, largestWindow-1000*i)
		mustGive(t, l, makeFrame(kindWindow, flagFIN, st.id, 0))
		st.CloseWrite()
	}
	fill(t, list[4], 10_000)
	if held, unread := count(list[4]); held > maxHeld || unread != 10_000 {
		t.Errorf("%d bytes held, %d by the stream that is open", held, unread)
	}
	_, err := list[0].Read(make([]byte, 1))
	wantError(t, err, ErrReset)
	if b, err := io.ReadAll(list[1]); len(b) != largestWindow-1000 || err != nil {
		t.Errorf("ended stream that holds less: %d bytes and %v", len(b), err)
	}
	list[2].Close()
	list[3].Reset()
	if l.finished != nil {
		t.Errorf("%d streams are kept that hold nothing", len(l.finished))
	}
}

func TestStreamThatWouldHoldMostIsResetForWantOfMemory(t *testing.T) {
	l := offline(role{})
	l.window = largestWindow
	var list []*Stream
	for range 5 {
		list = append(list, acknowledged(t, l))
	}
	for _, st := range list[:4] {
		fill(t, st, largestWindow-(64<<10))
	}
	last := list[4]
	read := reading(t, last)
	fill(t, last, largestWindow)
	wantError(t, receive(t, read, "end of Read"), ErrReset)
	if held, unread := count(last); held != 4*(largestWindow-64<<10) || unread != 0 {
		t.Errorf("%d bytes held, %d by the stream", held, unread)
	}
}

func TestControlStreamIsNeverResetForWantOfMemory(t *testing.T) {
	l := offline(role{native: true})
	mustGive(t, l, makeFrame(kindWindow, flagSYN, controlStream, 0))
	l.held = maxHeld // by streams that have ended and are not read
	fill(t, l.control, 1000)
	if n, err := l.control.Read(make([]byte, 2000)); n != 1000 || err != nil {
		t.Errorf("%d bytes and %v", n, err)
	}
}

func TestDeadlinesDoNotDependOnTheWallClock(t *testing.T) {
	st := opened(t, offline(role{}))
	st.SetDeadline(time.Now().Add(time.Hour).Round(0)) // has no monotonic reading
	for _, d := range []deadline{st.rlimit, st.wlimit} {
		if !strings.Contains(d.at.String(), " m=") {
			t.Errorf("deadline %v follows the wall clock", d.at)
		}
	}
	st.Close()
}

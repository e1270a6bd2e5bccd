package tunnel

import (
	"bytes"
	"slices"
	"testing"
	"time"
)

// drained is what the next message would carry.
func drained(t *testing.T, l *link) []frame {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	b, p := l.takeBatchLocked()
	defer b.recycle()
	var list []frame
	for p = p[batchFront-urgentRoom:]; len(p) > 0; {
		h := slices.Clone(frame(p[:frameSize]))
		p = p[frameSize:]
		if h.kind() == kindData {
			p = p[h.length():]
		}
		list = append(list, h)
	}
	return list
}

// opened opens a stream of an offline link.
func opened(t *testing.T, l *link) *Stream {
	t.Helper()
	l.syn <- struct{}{}
	l.mu.Lock()
	l.opening++
	l.mu.Unlock()
	st, err := l.begin(patience{ctx: t.Context()}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// Who waits for others to add their frames is not waited for when there are enough.
func TestEnoughFramesWaitForNobody(t *testing.T) {
	for name, test := range map[string]struct {
		streams, frames int
	}{
		"enough":       {1, enough},
		"many streams": {10 * enoughOf, 10},
	} {
		l := offline(role{})
		st := opened(t, l)
		drained(t, l)
		l.mu.Lock()
		l.nstreams = test.streams
		l.sending = false
		write := func() duty {
			st.dataLocked([]byte("x"))
			return l.kickLocked(true)
		}
		first := write()
		if first.turn == 0 || !first.wait {
			t.Errorf("%s: who writes first has the duty %+v: want one that waits", name, first)
		}
		var last duty
		for i := 1; i < test.frames; i++ {
			if last.turn != 0 {
				t.Errorf("%s: frame %d of %d is not waited for", name, i, test.frames)
			}
			last = write()
		}
		if last.turn == 0 || last.wait {
			t.Errorf("%s: who writes last has the duty %+v: want one that waits for nobody", name, last)
		}
		if late := write(); late.turn != 0 {
			t.Errorf("%s: after that another has the duty %+v: want none", name, late)
		}
		flushes := l.flushes
		l.mu.Unlock()
		l.flushHere(first)
		if l.flushes != flushes {
			t.Errorf("%s: who had waited sent what had become another's duty", name)
		}
	}
}

// What is worth a write by its length is not made to wait, whatever was before it.
func TestALongFrameWaitsForNobody(t *testing.T) {
	for name, before := range map[string]int{"alone": 0, "behind a short one": 1} {
		l := offline(role{})
		st := opened(t, l)
		drained(t, l)
		l.mu.Lock()
		l.sending = false
		for range before {
			st.dataLocked([]byte("x"))
			if d := l.kickLocked(true); !d.wait {
				t.Errorf("%s: who writes first has the duty %+v: want one that waits", name, d)
			}
		}
		st.dataLocked(make([]byte, maxFrame))
		if d := l.kickLocked(true); d.turn == 0 || d.wait {
			t.Errorf("%s: the duty is %+v: want one that waits for nobody", name, d)
		}
		l.mu.Unlock()
	}
}

func TestUrgentFramesGoFirst(t *testing.T) {
	l := offline(role{})
	st := opened(t, l)
	st.Write([]byte("hello"))
	l.mu.Lock()
	st.recv -= 200 << 10
	l.creditLocked(st)
	l.mu.Unlock()
	ping := makeFrame(kindPing, flagSYN, 0, 77)
	if abuse := l.give(ping[:]); abuse != nil {
		t.Fatal(abuse)
	}
	want := []frame{
		frame(frames(makeFrame(kindWindow, 0, 2, 200<<10))), frame(frames(makeFrame(kindPing, flagACK, 0, 77))),
		frame(frames(makeFrame(kindWindow, flagSYN, 2, 0))), frames(makeFrame(kindData, 0, 2, 5))[:frameSize],
	}
	if have := drained(t, l); !slices.EqualFunc(have, want, func(a, b frame) bool { return bytes.Equal(a, b) }) {
		t.Errorf("sent %v, want %v", have, want)
	}
}

func TestSessionIsOnlyStuckWhenNothingIsSent(t *testing.T) {
	noLeaks(t)
	p := newBadPeer(t, NodeOptions{WriteTimeout: time.Hour})
	l := p.s.l
	wait := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.awaitRoomLocked()
	}
	wait()
	l.mu.Lock()
	l.flushes++
	l.roomLocked()
	l.mu.Unlock()
	wait() // for the next batch, as a writer of much always does
	l.checkStuck()
	if l.ended() {
		t.Fatal("a session that sends is taken for stuck")
	}
	l.checkStuck()
	wantError(t, l.reason(), errStuck)
	p.s.Wait()
}

// fillBatch makes the batch of an offline link as full as it gets.
func fillBatch(t *testing.T, l *link) {
	t.Helper()
	st := acknowledged(t, l)
	for {
		l.mu.Lock()
		n := min(maxBatch-2*frameSize-(len(l.batch.b)-batchFront), maxSmall)
		st.send = maxFrame
		l.mu.Unlock()
		if n <= 0 {
			return
		}
		if _, err := st.Write(make([]byte, n)); err != nil {
			t.Fatal(err)
		}
	}
}

// However much others have to send, what is small goes with the next message.
func TestSmallFramesNeedNotWaitForRoom(t *testing.T) {
	l := offline(role{})
	l.writeTimeout = time.Hour
	bulk, small := acknowledged(t, l), acknowledged(t, l)
	drained(t, l)
	bulk.send = 1 << 20
	done := make(chan error, 1)
	go func() {
		_, err := bulk.Write(make([]byte, 1<<20))
		done <- err
	}()
	eventually(t, "Write waits for room", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.room != nil
	})
	if n, err := small.Write(make([]byte, maxSmall)); n != maxSmall || err != nil {
		t.Fatal(n, err)
	}
	have := drained(t, l)
	if h := have[len(have)-1]; h.stream() != small.id || h.length() != maxSmall {
		t.Errorf("the last frame is of stream %d and has %d bytes", h.stream(), h.length())
	}
	bulk.Reset()
	wantError(t, receive(t, done, "end of Write"), ErrReset)
}

func TestPingIsAnsweredBesideMuchElse(t *testing.T) {
	l := offline(role{})
	fillBatch(t, l)
	mustGive(t, l, makeFrame(kindPing, flagSYN, 0, 77))
	have := drained(t, l)
	if first := have[0]; first.kind() != kindPing || first.flags() != flagACK || first.length() != 77 {
		t.Errorf("first frame is %v", first)
	}
}

func TestEndsOfManyStreamsWaitForTheSocket(t *testing.T) {
	const count = 30_000
	l := offline(role{})
	var list []*Stream
	for range count {
		st := acknowledged(t, l)
		if list = append(list, st); len(list)%10_000 == 0 {
			drained(t, l)
		}
	}
	drained(t, l)
	fillBatch(t, l)
	for _, st := range list {
		st.CloseWrite()
		st.Reset()
	}
	if l.broken {
		t.Fatal("session ended")
	}
	next, want := list[0].id, uint16(flagFIN)
	for messages := 0; next <= list[count-1].id; messages++ {
		l.mu.Lock()
		waits, size := l.fullLocked(1), 0
		if l.batch != nil {
			size = len(l.batch.b) - batchFront
		}
		l.mu.Unlock()
		if size > 256<<10 || messages > 10 {
			t.Fatalf("message %d of %d bytes", messages, size)
		}
		for _, h := range drained(t, l) {
			if h.kind() != kindWindow || h.flags() == flagSYN {
				continue
			}
			if h.stream() != next || h.flags() != want {
				t.Fatalf("frame %v, want flags %#x of stream %d", h, want, next)
			}
			if want == flagRST {
				next += 2
			}
			want ^= flagFIN | flagRST
		}
		if !waits && l.late != nil {
			t.Error("data does not wait behind the frames that came before it")
		}
	}
	if l.late != nil || l.batch != nil {
		t.Error("something is left")
	}
}

func TestFramesThatNobodyTakesEndTheSession(t *testing.T) {
	noLeaks(t)
	p, blocked := stuck(t, NodeOptions{})
	l, rst := p.s.l, makeFrame(kindWindow, flagRST, 2000, 0)
	var unsent unsent
	for !l.ended() {
		l.mu.Lock()
		l.queueLocked(rst[:])
		l.mu.Unlock()
		if n := unsent.add(l); n > (maxLate+largeBatch)/frameSize {
			t.Fatalf("%d frames wait for a peer that takes none", n)
		}
	}
	wantError(t, receive(t, blocked, "end of Write"), errUnread)
	p.s.Wait()
}

// unsent counts frames since the socket has taken something: when a machine stands still, it looks full before it is.
type unsent struct {
	n       int
	flushes uint64
}

func (u *unsent) add(l *link) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if u.n++; l.flushes != u.flushes {
		u.n, u.flushes = 0, l.flushes
	}
	return u.n
}

func TestPongsThatNobodyTakesAreBounded(t *testing.T) {
	noLeaks(t)
	p, blocked := stuck(t, NodeOptions{})
	l, answered := p.s.l, 0
	var unsent unsent
	for !l.ended() {
		l.mu.Lock()
		l.pings = meter{} // as if they came slowly
		l.mu.Unlock()
		ping := makeFrame(kindPing, flagSYN, 0, uint32(answered))
		if abuse := l.give(ping[:]); abuse != nil {
			t.Fatal(abuse)
		}
		answered++
		if n := unsent.add(l); n > (maxLate+largeBatch)/frameSize {
			t.Fatalf("%d answers wait for a peer that takes none", n)
		}
	}
	if answered < maxLate/frameSize {
		t.Errorf("the session ended after %d pings", answered)
	}
	wantError(t, receive(t, blocked, "end of Write"), errUnread)
	p.s.Wait()
}

func TestWriteAllocatesNothing(t *testing.T) {
	l := offline(role{})
	st := opened(t, l)
	drained(t, l)
	body := make([]byte, 500)
	allocs := testing.AllocsPerRun(1000, func() {
		st.send = initialWindow
		st.Write(body)
		l.mu.Lock()
		b, _ := l.takeBatchLocked()
		b.recycle()
		l.mu.Unlock()
	})
	if allocs > 0 {
		t.Errorf("%v allocations for a frame", allocs)
	}
}

func TestReadAllocatesNothing(t *testing.T) {
	l := offline(role{})
	st := opened(t, l)
	chunk := frames(makeFrame(kindData, 0, 2, 500), makeFrame(kindWindow, 0, 2, 1))
	p := make([]byte, 500)
	allocs := testing.AllocsPerRun(1000, func() {
		st.send = initialWindow
		if abuse := l.give(chunk); abuse != nil {
			t.Error(abuse)
		}
		if n, err := st.Read(p); n != len(p) || err != nil {
			t.Error(n, err)
		}
		l.mu.Lock()
		if l.nurgent > 0 {
			b, _ := l.takeBatchLocked()
			b.recycle()
		}
		l.mu.Unlock()
	})
	if allocs > 0 {
		t.Errorf("%v allocations for two frames", allocs)
	}
}

func TestFramesOfStreamsThatAreGoneAreNotSent(t *testing.T) {
	l := offline(role{})
	streams := []*Stream{opened(t, l), opened(t, l), opened(t, l)}
	drained(t, l)
	rst := makeFrame(kindWindow, flagRST, 2, 0)
	l.give(rst[:])
	streams[1].Reset()
	for _, st := range streams {
		st.Write([]byte("xyz"))
		st.CloseWrite()
	}
	want := []string{"kind 1 flags 0x8 stream 4 length 0", "kind 0 flags 0x0 stream 6 length 3", "kind 1 flags 0x4 stream 6 length 0"}
	var have []string
	for _, h := range drained(t, l) {
		have = append(have, h.String())
	}
	if !slices.Equal(have, want) {
		t.Errorf("sent %q, want %q", have, want)
	}
}

func TestNothingIsSentAfterTheFarewell(t *testing.T) {
	l := offline(role{native: true})
	st := opened(t, l)
	drained(t, l)
	l.muted = true
	if n, err := st.Write([]byte("xyz")); n != 3 || err != nil {
		t.Errorf("wrote %d bytes, %v", n, err)
	}
	ping := makeFrame(kindPing, flagSYN, 0, 1)
	l.give(ping[:])
	if l.batch != nil || l.nurgent != 0 {
		t.Error("something waits to be sent")
	}
}

func TestQueueGivesBackWhatWentIn(t *testing.T) {
	var q queue
	var want, have []byte
	p := make([]byte, 3000)
	for i := range 500 {
		part := bytes.Repeat([]byte{byte(i)}, i*i%(40<<10))
		q.add(part)
		want = append(want, part...)
		if i%3 != 0 {
			n := q.take(p)
			have = append(have, p[:n]...)
		}
		if q.size != len(want)-len(have) {
			t.Fatalf("size %d, want %d", q.size, len(want)-len(have))
		}
	}
	for q.size > 0 {
		n := q.take(p)
		have = append(have, p[:n]...)
	}
	if !bytes.Equal(have, want) {
		t.Error("bytes differ")
	}
	if q.head != nil || q.tail != nil {
		t.Error("an empty queue holds a chunk")
	}
}

package tunnel

import (
	"bytes"
	"slices"
	"testing"
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

func TestPongsThatNobodyTakesAreBounded(t *testing.T) {
	l := offline(role{})
	for i := range uint32(90) {
		ping := makeFrame(kindPing, flagSYN, 0, i)
		if abuse := l.give(ping[:]); abuse != nil {
			t.Fatal(abuse)
		}
	}
	if have := drained(t, l); len(have) != 90 {
		t.Errorf("%d answers to 90 pings", len(have))
	}
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

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
	b, p := l.takeLocked()
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

func TestUrgentFramesGoFirstAndWholeFramesOnly(t *testing.T) {
	l := offline(role{})
	write := func(h [frameSize]byte, body []byte) {
		t.Helper()
		if _, err := l.Write(h[:]); err != nil {
			t.Fatal(err)
		}
		if body != nil {
			if _, err := l.Write(body); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(makeFrame(kindWindow, flagSYN, 2, 9), nil)
	write(makeFrame(kindData, 0, 2, 5), []byte("hello"))
	write(makeFrame(kindWindow, 0, 2, 100), nil)
	ping := makeFrame(kindPing, flagSYN, 0, 77)
	if _, abuse := l.give(ping[:]); abuse != nil {
		t.Fatal(abuse)
	}
	h := makeFrame(kindData, flagFIN, 2, 20<<10) // whose body is not written yet
	l.Write(h[:])
	want := []frame{
		frame(slices.Clone(frames(makeFrame(kindWindow, 0, 2, 100)))), frame(frames(makeFrame(kindPing, flagACK, 0, 77))),
		frame(frames(makeFrame(kindWindow, flagSYN, 2, 9))), frames(makeFrame(kindData, 0, 2, 5))[:frameSize],
	}
	if have := drained(t, l); !slices.EqualFunc(have, want, func(a, b frame) bool { return bytes.Equal(a, b) }) {
		t.Errorf("sent %v, want %v", have, want)
	}
	l.Write(make([]byte, 20<<10))
	if have := drained(t, l); len(have) != 1 || have[0].length() != 20<<10 {
		t.Errorf("sent %v", have)
	}
}

func TestPongsThatNobodyTakesAreBounded(t *testing.T) {
	l := offline(role{})
	for i := range uint32(90) {
		ping := makeFrame(kindPing, flagSYN, 0, i)
		if _, abuse := l.give(ping[:]); abuse != nil {
			t.Fatal(abuse)
		}
	}
	if have := drained(t, l); len(have) != 90 {
		t.Errorf("%d answers to 90 pings", len(have))
	}
}

func TestWriteTakesOnlyWhatYamuxWrites(t *testing.T) {
	l := offline(role{})
	if _, err := l.Write(make([]byte, 5)); err == nil {
		t.Error("half a header was taken")
	}
	h := makeFrame(kindData, 0, 2, 5)
	l.Write(h[:])
	if _, err := l.Write(make([]byte, 6)); err == nil {
		t.Error("another body than announced was taken")
	}
}

func TestWriteAllocatesNothing(t *testing.T) {
	l := offline(role{})
	syn := makeFrame(kindWindow, flagSYN, 2, 0)
	l.Write(syn[:])
	h, body := makeFrame(kindData, 0, 2, 500), make([]byte, 500)
	allocs := testing.AllocsPerRun(1000, func() {
		l.Write(h[:])
		l.Write(body)
		l.mu.Lock()
		b, _ := l.takeLocked()
		l.keepLocked(b)
		l.mu.Unlock()
	})
	if allocs > 0 {
		t.Errorf("%v allocations for a frame", allocs)
	}
}

func TestGuardAllocatesNothing(t *testing.T) {
	l := offline(role{})
	syn := makeFrame(kindWindow, flagSYN, 2, 1<<30)
	l.Write(syn[:])
	chunk := frames(makeFrame(kindData, 0, 2, 500), makeFrame(kindWindow, 0, 2, 1))
	p := make([]byte, len(chunk))
	allocs := testing.AllocsPerRun(1000, func() {
		copy(p, chunk)
		l.mu.Lock()
		n, abuse := l.filterLocked(p)
		l.mu.Unlock()
		if n != len(p) || abuse != nil {
			t.Error(n, abuse)
		}
	})
	if allocs > 0 {
		t.Errorf("%v allocations for two frames", allocs)
	}
}

func TestFramesOfStreamsThatAreGoneAreNotSent(t *testing.T) {
	l := offline(role{})
	for _, h := range [][frameSize]byte{
		makeFrame(kindWindow, flagSYN, 2, 0), makeFrame(kindWindow, flagSYN, 4, 0), makeFrame(kindWindow, flagSYN, 6, 0),
	} {
		l.Write(h[:])
	}
	drained(t, l)
	rst := makeFrame(kindWindow, flagRST, 2, 0)
	l.give(rst[:])
	l.reset(l.flow(4))
	for _, id := range []uint32{2, 4, 6} {
		h := makeFrame(kindData, 0, id, 3)
		l.Write(h[:])
		l.Write([]byte("xyz"))
		h = makeFrame(kindWindow, 0, id, 9)
		l.Write(h[:])
	}
	want := []string{"kind 1 flags 0x0 stream 6 length 9", "kind 1 flags 0x8 stream 4 length 0", "kind 0 flags 0x0 stream 6 length 3"}
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
	l.muted = true
	syn := makeFrame(kindWindow, flagSYN, 2, 0)
	if _, err := l.Write(syn[:]); err != nil {
		t.Errorf("yamux is told of %v, and would end the session before the peer does", err)
	}
	ping := makeFrame(kindPing, flagSYN, 0, 1)
	l.give(ping[:])
	if l.batch != nil || l.nurgent != 0 {
		t.Error("something waits to be sent")
	}
}

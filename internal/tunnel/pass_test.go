package tunnel

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// sluggish is a writer that takes a part of what it is offered, and the rest when it is given time.
type sluggish struct {
	mu      sync.Mutex
	got     bytes.Buffer
	share   float64 // of offers, how many are taken whole
	offered int     // bytes taken by TryWrite
	inside  bool    // a call runs
	t       *testing.T
}

func (w *sluggish) enter() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.inside {
		w.t.Error("written to by two at once")
	}
	w.inside = true
}

func (w *sluggish) leave(p []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.inside = false
	w.got.Write(p)
}

func (w *sluggish) Write(p []byte) (int, error) {
	w.enter()
	defer w.leave(p)
	return len(p), nil
}

func (w *sluggish) TryWrite(p []byte) int {
	w.enter()
	n := len(p)
	if rand.Float64() >= w.share {
		n = rand.IntN(n + 1)
	}
	w.offered += n
	w.leave(p[:n])
	return n
}

// One stream is given what comes directly, of many each is woken, and a few change between both.
func TestWriteToCarriesEverythingInOrder(t *testing.T) {
	for _, streams := range []int{1, 2, 32} {
		t.Run(strconv.Itoa(streams), func(t *testing.T) { carryInOrder(t, streams) })
	}
}

func carryInOrder(t *testing.T, streams int) {
	noLeaks(t)
	s, a := pair(t)
	var all sync.WaitGroup
	defer all.Wait()
	for i := range streams {
		near, far := connect(t, s, a)
		to := &sluggish{share: float64(i%3) / 2, t: t}
		sent := sha256.New()
		all.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 1))
			for range 200 {
				b := make([]byte, 1+r.IntN(1<<r.IntN(15)))
				sent.Write(b)
				if _, err := far.Write(b); err != nil {
					t.Error(err)
				}
			}
			far.CloseWrite()
		})
		all.Go(func() {
			n, err := near.WriteTo(to)
			if err != nil || n != int64(to.got.Len()) {
				t.Errorf("carried %d bytes, %v; %d arrived", n, err, to.got.Len())
			}
			have := sha256.Sum256(to.got.Bytes())
			if !bytes.Equal(have[:], sent.Sum(nil)) {
				t.Error("other bytes have arrived")
			}
			near.Close()
			far.Close()
		})
	}
}

func TestBusyStreamsAreNotServedDirectly(t *testing.T) {
	l := offline(role{})
	first, second := opened(t, l), opened(t, l)
	served := 0
	for _, s := range []*Stream{first, second} {
		s.sink = func(p []byte) int {
			served++
			return len(p)
		}
		if abuse := l.give(frames(makeFrame(kindWindow, flagACK, s.id, 0))); abuse != nil {
			t.Fatal(abuse)
		}
	}
	one, other := frames(makeFrame(kindData, 0, first.id, 10)), frames(makeFrame(kindData, 0, second.id, 10))
	for i, step := range []struct {
		chunk       []byte
		times, want int
	}{{one, 5, 5}, {other, 5, 5}, {slices.Concat(one, other), 1, 1}, {slices.Concat(other, one), 1, 0}, {one, mixedFor - 1, 0}, {other, 3, 3}} {
		served = 0
		for range step.times {
			if abuse := l.give(step.chunk); abuse != nil {
				t.Fatal(abuse)
			}
			l.pass()
			for _, s := range []*Stream{first, second} {
				if _, err := io.ReadFull(s, make([]byte, s.in.size)); err != nil {
					t.Fatal(err)
				}
			}
		}
		if served != step.want {
			t.Errorf("step %d: %d times served directly: want %d", i, served, step.want)
		}
	}
}

// However busy others are, large pieces are not worth a copy.
func TestLargePiecesAreServedDirectly(t *testing.T) {
	l := offline(role{})
	first, second := opened(t, l), opened(t, l)
	served := map[*Stream]int{}
	var chunk []byte
	for _, s := range []*Stream{first, second} {
		s.sink = func(p []byte) int {
			served[s] += len(p)
			return len(p)
		}
		if abuse := l.give(frames(makeFrame(kindWindow, flagACK, s.id, 0))); abuse != nil {
			t.Fatal(abuse)
		}
		chunk = append(chunk, frames(makeFrame(kindData, 0, s.id, directFrom))...)
	}
	for range 3 {
		if abuse := l.give(chunk); abuse != nil {
			t.Fatal(abuse)
		}
		l.pass()
	}
	if served[first] != 3*directFrom || served[second] != 3*directFrom || first.in.size+second.in.size > 0 {
		t.Errorf("served %v bytes directly: want all of both streams", served)
	}
}

// What the far end has cut into frames goes on in one piece.
func TestFramesOfOneReadAreServedTogether(t *testing.T) {
	l := offline(role{})
	first, second := opened(t, l), opened(t, l)
	served := map[*Stream][]string{}
	for _, s := range []*Stream{first, second} {
		s.sink = func(p []byte) int {
			served[s] = append(served[s], string(p))
			return len(p) - 1
		}
		if abuse := l.give(frames(makeFrame(kindWindow, flagACK, s.id, 0))); abuse != nil {
			t.Fatal(abuse)
		}
	}
	piece := func(s *Stream, c byte) []byte {
		h := makeFrame(kindData, 0, s.id, directFrom)
		return append(h[:], bytes.Repeat([]byte{c}, directFrom)...)
	}
	credit := makeFrame(kindWindow, 0, second.id, 1)
	chunk := slices.Concat(piece(first, 'a'), credit[:], piece(first, 'b'), piece(second, 'x'), piece(first, 'c'))
	if abuse := l.give(chunk); abuse != nil {
		t.Fatal(abuse)
	}
	l.pass()
	a, b, c, x := strings.Repeat("a", directFrom), strings.Repeat("b", directFrom), strings.Repeat("c", directFrom), strings.Repeat("x", directFrom)
	if have := served[first]; len(have) != 1 || have[0] != a+b {
		t.Errorf("the first was offered %d pieces, or others: want the two before those of another stream as one", len(have))
	}
	if have := served[second]; len(have) != 1 || have[0] != x {
		t.Errorf("the second was offered %d pieces, or others", len(have))
	}
	left := make([]byte, first.in.size)
	if _, err := io.ReadFull(first, left); err != nil || string(left) != "b"+c {
		t.Errorf("%d bytes are left, or others, %v: want what was not taken, and what came after that", len(left), err)
	}
}

func TestWriteToOffersWhatComes(t *testing.T) {
	s, a := pair(t)
	near, far := connect(t, s, a)
	to, done := &sluggish{share: 1, t: t}, make(chan error, 1)
	go func() {
		_, err := near.WriteTo(to)
		done <- err
	}()
	eventually(t, "WriteTo waits", func() bool {
		near.l.mu.Lock()
		defer near.l.mu.Unlock()
		return near.sink != nil
	})
	far.Write([]byte("hello"))
	far.CloseWrite()
	if err := receive(t, done, "end of WriteTo"); err != nil || to.offered != 5 {
		t.Errorf("%d bytes were offered, %v", to.offered, err)
	}
	near.l.mu.Lock()
	defer near.l.mu.Unlock()
	if near.unread != 0 || near.l.held != 0 {
		t.Errorf("%d bytes unread, %d held", near.unread, near.l.held)
	}
}

func TestWriteToEndsAsTheStreamDoes(t *testing.T) {
	for name, test := range map[string]struct {
		end  func(near, far *Stream)
		want error
	}{
		"far reset":  {func(_, far *Stream) { far.Reset() }, ErrReset},
		"near reset": {func(near, _ *Stream) { near.Reset() }, ErrReset},
		"near close": {func(near, _ *Stream) { near.Close() }, net.ErrClosed},
		"session":    {func(near, _ *Stream) { near.l.fail(errStuck) }, errStuck},
	} {
		t.Run(name, func(t *testing.T) {
			s, a := pair(t)
			near, far := connect(t, s, a)
			done := make(chan error, 1)
			go func() {
				_, err := near.WriteTo(&sluggish{t: t})
				done <- err
			}()
			far.Write([]byte("hello"))
			test.end(near, far)
			wantError(t, receive(t, done, "end of WriteTo"), test.want)
		})
	}
}

func TestWriteToHonoursTheDeadline(t *testing.T) {
	s, a := pair(t)
	near, _ := connect(t, s, a)
	near.SetReadDeadline(time.Now().Add(time.Millisecond))
	_, err := near.WriteTo(io.Discard)
	wantError(t, err, os.ErrDeadlineExceeded)
}

// What is dropped while it is on its way to a sink must not be counted twice.
func TestStreamIsResetWhileItIsGivenSomething(t *testing.T) {
	l := offline(role{})
	st := opened(t, l)
	st.sink = func(p []byte) int {
		st.Reset()
		return len(p) / 2
	}
	chunk := frames(makeFrame(kindData, flagACK, 2, 500), makeFrame(kindData, 0, 2, 300))
	if abuse := l.give(chunk); abuse != nil {
		t.Fatal(abuse)
	}
	l.pass()
	if st.unread != 0 || l.held != 0 || st.in.size != 0 || l.finished != nil {
		t.Errorf("%d unread, %d held, %d kept", st.unread, l.held, st.in.size)
	}
}

// The end must not overtake what is on its way to a sink.
func TestEndComesAfterWhatIsPassed(t *testing.T) {
	l := offline(role{})
	st := opened(t, l)
	got := 0
	st.sink = func(p []byte) int {
		if ready, err := st.readyLocked(); ready || !errors.Is(err, io.EOF) {
			t.Errorf("stream is ready %v, %v", ready, err)
		}
		got += len(p) - 1
		return len(p) - 1
	}
	if abuse := l.give(frames(makeFrame(kindData, flagACK|flagFIN, 2, 500))); abuse != nil {
		t.Fatal(abuse)
	}
	l.pass()
	if rest, err := io.ReadAll(st); err != nil || got+len(rest) != 500 || len(rest) != 1 {
		t.Errorf("%d bytes passed, %d left, %v", got, len(rest), err)
	}
}

func TestTryWriteTakesWhatTheWindowAllows(t *testing.T) {
	s, a := pair(t)
	near, far := connect(t, s, a)
	block, total := make([]byte, 100<<10), 0
	for {
		n := near.TryWrite(block)
		if total += n; n < len(block) {
			break
		}
	}
	if total == 0 || total > largestWindow {
		t.Fatalf("%d bytes were taken", total)
	}
	if _, err := io.ReadFull(far, make([]byte, total)); err != nil {
		t.Fatal(err)
	}
	near.Reset()
	if n := near.TryWrite(block); n != 0 {
		t.Errorf("%d bytes were taken after a reset", n)
	}
}

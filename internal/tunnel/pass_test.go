package tunnel

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
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

// Few streams are given what comes directly, of many some are woken, and what is not taken changes from one way to the other.
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

// The goroutine that reads hands on some small pieces itself, of however many streams, and all that are large.
func TestWhatIsServedDirectly(t *testing.T) {
	l := offline(role{})
	var streams []*Stream
	served := map[*Stream]int{}
	for range maxDirect + 2 {
		s := opened(t, l)
		s.sink = func(p []byte) int {
			served[s] += len(p)
			return len(p)
		}
		mustGive(t, l, makeFrame(kindWindow, flagACK, s.id, 0))
		streams = append(streams, s)
	}
	var chunk []byte
	for _, s := range streams[1:] {
		chunk = append(chunk, frames(makeFrame(kindData, 0, s.id, 10))...)
	}
	chunk = append(chunk, frames(makeFrame(kindData, 0, streams[0].id, directFrom))...)
	if abuse := l.give(chunk); abuse != nil {
		t.Fatal(abuse)
	}
	l.pass()
	if have := served[streams[0]]; have != directFrom {
		t.Errorf("%d bytes of a large piece served directly, want all", have)
	}
	for i, s := range streams[1:] {
		if direct := served[s] == 10; direct != (i < maxDirect) || s.in.size != 10-served[s] {
			t.Errorf("small piece %d: %d bytes served directly, %d wait", i, served[s], s.in.size)
		}
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

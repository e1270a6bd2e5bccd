package daemon

import (
	"io"
	"sync"
	"time"
)

const (
	// logBuffer is how many bytes of log may wait for a reader that is slow.
	logBuffer = 4 << 20
	// logPause is the least time between two writes, unless logFull bytes have come before. The first line after silence is
	// written at once; of a flood many lines share one system call. A write to a file takes longer than the runtime likes: it
	// gives the processor away and looks for such calls more often for some time, which costs far more than the write.
	logPause = 50 * time.Millisecond
	logFull  = 64 << 10
)

// async hands lines to a slow writer in the background, so that a terminal, pipe or disk that blocks stops no request.
// What does not fit is dropped, newest first, and counted. Each Write is taken whole or not at all.
type async struct {
	out    io.Writer
	notice func(lines int) []byte // the line that says how many have been dropped

	wake chan struct{} // capacity 1: there is something to write, or the end has come
	full chan struct{} // capacity 1: it is enough to be written without a pause, or the end has come
	done chan struct{} // closed by write when all has been written after Close

	mu      sync.Mutex // guards the following
	lines   []byte
	dropped int
	total   uint64
	closed  bool
}

// newAsync returns a writer whose goroutine ends with Close. Notice is called by that goroutine, after the first Write.
func newAsync(out io.Writer, notice func(lines int) []byte) *async {
	a := &async{out: out, notice: notice, wake: make(chan struct{}, 1), full: make(chan struct{}, 1), done: make(chan struct{})}
	go a.write()
	return a
}

// Write takes the bytes, or drops them. It never blocks and never fails.
func (a *async) Write(b []byte) (int, error) {
	a.mu.Lock()
	before := len(a.lines)
	switch {
	case a.closed, before+len(b) > logBuffer:
		a.dropped++
		a.total++
	default:
		a.lines = append(a.lines, b...)
	}
	after := len(a.lines)
	a.mu.Unlock()
	if before == 0 { // else it is awake, or will be when it has paused
		poke(a.wake)
	}
	if before < logFull && after >= logFull {
		poke(a.full)
	}
	return len(b), nil
}

// Dropped returns how many writes have been dropped.
func (a *async) Dropped() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.total
}

// Close takes nothing more and waits until everything is written, but no longer than the timeout: whoever does not read
// must not keep the process from ending. The goroutine of a writer that blocks for ever is left to the process's end.
func (a *async) Close(timeout time.Duration) {
	a.mu.Lock()
	a.closed = true
	a.mu.Unlock()
	poke(a.wake)
	poke(a.full)
	limit := time.NewTimer(timeout)
	defer limit.Stop()
	select {
	case <-a.done:
	case <-limit.C:
	}
}

// poke tells the goroutine, unless it was told already.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// write is the goroutine that alone touches out.
func (a *async) write() {
	defer close(a.done)
	var spare []byte
	pause := time.NewTimer(0)
	defer pause.Stop()
	for range a.wake {
		a.mu.Lock()
		b, dropped, closed := a.lines, a.dropped, a.closed
		a.lines, a.dropped = spare[:0], 0
		a.mu.Unlock()
		// Errors have nowhere to go: this is where they would be written.
		if len(b) > 0 {
			_, _ = a.out.Write(b)
		}
		if dropped > 0 {
			_, _ = a.out.Write(a.notice(dropped))
		}
		if closed {
			return
		}
		spare = b
		if cap(b) > logBuffer/16 {
			spare = nil // a flood has passed: give its memory back
		}
		pause.Reset(logPause)
		select {
		case <-pause.C:
		case <-a.full:
		}
	}
}

package daemon

import (
	"io"
	"sync"
	"time"
)

const (
	// logBuffer is how many bytes of log may wait for a reader that is slow.
	logBuffer = 4 << 20
	// logPause is the least time between two writes. The first line after silence is written at once; of a flood many
	// lines share one system call.
	logPause = 5 * time.Millisecond
)

// async hands lines to a slow writer in the background, so that a terminal, pipe or disk that blocks stops no request.
// What does not fit is dropped, newest first, and counted. Each Write is taken whole or not at all.
type async struct {
	out    io.Writer
	notice func(lines int) []byte // the line that says how many have been dropped

	wake chan struct{} // capacity 1: there is something to write, or the end has come
	done chan struct{} // closed by write when all has been written after Close

	mu      sync.Mutex
	full    []byte
	dropped int
	total   uint64
	closed  bool
}

// newAsync returns a writer whose goroutine ends with Close. Notice is called by that goroutine, after the first Write.
func newAsync(out io.Writer, notice func(lines int) []byte) *async {
	a := &async{out: out, notice: notice, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go a.write()
	return a
}

// Write takes the bytes, or drops them. It never blocks and never fails.
func (a *async) Write(b []byte) (int, error) {
	a.mu.Lock()
	switch {
	case a.closed, len(a.full)+len(b) > logBuffer:
		a.dropped++
		a.total++
	default:
		a.full = append(a.full, b...)
	}
	a.mu.Unlock()
	a.signal()
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
	a.signal()
	limit := time.NewTimer(timeout)
	defer limit.Stop()
	select {
	case <-a.done:
	case <-limit.C:
	}
}

func (a *async) signal() {
	select {
	case a.wake <- struct{}{}:
	default: // it is awake already
	}
}

// write is the goroutine that alone touches out.
func (a *async) write() {
	defer close(a.done)
	var spare []byte
	for range a.wake {
		a.mu.Lock()
		b, dropped, closed := a.full, a.dropped, a.closed
		a.full, a.dropped = spare[:0], 0
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
		if len(b) > 0 {
			time.Sleep(logPause)
		}
	}
}

// Package relay copies bytes both ways between two connections until both directions have ended.
//
// The two directions are independent: when one side ends its own, the other is told by a half-close and may go on
// sending. A direction that breaks, the idle limit or the end of the context breaks both sides with a reset, so that
// neither can take what it got for the whole. That is the promise of this package: a clean end means every byte.
//
//	a                relay                b
//	|-- bytes, FIN --> | -- bytes, FIN -->|
//	|<-- bytes, FIN -- | <-- bytes, FIN --|   then both are closed
//
//	|-- RST ---------> | -- RST --------->|   at once, in whatever state
//
// Each relay has two goroutines, of which one is the caller's. Buffers come from a shared cache and grow only while
// reads fill them. A direction that reads from a TCP or Unix socket, or from what writes itself, holds none while it waits;
// others hold 4 KiB, or 16 KiB after a burst. What writes itself, a stream of a tunnel, may offer bytes to the other side
// without waking anybody: they are taken as far as the socket takes them at once.
package relay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// ErrIdle is returned by [Relay] when no byte moved in either direction for the idle limit.
var ErrIdle = errors.New("idle limit reached")

// CloseWriter is a connection that can end its own direction and go on reading.
type CloseWriter interface{ CloseWrite() error }

// Resetter is a connection that can be closed so that the peer sees an abort and not an end.
type Resetter interface{ Reset() error }

// Options changes how a relay behaves. The zero value has no limits.
type Options struct {
	// Idle ends the relay when no byte has moved in either direction for this long; up to a quarter more may pass. Zero
	// means never.
	Idle time.Duration
}

// Counts says how many bytes were written in each direction.
type Counts struct{ AToB, BToA int64 }

// Relay copies between a and b until both directions have ended, and closes both before it returns. A side that has no
// CloseWrite is closed as a whole when the other ends, and what it would still have sent is lost. End it by ctx: who closes a
// socket that is being relayed waits until what was read from it is written.
//
// The error is nil only when both directions ended cleanly. It is the first one met: of reading or writing, [ErrIdle],
// or the cause of ctx's end. Both sides have then been aborted.
func Relay(ctx context.Context, a, b net.Conn, o Options) (Counts, error) {
	a, b = Watch(a), Watch(b)
	r := &relay{a: a, b: b, tick: o.Idle / idleTicks}
	unwatch := r.watch(ctx)
	var other sync.WaitGroup
	other.Go(func() { r.direction(a, b, &r.toA, "b to a") })
	r.direction(b, a, &r.toB, "a to b")
	other.Wait()
	unwatch()
	counts := Counts{AToB: r.toB.Load(), BToA: r.toA.Load()}
	if r.err != nil {
		Abort(a) // unless that was done at once
		Abort(b)
		return counts, r.err
	}
	return counts, errors.Join(closed(a), closed(b))
}

// closed closes c, which may have been closed for want of a CloseWrite.
func closed(c net.Conn) error {
	if err := c.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("close relayed connection: %w", err)
	}
	return nil
}

// Abort closes c so that the peer sees that it was broken off: by c's own Reset if it has one, else by making the kernel
// send a reset for a TCP connection, also under TLS. Anything else is just closed.
func Abort(c net.Conn) {
	if r, ok := c.(Resetter); ok {
		_ = r.Reset() // there is nothing left to do for a connection that cannot even be aborted
		return
	}
	inner := c
	if secured, ok := c.(*tls.Conn); ok {
		inner = secured.NetConn()
	}
	// Before the TLS layer can say a friendly goodbye.
	if r, ok := inner.(Resetter); ok {
		_ = r.Reset()
	} else if tcp, ok := inner.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // fails only on a closed socket
		_ = tcp.Close()
	}
	_ = c.Close()
}

// idleTicks is how many times within the idle limit a relay looks for movement. One slow timer instead of a deadline
// per read costs nothing while bytes flow.
const idleTicks = 4

// lastWords is how long one direction goes on after the other could not be written any more. A server that refuses a request
// before it has read all of it answers, ends its direction, and resets what still comes: the answer is worth having.
const lastWords = time.Second

type relay struct {
	a, b     net.Conn
	tick     time.Duration
	toA, toB atomic.Int64

	mu      sync.Mutex // guards the following
	err     error      // the first
	aborted bool
	done    bool // callbacks that start now have come too late
	timer   *time.Timer
	last    *time.Timer // ends the last words
	seen    int64       // bytes moved at the last tick
	still   int         // ticks without movement

	callbacks sync.WaitGroup
}

// watch starts what may abort the relay from outside. The function returned stops it, and waits until it has stopped.
func (r *relay) watch(ctx context.Context) func() {
	stop := context.AfterFunc(ctx, func() { r.callback(func() { r.abort(context.Cause(ctx)) }) })
	if r.tick > 0 {
		r.mu.Lock()
		r.timer = time.AfterFunc(r.tick, func() { r.callback(r.checkIdle) })
		r.mu.Unlock()
	}
	return func() {
		stop()
		r.mu.Lock()
		r.done = true
		if r.timer != nil {
			r.timer.Stop()
		}
		if r.last != nil {
			r.last.Stop()
		}
		r.mu.Unlock()
		r.callbacks.Wait()
	}
}

// callback runs f unless the relay is over.
func (r *relay) callback(f func()) {
	r.mu.Lock()
	if r.done {
		r.mu.Unlock()
		return
	}
	r.callbacks.Add(1)
	r.mu.Unlock()
	defer r.callbacks.Done()
	f()
}

func (r *relay) checkIdle() {
	moved := r.toA.Load() + r.toB.Load()
	r.mu.Lock()
	if moved != r.seen {
		r.seen, r.still = moved, 0
	} else {
		r.still++
	}
	idle := r.still >= idleTicks
	if !idle && !r.done {
		r.timer.Reset(r.tick)
	}
	r.mu.Unlock()
	if idle {
		r.abort(ErrIdle)
	}
}

// abort breaks both sides because of err. Only the first call has an effect.
func (r *relay) abort(err error) {
	r.mu.Lock()
	if r.err == nil {
		r.err = err
	}
	first := !r.aborted
	r.aborted = true
	r.mu.Unlock()
	if !first {
		return
	}
	// Each waits for the read under way of its side, which may be writing to the other.
	var both sync.WaitGroup
	both.Go(func() { Abort(r.a) })
	Abort(r.b)
	both.Wait()
}

// giveUp ends one direction because of err, and breaks both sides when the other one has had the time for its last words.
func (r *relay) giveUp(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil || r.done {
		return
	}
	r.err = err
	r.last = time.AfterFunc(lastWords, func() { r.callback(func() { r.abort(err) }) })
}

// direction copies from src to dst until src ends, and tells dst.
func (r *relay) direction(dst, src net.Conn, count *atomic.Int64, name string) {
	err := transfer(dst, src, count)
	if w, ok := src.(*watched); ok && err == nil {
		if e := w.end(); !errors.Is(e, io.EOF) {
			err = fmt.Errorf("read: %w", e)
		}
	}
	if err == nil {
		err = endWrite(dst)
	}
	if err == nil {
		return
	}
	err = fmt.Errorf("relay %s: %w", name, err)
	if errors.Is(err, errWrite) {
		r.giveUp(err)
	} else {
		r.abort(err)
	}
}

// endWrite tells the peer of dst that there is no more to come.
func endWrite(dst net.Conn) error {
	if half, ok := dst.(CloseWriter); ok {
		return half.CloseWrite()
	}
	return closed(dst)
}

var errWrite = errors.New("write")

// transfer copies until the end of src, which is no error.
func transfer(dst, src net.Conn, count *atomic.Int64) error {
	s := newSocketSource(src)
	if s == nil {
		if from, ok := src.(io.WriterTo); ok {
			return unload(newSink(dst, count), from)
		}
		s = &readerSource{r: src}
	}
	return pump(dst, s, count)
}

// unload has src write itself to dst.
func unload(dst *sink, src io.WriterTo) error {
	_, err := src.WriteTo(dst)
	switch {
	case err == nil:
		return nil
	case dst.failed != nil:
		return fmt.Errorf("%w: %w", errWrite, dst.failed)
	}
	return fmt.Errorf("read: %w", err)
}

// Copy copies from src to dst until the end of src, which is no error, as [Relay] does in one direction.
func Copy(dst io.Writer, src net.Conn) (int64, error) {
	var count atomic.Int64
	err := pump(dst, newSource(src), &count)
	return count.Load(), err
}

// pump copies until the end of src, which is no error.
func pump(dst io.Writer, src source, count *atomic.Int64) error {
	var failed error
	err := src.each(func(data []byte) bool {
		n, err := dst.Write(data)
		count.Add(int64(n))
		failed = err
		return err == nil
	})
	switch {
	case failed != nil:
		return fmt.Errorf("%w: %w", errWrite, failed)
	case err != nil:
		return fmt.Errorf("read: %w", err)
	}
	return nil
}

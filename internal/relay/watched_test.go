package relay

import (
	"errors"
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"testing"
)

// ending tells when it is told that there is no more to come.
type ending struct {
	net.Conn
	ended *atomic.Bool
}

func (e ending) CloseWrite() error {
	e.ended.Store(true)
	return nil
}

func (e ending) Reset() error {
	Abort(e.Conn)
	return nil
}

// TestAResetIsNeverAnEnd has a service reset the connection while the client sends. The kernel tells of that once, and may
// tell who writes; who reads then finds what looks like an end.
func TestAResetIsNeverAnEnd(t *testing.T) {
	for range 300 {
		var ended atomic.Bool
		sides := 0
		left, right, done := start(t.Context(), t, Options{}, func(c net.Conn) net.Conn {
			if sides++; sides == 1 {
				return ending{c, &ended}
			}
			return c
		})
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			for {
				if _, err := left.Write(make([]byte, 100)); err != nil {
					return
				}
			}
		}()
		if _, err := io.ReadFull(right, make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
		if err := right.SetLinger(0); err != nil {
			t.Fatal(err)
		}
		_ = right.Close()
		o := <-done
		<-sent
		if o.err == nil || ended.Load() {
			t.Fatalf("the client was told of an end: %t; the relay ends with %v", ended.Load(), o.err)
		}
	}
}

// TestAWatchedConnectionEndsAsItsPeerDoes tells ends from resets, in whatever order they come.
func TestAWatchedConnectionEndsAsItsPeerDoes(t *testing.T) {
	for name, c := range map[string]struct {
		peer func(*net.TCPConn)
		want error
	}{
		"an end": {func(c *net.TCPConn) { _ = c.CloseWrite() }, io.EOF},
		"a reset": {func(c *net.TCPConn) {
			_ = c.SetLinger(0)
			_ = c.Close()
		}, syscall.ECONNRESET},
		"an end, and a reset for want of a reader": {func(c *net.TCPConn) { _ = c.CloseWrite(); _ = c.Close() }, io.EOF},
	} {
		t.Run(name, func(t *testing.T) {
			for range 100 {
				near, far := tcpPair(t)
				w := Watch(near)
				told := make(chan struct{})
				go func() {
					defer close(told)
					for {
						if _, err := w.Write([]byte("x")); err != nil {
							return
						}
					}
				}()
				if _, err := far.Read(make([]byte, 1)); err != nil {
					t.Fatal(err)
				}
				c.peer(far)
				if name != "an end" {
					<-told // the write has been told, not the read
				}
				if _, err := w.Read(make([]byte, 1)); !errors.Is(err, c.want) {
					t.Fatalf("read gives %v, want %v", err, c.want)
				}
				_ = w.Close()
				_ = far.Close()
				<-told
			}
		})
	}
}

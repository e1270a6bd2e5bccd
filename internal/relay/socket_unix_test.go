//go:build unix

package relay

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestSocketsAreReadWithoutTheirWrapper(t *testing.T) {
	near, _ := tcpPair(t)
	if _, ok := newSource(near).(*socketSource); !ok {
		t.Error("a TCP connection is read with a buffer to wait with")
	}
	if _, ok := newSource(&opaque{Conn: near}).(*socketSource); ok {
		t.Error("a wrapped socket is read behind its wrapper's back")
	}
}

// steps is a writer that tells of each write, and goes on when it is told to.
type steps struct{ got, proceed chan string }

func newSteps() *steps { return &steps{make(chan string), make(chan string)} }

func (s *steps) Write(p []byte) (int, error) {
	s.got <- string(p)
	<-s.proceed
	return len(p), nil
}

// copying copies what near reads to the steps, until it ends with what is received from the channel.
func copying(near net.Conn) (*steps, <-chan error) {
	to, ended := newSteps(), make(chan error, 1)
	go func() {
		var count atomic.Int64
		ended <- pump(to, newSource(near), &count)
	}()
	return to, ended
}

// untilItTells has the socket be read until it is one of those that tell when they are dry. There are none under the race
// detector, and no Unix sockets.
func untilItTells(t *testing.T, near, far net.Conn, to *steps) {
	t.Helper()
	raw, err := near.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for told, n := 0, 0; told == 0 && n < 1000; n++ {
		send(t, far, "question")
		await(t, to.got)
		to.proceed <- ""
		err := raw.Control(func(fd uintptr) { told, _ = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_INQ) })
		if err != nil {
			t.Fatal(err)
		}
	}
}

// What comes while something is being written is found without another read, whatever it is.
func TestNothingIsMissedThatComesDuringAWrite(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			near, far := pairOf(t, network)
			to, ended := copying(near)
			untilItTells(t, near, far, to)
			send(t, far, "one")
			for range 10 {
				await(t, to.got)
				send(t, far, "another")
				to.proceed <- ""
			}
			await(t, to.got)
			to.proceed <- ""
			send(t, far, "last")
			if got := await(t, to.got); got != "last" {
				t.Fatalf("read %q", got)
			}
			far.Close()
			to.proceed <- ""
			if err := await(t, ended); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// An end or a reset that has come together with the last bytes wakes nobody any more.
func TestAnEndIsSeenBehindTheLastBytes(t *testing.T) {
	tests := map[string]struct {
		linger int // in seconds; 0: closing resets
		event  int16
		err    error
	}{
		"end":   {-1, unix.POLLRDHUP, nil},
		"reset": {0, unix.POLLHUP, syscall.ECONNRESET},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			near, far := tcpPair(t)
			to, ended := copying(near)
			untilItTells(t, near, far, to)
			send(t, far, "one")
			await(t, to.got)
			send(t, far, "last")
			if err := far.SetLinger(test.linger); err != nil {
				t.Fatal(err)
			}
			far.Close()
			awaitEvents(t, near, test.event)
			to.proceed <- ""
			if got := await(t, to.got); got != "last" {
				t.Fatalf("read %q", got)
			}
			to.proceed <- ""
			if err := await(t, ended); !errors.Is(err, test.err) {
				t.Fatalf("ended with %v, want %v", err, test.err)
			}
		})
	}
}

// pairOf returns both ends of a connection of a kind.
func pairOf(t *testing.T, network string) (near, far net.Conn) {
	t.Helper()
	if network == "tcp" {
		return tcpPair(t)
	}
	l, err := net.Listen(network, filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if near, err = net.Dial(network, l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if far, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = near.Close(), far.Close() })
	return near, far
}

// stuck takes nothing until it is broken off.
type stuck struct {
	net.Conn
	writing, over chan struct{}
	once          sync.Once
}

func (s *stuck) Read([]byte) (int, error) {
	<-s.over
	return 0, net.ErrClosed
}

func (s *stuck) Write([]byte) (int, error) {
	close(s.writing)
	<-s.over
	return 0, net.ErrClosed
}

func (s *stuck) Reset() error {
	s.once.Do(func() { close(s.over) })
	return nil
}

// A socket that is being read can't be closed before its bytes are written elsewhere, or never will be.
func TestAbortReachesBothSidesWhenOneIsStuck(t *testing.T) {
	near, far := tcpPair(t)
	s := &stuck{Conn: near, writing: make(chan struct{}), over: make(chan struct{})}
	ctx, cancel := context.WithCancelCause(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := Relay(ctx, near, s, Options{})
		ended <- err
	}()
	send(t, far, "x")
	await(t, s.writing)
	why := errors.New("time is over")
	cancel(why)
	if err := await(t, ended); !errors.Is(err, why) {
		t.Fatalf("broken off because of %v", err)
	}
	wantReset(t, far)
}

func await[T any](t *testing.T, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(time.Minute):
		t.Fatal("nothing happens")
	}
	return v
}

// awaitEvents waits until one of the events holds for the socket, without reading it, and the runtime has heard of it.
func awaitEvents(t *testing.T, c *net.TCPConn, events int16) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = raw.Control(func(fd uintptr) {
		look := []unix.PollFd{{Fd: int32(fd), Events: events}}
		for {
			n, err := unix.Poll(look, 60_000)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if n != 1 || err != nil || look[0].Revents&events == 0 {
				t.Errorf("waited for %#x, found %#x: %v", events, look[0].Revents, err)
			}
			return
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	// It hears of what happens in order.
	near, far := tcpPair(t)
	got := make(chan error, 1)
	go func() {
		_, err := near.Read(make([]byte, 1))
		got <- err
	}()
	send(t, far, "x")
	if err := await(t, got); err != nil {
		t.Fatal(err)
	}
}

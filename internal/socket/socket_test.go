//go:build unix

package socket

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pair returns the two ends of a connection.
func pair(t testing.TB, network string) (a, b net.Conn) {
	t.Helper()
	address := "127.0.0.1:0"
	if network == "unix" {
		address = filepath.Join(t.TempDir(), "s")
	}
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.Dial(network, l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return a, b
}

func wrapped(t testing.TB, conn net.Conn) *Conn {
	t.Helper()
	c, ok := Wrap(conn).(*Conn)
	if !ok {
		t.Fatalf("%T is not wrapped", conn)
	}
	return c
}

func TestBytesPass(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		for _, size := range []int{1, 100, 64 << 10, most, most + 1, 9 << 20} {
			a, b := pair(t, network)
			from, to := wrapped(t, a), wrapped(t, b)
			sent := make([]byte, size)
			_, _ = rand.Read(sent) // never fails
			var writer sync.WaitGroup
			writer.Go(func() {
				n, err := from.Write(sent) // of the largest, more than a socket holds
				if n != size || err != nil {
					t.Errorf("%s: %d of %d bytes written: %v", network, n, size, err)
				}
				if err := from.CloseWrite(); err != nil {
					t.Error(err)
				}
			})
			got, err := io.ReadAll(to)
			writer.Wait()
			if err != nil || !bytes.Equal(got, sent) {
				t.Errorf("%s: %d of %d bytes came, or others: %v", network, len(got), size, err)
			}
			if _, err := to.Write([]byte("x")); err != nil {
				t.Errorf("%s: the direction that is left: %v", network, err)
			}
		}
	}
}

func TestTwoPiecesAreWrittenAsOne(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		a, b := pair(t, network)
		joiner := JoinerOf(account{wrapped(t, a)})
		if joiner == nil {
			t.Fatalf("%s: a connection that only keeps account is no Joiner", network)
		}
		for _, c := range []struct{ head, rest string }{
			{"head", "body"}, {"head", ""}, {"", "body"}, {"", ""}, {strings.Repeat("h", most+1), strings.Repeat("b", 9<<20)},
		} {
			got := make([]byte, len(c.head)+len(c.rest))
			var reader sync.WaitGroup
			reader.Go(func() {
				if _, err := io.ReadFull(b, got); err != nil {
					t.Error(err)
				}
			})
			want := len(c.rest)
			if c.rest == "" {
				want = len(c.head)
			}
			n, err := joiner.WriteAfter([]byte(c.head), []byte(c.rest))
			reader.Wait()
			if n != want || err != nil || string(got) != c.head+c.rest {
				t.Errorf("%s: %d and %d bytes: %d written, %v; or others came", network, len(c.head), len(c.rest), n, err)
			}
		}
		_ = b.Close()
	}
	a, _ := pair(t, "tcp")
	if JoinerOf(a) != nil || JoinerOf(struct{ net.Conn }{wrapped(t, a)}) != nil {
		t.Error("a Joiner is found below what is not to be passed by")
	}
}

func TestGiveWayLetsOthersRunBeforeAWrite(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	a, _ := pair(t, "tcp")
	conn := wrapped(t, a)
	GiveWay(a) // of which nothing was made
	if conn.GivesWay() {
		t.Error("it gives way before it was asked to")
	}
	GiveWay(layer{account{conn}})
	if !conn.GivesWay() {
		t.Fatal("it does not give way")
	}
	var ran atomic.Bool
	go ran.Store(true)
	if _, err := conn.Write([]byte("x")); err != nil || !ran.Load() {
		t.Errorf("who was ready has run: %t; %v", ran.Load(), err)
	}
}

func TestWritesDoNotMix(t *testing.T) {
	a, b := pair(t, "tcp")
	from := wrapped(t, a)
	const writers, size = 8, 1 << 20
	var wait sync.WaitGroup
	for i := range writers {
		wait.Go(func() {
			if _, err := from.Write(bytes.Repeat([]byte{byte('a' + i)}, size)); err != nil {
				t.Error(err)
			}
		})
	}
	got := make([]byte, size)
	for range writers {
		if _, err := io.ReadFull(b, got); err != nil {
			t.Fatal(err)
		}
		if n := bytes.Count(got, got[:1]); n != size {
			t.Fatalf("only %d bytes in a row are %q", n, got[0])
		}
	}
	wait.Wait()
}

func TestErrorsAreThoseOfNet(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(t *testing.T, a, b net.Conn)
		want    error
	}{
		"deadline": {func(t *testing.T, a, _ net.Conn) {
			if err := a.SetDeadline(time.Unix(1, 0)); err != nil {
				t.Fatal(err)
			}
		}, os.ErrDeadlineExceeded},
		"closed": {func(_ *testing.T, a, _ net.Conn) { _ = a.Close() }, net.ErrClosed},
		"reset": {func(t *testing.T, a, b net.Conn) {
			_ = b.(*net.TCPConn).SetLinger(0)
			_ = b.Close()
			awaitReset(t, a)
		}, nil},
	} {
		var texts [2][2]string // by Wrap, and by package net
		for i, wrap := range []func(net.Conn) net.Conn{Wrap, func(c net.Conn) net.Conn { return c }} {
			for j, do := range []func(c net.Conn) (int, error){
				func(c net.Conn) (int, error) { return c.Read(make([]byte, 1)) },
				func(c net.Conn) (int, error) { return c.Write(make([]byte, 1)) },
			} {
				a, b := pair(t, "tcp")
				conn := wrap(a)
				c.prepare(t, conn, b)
				n, err := do(conn)
				if n != 0 || err == nil || c.want != nil && !errors.Is(err, c.want) {
					t.Errorf("%s: %d bytes, %v", name, n, err)
					continue
				}
				texts[i][j] = stripped(err, a)
			}
		}
		if texts[0] != texts[1] {
			t.Errorf("%s: have %q, want %q", name, texts[0], texts[1])
		}
	}
}

// stripped is the text of err without the addresses, which differ from case to case.
func stripped(err error, conn net.Conn) string {
	text := []byte(err.Error())
	text = bytes.ReplaceAll(text, []byte(conn.LocalAddr().String()), []byte("here"))
	return string(bytes.ReplaceAll(text, []byte(conn.RemoteAddr().String()), []byte("there")))
}

// awaitReset waits until the reset has come, without taking it.
func awaitReset(t *testing.T, conn net.Conn) {
	t.Helper()
	raw, err := Bare(conn).(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		look := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		for err = unix.EINTR; errors.Is(err, unix.EINTR); {
			_, err = unix.Poll(look, -1)
		}
	}); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestEnd(t *testing.T) {
	a, b := pair(t, "tcp")
	_ = b.Close()
	c := wrapped(t, a)
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF { //nolint:errorlint // readers compare it with ==
		t.Errorf("%d bytes, %v", n, err)
	}
	for _, do := range []func([]byte) (int, error){c.Read, c.Write} {
		if n, err := do(nil); n != 0 || err != nil {
			t.Errorf("nothing: %d bytes, %v", n, err)
		}
	}
}

func TestWaitsAreBrokenOff(t *testing.T) {
	for name, c := range map[string]struct {
		by   func(c *Conn) error
		want error
	}{
		"deadline": {func(c *Conn) error { return c.SetDeadline(time.Unix(1, 0)) }, os.ErrDeadlineExceeded},
		"close":    {(*Conn).Close, net.ErrClosed},
		"reset":    {(*Conn).Reset, net.ErrClosed},
	} {
		a, b := pair(t, "tcp")
		conn := wrapped(t, a)
		errs := make(chan error, 2)
		go func() {
			_, err := conn.Read(make([]byte, 1))
			errs <- err
		}()
		go func() {
			_, err := conn.Write(make([]byte, 16<<20)) // more than the sockets hold
			errs <- err
		}()
		if _, err := b.Read(make([]byte, 1)); err != nil { // so that the write has begun
			t.Fatal(err)
		}
		if err := c.by(conn); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := <-errs; !errors.Is(err, c.want) {
				t.Errorf("%s: have %v, want %v", name, err, c.want)
			}
		}
	}
}

func TestResetIsSeenAsOne(t *testing.T) {
	a, b := pair(t, "tcp")
	if err := wrapped(t, a).Reset(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("have %v", err)
	}
}

// account is a connection that keeps account of another.
type account struct{ net.Conn }

func (a account) Bare() net.Conn { return a.Conn }

func TestWhatIsWrapped(t *testing.T) {
	a, _ := pair(t, "tcp")
	c := wrapped(t, account{account{a}})
	if c.Bare() != a || Bare(c) != a || c.NetConn() != (account{account{a}}) {
		t.Errorf("bare is %v", c.Bare())
	}
	for _, done := range []net.Conn{c, account{c}} {
		if Wrap(done) != done {
			t.Errorf("%T is wrapped once more", done)
		}
	}
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	if Wrap(near) != near || Bare(near) != near {
		t.Error("what is no socket was wrapped")
	}
}

func TestNothingIsAllocated(t *testing.T) {
	a, b := pair(t, "tcp")
	from, to := wrapped(t, a), wrapped(t, b)
	p := make([]byte, 100)
	n := testing.AllocsPerRun(100, func() {
		if _, err := from.Write(p[:60]); err != nil {
			t.Fatal(err)
		}
		if _, err := from.WriteAfter(p[60:80], p[80:]); err != nil {
			t.Fatal(err)
		}
		if _, err := to.Read(p); err != nil {
			t.Fatal(err)
		}
	})
	if n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// layer is a connection above another.
type layer struct{ net.Conn }

func (l layer) NetConn() net.Conn { return l.Conn }

func TestWaitingTellsWhatAReadWouldFind(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		a, b := pair(t, network)
		c := layer{account{layer{wrapped(t, b)}}}
		if Waiting(c) {
			t.Errorf("%s: nothing has come", network)
		}
		if _, err := a.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		// Neither is hidden by a deadline that has passed, nor taken.
		if err := b.SetReadDeadline(time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
		for !Waiting(c) { // over TCP it may take a moment
			runtime.Gosched()
		}
		if err := b.SetReadDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(make([]byte, 2)); n != 1 || err != nil {
			t.Errorf("%s: %d bytes, %v", network, n, err)
		}
		if Waiting(c) {
			t.Errorf("%s: all was read", network)
		}
		_ = a.Close()
		for !Waiting(c) { // the end
			runtime.Gosched()
		}
		_ = b.Close()
		if !Waiting(c) {
			t.Errorf("%s: a read of a closed connection would not wait", network)
		}
	}
	if near, _ := net.Pipe(); !Waiting(near) {
		t.Error("what is no socket can't be asked")
	}
}

package relay

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// tcpPair returns both ends of a TCP connection.
func tcpPair(t testing.TB) (dialed, accepted *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	d, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	a, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = d.Close()
		_ = a.Close()
	})
	for _, c := range []net.Conn{d, a} {
		if err := c.SetDeadline(time.Now().Add(5 * time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	return d.(*net.TCPConn), a.(*net.TCPConn)
}

type outcome struct {
	counts Counts
	err    error
}

// start relays between two TCP connections and returns their far ends.
func start(ctx context.Context, t testing.TB, o Options, wrap func(net.Conn) net.Conn) (
	left, right *net.TCPConn, done <-chan outcome,
) {
	t.Helper()
	left, a := tcpPair(t)
	right, b := tcpPair(t)
	ended := make(chan outcome, 1)
	go func() {
		counts, err := Relay(ctx, wrap(a), wrap(b), o)
		ended <- outcome{counts, err}
	}()
	return left, right, ended
}

func bare(c net.Conn) net.Conn { return c }

// wrapped hides the type of a connection, as a tunnel's stream does.
func wrapped(c net.Conn) net.Conn { return &opaque{Conn: c, tcp: c.(*net.TCPConn)} }

type opaque struct {
	net.Conn
	tcp *net.TCPConn
}

func (o *opaque) CloseWrite() error { return o.tcp.CloseWrite() }

func (o *opaque) Reset() error {
	Abort(o.tcp)
	return nil
}

// unloading writes itself, as a tunnel's stream does: it offers what it has first, and is told now and then that it has to wait.
func unloading(c net.Conn) net.Conn { return &unloader{opaque: opaque{Conn: c, tcp: c.(*net.TCPConn)}} }

type unloader struct {
	opaque
	offers atomic.Int32
}

func (u *unloader) WriteTo(w io.Writer) (total int64, err error) {
	for buf := make([]byte, 10<<10); ; {
		n, readErr := u.Read(buf)
		at := w.(trier).TryWrite(buf[:n])
		k, writeErr := w.Write(buf[at:n])
		total += int64(at + k)
		switch {
		case writeErr != nil:
			return total, writeErr
		case errors.Is(readErr, io.EOF):
			return total, nil
		case readErr != nil:
			return total, readErr
		}
	}
}

func (u *unloader) TryWrite(p []byte) int {
	if u.offers.Add(1)%3 == 0 {
		return 0
	}
	n, _ := u.Write(p[:(len(p)+1)/2])
	return n
}

// oneUnloads makes a stream of every other connection.
func oneUnloads() func(net.Conn) net.Conn {
	n := 0
	return func(c net.Conn) net.Conn {
		if n++; n%2 == 1 {
			return unloading(c)
		}
		return c
	}
}

func kinds(t *testing.T, f func(t *testing.T, wrap func(net.Conn) net.Conn)) {
	t.Run("sockets", func(t *testing.T) { f(t, bare) })
	t.Run("streams", func(t *testing.T) { f(t, wrapped) })
	t.Run("streams that write themselves", func(t *testing.T) { f(t, unloading) })
	t.Run("such a stream and a socket", func(t *testing.T) { f(t, oneUnloads()) })
}

func TestBothDirectionsArriveWhole(t *testing.T) {
	kinds(t, func(t *testing.T, wrap func(net.Conn) net.Conn) {
		const size = 64 << 20
		left, right, done := start(t.Context(), t, Options{Idle: time.Minute}, wrap)
		var wg sync.WaitGroup
		var sent, got [2][sha256.Size]byte
		for i, c := range []*net.TCPConn{left, right} {
			wg.Go(func() {
				var seed [32]byte
				copy(seed[:], c.LocalAddr().String()) // another one each way
				source := rand.NewChaCha8(seed)
				h := sha256.New()
				if _, err := io.CopyN(io.MultiWriter(c, h), source, size); err != nil {
					t.Errorf("send: %v", err)
				}
				if err := c.CloseWrite(); err != nil {
					t.Errorf("close write: %v", err)
				}
				copy(sent[i][:], h.Sum(nil))
			})
			wg.Go(func() {
				h := sha256.New()
				if _, err := io.Copy(h, c); err != nil {
					t.Errorf("receive: %v", err)
				}
				copy(got[i][:], h.Sum(nil))
			})
		}
		wg.Wait()
		if sent[0] != got[1] || sent[1] != got[0] {
			t.Error("bytes differ")
		}
		if end := <-done; end.err != nil || end.counts != (Counts{size, size}) {
			t.Fatalf("relay ended with %+v", end)
		}
	})
}

func TestOneDirectionEndsWithoutTheOther(t *testing.T) {
	kinds(t, func(t *testing.T, wrap func(net.Conn) net.Conn) {
		left, right, done := start(t.Context(), t, Options{}, wrap)
		send(t, left, "request")
		if err := left.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		receive(t, right, "request")
		send(t, right, "answer")
		if err := right.Close(); err != nil {
			t.Fatal(err)
		}
		receive(t, left, "answer")
		if end := <-done; end.err != nil || end.counts != (Counts{AToB: 7, BToA: 6}) {
			t.Fatalf("relay ended with %+v", end)
		}
	})
}

func send(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

// receive reads up to the end, which must be a clean one.
func receive(t *testing.T, c net.Conn, want string) {
	t.Helper()
	if got, err := io.ReadAll(c); err != nil || string(got) != want {
		t.Fatalf("read %q, %v; want %q and a clean end", got, err, want)
	}
}

func wantReset(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("read gave %v, want a reset", err)
	}
}

func TestResetOfOneSideResetsTheOther(t *testing.T) {
	kinds(t, func(t *testing.T, wrap func(net.Conn) net.Conn) {
		left, right, done := start(t.Context(), t, Options{}, wrap)
		send(t, left, "half of a mess")
		if _, err := io.ReadFull(right, make([]byte, 14)); err != nil {
			t.Fatal(err)
		}
		Abort(left)
		wantReset(t, right)
		if end := <-done; !errors.Is(end.err, syscall.ECONNRESET) || end.counts.AToB != 14 {
			t.Fatalf("relay ended with %+v", end)
		}
	})
}

func TestResetAfterHalfCloseIsPassedOn(t *testing.T) {
	kinds(t, func(t *testing.T, wrap func(net.Conn) net.Conn) {
		left, right, done := start(t.Context(), t, Options{}, wrap)
		if err := left.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		receive(t, right, "")
		Abort(right)
		wantReset(t, left)
		if end := <-done; !errors.Is(end.err, syscall.ECONNRESET) {
			t.Fatalf("relay ended with %+v", end)
		}
	})
}

func TestEndOfContextResetsBothSides(t *testing.T) {
	kinds(t, func(t *testing.T, wrap func(net.Conn) net.Conn) {
		why := errors.New("drained")
		ctx, cancel := context.WithCancelCause(t.Context())
		left, right, done := start(ctx, t, Options{}, wrap)
		send(t, left, "x")
		if _, err := io.ReadFull(right, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		cancel(why)
		wantReset(t, left)
		wantReset(t, right)
		if end := <-done; !errors.Is(end.err, why) {
			t.Fatalf("relay ended with %+v", end)
		}
	})
}

func TestBlockedWriteEndsWithTheContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	left, _, done := start(ctx, t, Options{}, bare)
	// Nobody reads at the far side. When our own writes stop making progress, the relay's does too.
	if err := left.SetWriteDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	for chunk := make([]byte, 1<<20); ; {
		if _, err := left.Write(chunk); err != nil {
			break
		}
	}
	cancel()
	if end := <-done; !errors.Is(end.err, context.Canceled) {
		t.Fatalf("relay ended with %+v", end)
	}
}

func TestContextThatHasEndedIsHonoured(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	left, right, done := start(ctx, t, Options{}, bare)
	wantReset(t, left)
	wantReset(t, right)
	if end := <-done; !errors.Is(end.err, context.Canceled) {
		t.Fatalf("relay ended with %+v", end)
	}
}

func TestTLSIsAbortedWithoutGoodbye(t *testing.T) {
	left, right := tlsPair(t)
	Abort(right)
	if _, err := io.ReadAll(left); err == nil {
		t.Fatal("abort looks like a clean end")
	}
}

func TestBothSidesAreClosedAtTheEnd(t *testing.T) {
	left, a := tcpPair(t)
	right, b := tcpPair(t)
	for _, far := range []*net.TCPConn{left, right} {
		if err := far.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Relay(t.Context(), a, b, Options{}); err != nil {
		t.Fatal(err)
	}
	for _, near := range []*net.TCPConn{a, b} {
		if err := near.Close(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("closing again: %v", err)
		}
	}
}

func TestManyChunksKeepTheirOrder(t *testing.T) {
	kinds(t, func(t *testing.T, wrap func(net.Conn) net.Conn) {
		left, right, done := start(t.Context(), t, Options{}, wrap)
		var want bytes.Buffer
		var wg sync.WaitGroup
		wg.Go(func() {
			for i := range 3000 {
				b := bytes.Repeat([]byte{byte(i)}, 1+i*7919%9000)
				want.Write(b)
				if _, err := left.Write(b); err != nil {
					t.Errorf("write: %v", err)
					break
				}
			}
			_ = left.CloseWrite()
		})
		got, err := io.ReadAll(right)
		wg.Wait()
		if err != nil || !bytes.Equal(got, want.Bytes()) {
			t.Fatalf("got %d bytes, %v; want %d", len(got), err, want.Len())
		}
		_ = right.Close()
		if end := <-done; end.err != nil {
			t.Fatal(end.err)
		}
	})
}

func TestLastWordsOfASideThatReadsNoMore(t *testing.T) {
	client, a := tcpPair(t)
	b, service := tcpPair(t)
	done := make(chan error, 1)
	go func() {
		_, err := Relay(t.Context(), a, b, Options{})
		done <- err
	}()
	go io.Copy(client, endless{}) // an upload that nobody wants
	if _, err := io.ReadFull(service, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	answer := strings.Repeat("413 Content Too Large. ", 1000)
	if _, err := io.WriteString(service, answer); err != nil {
		t.Fatal(err)
	}
	service.Close() // with data unread: a reset
	got, _ := io.ReadAll(client)
	if string(got) != answer {
		t.Errorf("%d bytes of the answer arrived, want %d", len(got), len(answer))
	}
	if err := <-done; err == nil {
		t.Error("no error though the upload was cut")
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

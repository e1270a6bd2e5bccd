package websocket

import (
	"fmt"
	"io"
	"net"
	"testing"
	"time"
)

// endless is a peer that sends the same bytes for ever and takes everything.
type endless struct {
	net.Conn
	stream []byte
	at     int
	most   int // bytes per read
	asked  int // length of the last slice to read into
}

func (e *endless) Read(p []byte) (int, error) {
	e.asked = len(p)
	n := copy(p[:min(len(p), e.most)], e.stream[e.at:])
	e.at = (e.at + n) % len(e.stream)
	return n, nil
}

func (*endless) Write(p []byte) (int, error) { return len(p), nil }

func (*endless) SetWriteDeadline(time.Time) error { return nil }

// framesOf returns enough frames of n bytes to fill many reads.
func framesOf(n int, fromClient bool) []byte {
	frame := raw(0x82, random(n), form{unmasked: !fromClient})
	var b []byte
	for len(b) < 1<<20 {
		b = append(b, frame...)
	}
	return b
}

func benchmarkRead(b *testing.B, size, slice, most int) {
	c := newConn(&endless{stream: framesOf(size, true), most: most}, false, 0)
	p := make([]byte, slice)
	b.ReportAllocs()
	var total int64
	for b.Loop() {
		n, err := c.Read(p)
		if err != nil {
			b.Fatal(err)
		}
		total += int64(n)
	}
	b.SetBytes(total / int64(b.N))
}

func BenchmarkReadSmall(b *testing.B) { benchmarkRead(b, 100, 4096, 106) }

func BenchmarkReadBulk(b *testing.B) {
	for _, slice := range []int{4 << 10, 16 << 10, 64 << 10} {
		b.Run(fmt.Sprintf("%dK", slice>>10), func(b *testing.B) { benchmarkRead(b, 64<<10, slice, 1<<20) })
	}
}

func BenchmarkWriteReserved(b *testing.B) {
	for _, client := range []bool{false, true} {
		for _, size := range []int{500, 32 << 10} {
			b.Run(fmt.Sprintf("client=%v/%d", client, size), func(b *testing.B) {
				c := newConn(&endless{}, client, 0)
				p := make([]byte, HeaderRoom+size)
				b.ReportAllocs()
				b.SetBytes(int64(size))
				for b.Loop() {
					if err := c.WriteReserved(p); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkXOR(b *testing.B) {
	for _, size := range []int{64, 4 << 10, 64 << 10} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			p := random(size)
			b.SetBytes(int64(size))
			for b.Loop() {
				xor(p, p, 0x12345678)
			}
		})
	}
}

func BenchmarkTCP(b *testing.B) {
	for _, size := range []int{500, 32 << 10, 256 << 10} {
		for _, way := range []string{"to server", "to client"} {
			b.Run(fmt.Sprintf("%d bytes %s", size, way), func(b *testing.B) {
				from, to := pair(b, AcceptOptions{}, DialOptions{})
				if way == "to client" {
					from, to = to, from
				}
				done := make(chan struct{})
				go func() {
					defer close(done)
					_, _ = io.CopyBuffer(io.Discard, struct{ io.Reader }{to}, make([]byte, 64<<10))
				}()
				p := random(size)
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					if _, err := from.Write(p); err != nil {
						b.Fatal(err)
					}
				}
				_ = from.CloseWrite()
				<-done
			})
		}
	}
}

func TestTheHotPathAllocatesNothing(t *testing.T) {
	small := newConn(&endless{stream: framesOf(100, true), most: 106}, false, 0)
	bulk := newConn(&endless{stream: framesOf(64<<10, true), most: 1 << 20}, false, 0)
	writer := newConn(&endless{}, true, 0)
	p, reserved := make([]byte, 4096), make([]byte, HeaderRoom+4096)
	for name, f := range map[string]func() error{
		"small reads":      func() error { _, err := small.Read(p); return err },
		"reads in bulk":    func() error { _, err := bulk.Read(p); return err },
		"reserved writes":  func() error { return writer.WriteReserved(reserved) },
		"ordinary writes":  func() error { _, err := writer.Write(p); return err },
		"asking for times": func() error { _ = small.LastRead(); return nil },
	} {
		var failed error
		// A garbage collection may empty the cache of buffers once or twice.
		if n := testing.AllocsPerRun(1000, func() { failed = f() }); n >= 1 || failed != nil {
			t.Errorf("%s: %v allocations each, %v", name, n, failed)
		}
	}
}

func TestReadBorrowsABufferOnlyWhileMoreIsWaiting(t *testing.T) {
	e := &endless{stream: framesOf(100, true), most: 1000}
	c := newConn(e, false, 0)
	read := func(size, asked int) {
		t.Helper()
		if _, err := c.Read(make([]byte, size)); err != nil {
			t.Fatal(err)
		}
		if e.asked != asked {
			t.Fatalf("read of %d asked the socket for %d, want %d", size, e.asked, asked)
		}
	}
	drain := func() {
		t.Helper()
		for len(c.rest) > 0 {
			read(4096, e.asked)
		}
	}
	whole := len(buffer{}.bytes)
	read(4096, 4096) // nothing is known, so nothing is borrowed
	read(4096, 4096) // the last read was not full
	e.most = 1 << 20
	read(4096, 4096)
	read(4096, whole) // the last read was full
	drain()
	e.most = 1000
	read(4096, whole) // and so was the last one
	drain()
	if c.buf != nil {
		t.Error("buffer held though the last read was not full")
	}
	e.most = 1 << 20
	read(4096, 4096)
	read(4096, whole)
	drain()
	read(directRead, directRead) // large enough by itself
	if c.buf != nil {
		t.Error("buffer held beside a slice that is large enough")
	}
}

func TestNoBufferIsHeldWhileNothingComes(t *testing.T) {
	address, accepted := serve(t, AcceptOptions{})
	client, server := rawClient(t, address, accepted)
	go func() {
		for range 100 {
			_, _ = client.Write(masked(0x82, string(random(10000))))
		}
	}()
	p := make([]byte, 4096)
	borrowed := false
	for got := 0; got < 100*10000; {
		n, err := server.Read(p)
		if err != nil {
			t.Fatal(err)
		}
		got += n
		borrowed = borrowed || server.buf != nil
	}
	if !borrowed {
		t.Error("no larger buffer was borrowed for a burst")
	}
	if err := server.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Read(p); err == nil || server.buf != nil || server.rest != nil {
		t.Errorf("buffer held %v, %v", server.buf != nil, err)
	}
}

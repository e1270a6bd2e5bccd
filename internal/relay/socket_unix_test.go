//go:build unix

package relay

import "testing"

func TestSocketWaitsWithoutABuffer(t *testing.T) {
	near, far := tcpPair(t)
	s, ok := newSocketSource(near).(*socketSource)
	if !ok {
		t.Fatal("no socket source for a TCP connection")
	}
	attempt := func() (done bool) {
		if err := s.raw.Control(func(fd uintptr) { done = s.attempt(fd) }); err != nil {
			t.Fatal(err)
		}
		return done
	}
	if attempt() || s.buf != nil {
		t.Fatal("an empty socket takes a buffer")
	}
	send(t, far, "x")
	if data, err := s.next(); string(data) != "x" || err != nil {
		t.Fatalf("read %q, %v", data, err)
	}
	if s.release(); s.buf != nil {
		t.Fatal("a buffer is held between reads")
	}
	if newSocketSource(&opaque{Conn: near}) != nil {
		t.Fatal("a wrapped socket is read behind its wrapper's back")
	}
}

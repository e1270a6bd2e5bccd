package ports

import (
	"errors"
	"net"
	"syscall"
	"testing"
)

func TestNobodyElseGetsAPortThatIsKept(t *testing.T) {
	p, err := Keep()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Release()
	refused := func() {
		t.Helper()
		if c, err := net.Dial("tcp", p.Addr); !errors.Is(err, syscall.ECONNREFUSED) {
			if err == nil {
				_ = c.Close()
			}
			t.Errorf("a connection to a port that nobody listens on: %v", err)
		}
	}
	refused()
	for range 2 { // a listener may come and go, and come again
		l, err := net.Listen("tcp", p.Addr)
		if err != nil {
			t.Fatal(err)
		}
		c, err := net.Dial("tcp", p.Addr)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
		_ = l.Close()
		refused()
	}
}

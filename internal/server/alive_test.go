package server

import (
	"net"
	"testing"

	"github.com/pikoproxy/piko/internal/pikotest/ports"
)

// With net.ipv6.conf.all.disable_ipv6=1 a listener at ":8000" still is one at [::]:8000, and nobody gets to ::1. That a socket
// can be reached by 127.0.0.1 alone is the same to whoever asks whether the process is stuck.
func TestALifeSignNeedsNoIPv6(t *testing.T) {
	kept, err := ports.Keep()
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Release()
	l, err := net.Listen("tcp", kept.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	at, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		t.Fatalf("%T", l.Addr())
	}
	for _, all := range []net.IP{net.IPv6unspecified, net.IPv4zero} {
		c, err := reach(t.Context(), &net.TCPAddr{IP: all, Port: at.Port})
		if err != nil {
			t.Errorf("%s: %v", all, err)
			continue
		}
		_ = c.Close()
	}
	port := at.Port
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if c, err := reach(t.Context(), &net.TCPAddr{IP: net.IPv6unspecified, Port: port}); err == nil {
		_ = c.Close()
		t.Error("a closed socket counts as one that can be reached")
	}
}

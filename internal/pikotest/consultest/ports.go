package consultest

import (
	"fmt"
	"math/rand/v2"
	"net"
	"testing"
)

// freePorts returns ports that are free for TCP and UDP. Consul is told numbers, so another process could take one before it
// does: they are drawn from below those that the system gives to connections and to listeners on port 0, and from above those
// that the tests of e2e give to what they run.
func freePorts(t testing.TB, n int) []int {
	t.Helper()
	ports := make([]int, 0, n)
	for tries := 0; len(ports) < n; tries++ {
		if tries > 1000 {
			t.Fatal("there are no free ports on 127.0.0.1 between 22000 and 32000")
		}
		port := 22_000 + rand.IntN(10_000) //nolint:gosec // nobody gains from guessing it
		address := fmt.Sprintf("127.0.0.1:%d", port)
		l, err := net.Listen("tcp", address)
		if err != nil {
			continue
		}
		defer func() { _ = l.Close() }()
		u, err := net.ListenPacket("udp", address)
		if err != nil {
			continue
		}
		defer func() { _ = u.Close() }()
		ports = append(ports, port)
	}
	return ports
}

// keep has freePorts, here and in other processes, pass the server's ports over until it runs again. Sockets for UDP do, and
// leave connections refused.
func (c *Consul) keep() {
	for _, port := range c.read()["ports"].(map[string]any) {
		n, ok := port.(float64)
		if !ok || n <= 0 {
			continue
		}
		if u, err := net.ListenPacket("udp", fmt.Sprintf("%s:%.0f", c.place.Addr, n)); err == nil { // in a network of its own it can't
			c.kept = append(c.kept, u)
		}
	}
}

func (c *Consul) release() {
	for _, u := range c.kept {
		_ = u.Close()
	}
	c.kept = nil
}

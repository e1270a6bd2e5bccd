package limit

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// giveUpAfter has the kernel give up a connection whose other end acknowledges nothing, or keeps its window shut, for so
// long; 0: when the kernel thinks fit. It costs nothing while data flow, and holds under TLS and HTTP/2 alike.
func giveUpAfter(c net.Conn, d time.Duration) {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return // closed already
	}
	// It fails only on a closed socket.
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
	})
}

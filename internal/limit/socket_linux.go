package limit

import (
	"net"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pikoproxy/piko/internal/socket"
)

// unsentMark is how many bytes of a client's the kernel takes beyond those it has sent. Without it, it would take
// megabytes for each client that reads slowly, and leave no memory to the connections of others.
const unsentMark = 128 << 10

// keepShort has the kernel hold no more than it can send soon. A client that reads as fast as it gets notices nothing.
func keepShort(c net.Conn) {
	control(c, func(fd int) {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsentMark)
	})
}

// giveUpAfter has the kernel give up a connection whose other end acknowledges nothing, or keeps its window shut, for so
// long; 0: when the kernel thinks fit. It costs nothing while data flow, and holds under TLS and HTTP/2 alike.
func giveUpAfter(c net.Conn, d time.Duration) {
	control(c, func(fd int) {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
	})
}

// control calls f with the socket of a TCP connection. What f does fails only on a closed socket.
func control(c net.Conn, f func(fd int)) {
	tcp, ok := socket.Bare(c).(*net.TCPConn)
	if !ok {
		return
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return // closed already
	}
	_ = raw.Control(func(fd uintptr) { f(int(fd)) })
}

// pending reports whether the kernel holds bytes that it can't send, as the other end has no room for them, and how many
// that end has taken since the connection began.
func pending(c net.Conn) (waiting bool, taken uint64) {
	control(c, func(fd int) {
		n, err := unix.IoctlGetInt(fd, unix.SIOCOUTQNSD)
		if err != nil || n == 0 {
			return
		}
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err == nil {
			waiting, taken = true, info.Bytes_acked
		}
	})
	return waiting, taken
}

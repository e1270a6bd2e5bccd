package tunnel

import (
	"net"

	"golang.org/x/sys/unix"
)

// userTimeout is how long sent data may stay unacknowledged, in milliseconds.
const userTimeout = 20_000

// setUserTimeout has the kernel give up a connection whose other end is gone. Without it, it tries for many minutes.
func setUserTimeout(tcp *net.TCPConn) {
	raw, err := tcp.SyscallConn()
	if err != nil {
		return // closed already
	}
	// Both fail only on a closed socket.
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, userTimeout)
	})
}

package tunnel

import (
	"net"

	"golang.org/x/sys/unix"
)

const (
	// userTimeout is how long sent data may stay unacknowledged, in milliseconds.
	userTimeout = 20_000

	// unsentMark is how many bytes the kernel takes beyond those it has sent.
	unsentMark = 128 << 10
)

// setOptions has the kernel give up a connection whose other end is gone, where it would try for many minutes, and take no
// more than it can send soon: what waits here can still be overtaken by pings and window updates, which on a slow line
// would come too late behind megabytes in the kernel.
func setOptions(tcp *net.TCPConn) {
	raw, err := tcp.SyscallConn()
	if err != nil {
		return // closed already
	}
	// All of it fails only on a closed socket.
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, userTimeout)
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsentMark)
	})
}

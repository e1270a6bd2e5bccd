package relay

import (
	"net"

	"golang.org/x/sys/unix"
)

// dead reports whether a connection is over in both directions, as it is after a reset.
func dead(conn *net.TCPConn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	hungUp := false
	err = raw.Control(func(fd uintptr) {
		look := []unix.PollFd{{Fd: int32(fd)}} //nolint:gosec // a descriptor is small
		n, err := unix.Poll(look, 0)
		hungUp = err == nil && n == 1 && look[0].Revents&unix.POLLHUP != 0
	})
	return err == nil && hungUp
}

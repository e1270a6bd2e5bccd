//go:build unix && (!linux || race || 386 || s390x)

package socket

import (
	"errors"
	"syscall"
)

func read(fd uintptr, p []byte) (int, syscall.Errno) { return ordinary(syscall.Read, fd, p) }

func write(fd uintptr, p []byte) (int, syscall.Errno) { return ordinary(syscall.Write, fd, p) }

// joint writes two pieces, one after the other.
type joint struct{}

func (*joint) write(fd uintptr, head, _ []byte) (int, syscall.Errno) { return write(fd, head) }

// ordinary makes a call of which the runtime is told. On 386 and s390x Linux has no calls of their own for sockets.
func ordinary(call func(fd int, p []byte) (int, error), fd uintptr, p []byte) (int, syscall.Errno) {
	n, err := call(int(fd), p)
	if err == nil {
		return n, 0
	}
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		errno = syscall.EIO // package syscall has no other errors
	}
	return 0, errno
}

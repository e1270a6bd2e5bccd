//go:build linux && !race

package socket

import (
	"syscall"
	"unsafe"
)

func read(fd uintptr, p []byte) (int, syscall.Errno) { return call(syscall.SYS_READ, fd, p) }

func write(fd uintptr, p []byte) (int, syscall.Errno) { return call(syscall.SYS_WRITE, fd, p) }

// call is read(2) or write(2) of what is at the front of p.
func call(number, fd uintptr, p []byte) (int, syscall.Errno) {
	p = p[:min(len(p), most)]
	//nolint:gosec // G103: the kernel wants an address; it is that of p, and of no use when the call has returned
	n, _, errno := syscall.RawSyscall(number, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

//go:build linux && !race && !386 && !s390x

package socket

import (
	"syscall"
	"unsafe"
)

func read(fd uintptr, p []byte) (int, syscall.Errno) { return call(syscall.SYS_RECVFROM, fd, p, 0) }

func write(fd uintptr, p []byte) (int, syscall.Errno) { return call(syscall.SYS_SENDTO, fd, p, 0) }

// begin is write for what makes no packet by itself.
func begin(fd uintptr, p []byte) (int, syscall.Errno) {
	return call(syscall.SYS_SENDTO, fd, p, syscall.MSG_MORE)
}

// flags are for who knows that fd is a socket: recvfrom(2) and sendto(2) go straight to it, while read(2) and write(2) pass all
// that is for files, which took a fifth of the time of a read that finds nothing.
const flags = syscall.MSG_DONTWAIT | syscall.MSG_NOSIGNAL

// call is recvfrom(2) or sendto(2), without an address, of what is at the front of p.
func call(number, fd uintptr, p []byte, also uintptr) (int, syscall.Errno) {
	p = p[:min(len(p), most)]
	//nolint:gosec // G103: the kernel wants an address; it is that of p, and of no use when the call has returned
	n, _, errno := syscall.RawSyscall6(number, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), flags|also, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

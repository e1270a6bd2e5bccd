//go:build linux && !race && !386 && !s390x

package socket

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// askToTell has the kernel tell with each recvmsg(2) how much is left to be read. It reports false for what is not TCP, and
// for what only looks like Linux.
func askToTell(fd uintptr) bool {
	return unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_INQ, 1) == nil
}

// leftover is what recvmsg(2) is told, and tells.
type leftover struct {
	message syscall.Msghdr
	bytes   syscall.Iovec
	control struct {
		syscall.Cmsghdr
		left int32
		_    int32
	}
}

// read is recvmsg(2). What the kernel says is left counts an end as one byte (tcp(7), TCP_INQ).
func (l *leftover) read(fd uintptr, p []byte) (n int, dry bool, errno syscall.Errno) {
	p = p[:min(len(p), most)]
	l.bytes.Base = unsafe.SliceData(p) //nolint:gosec // G103: it is where the kernel is to write
	l.bytes.SetLen(len(p))
	l.message.Iov, l.message.Iovlen = &l.bytes, 1
	l.message.Control = (*byte)(unsafe.Pointer(&l.control)) //nolint:gosec // G103: likewise
	l.message.SetControllen(int(unsafe.Sizeof(l.control)))
	l.control.Level = 0
	//nolint:gosec // G103: the kernel wants an address; it is of no use when the call has returned
	got, _, errno := syscall.RawSyscall(syscall.SYS_RECVMSG, fd, uintptr(unsafe.Pointer(&l.message)), flags)
	l.bytes.Base = nil
	if errno != 0 {
		return 0, false, errno
	}
	c := &l.control
	told := c.Level == unix.IPPROTO_TCP && c.Type == unix.TCP_INQ
	return int(got), told && c.left == 0, 0
}

//go:build linux && !race && !386 && !s390x

package socket

import (
	"syscall"
	"unsafe"
)

func read(fd uintptr, p []byte) (int, syscall.Errno) { return call(syscall.SYS_RECVFROM, fd, p) }

func write(fd uintptr, p []byte) (int, syscall.Errno) { return call(syscall.SYS_SENDTO, fd, p) }

// joint is what sendmsg(2) is told of two pieces.
type joint struct {
	message syscall.Msghdr
	pieces  [2]syscall.Iovec
}

// write is sendmsg(2) of head, or what is at its front, and of what is at the front of p.
func (j *joint) write(fd uintptr, head, p []byte) (int, syscall.Errno) {
	head = head[:min(len(head), most)]
	p = p[:min(len(p), most-len(head))]
	for i, piece := range [...][]byte{head, p} {
		j.pieces[i].Base = unsafe.SliceData(piece) //nolint:gosec // G103: it is where the kernel is to read
		j.pieces[i].SetLen(len(piece))
	}
	j.message.Iov, j.message.Iovlen = &j.pieces[0], 2
	//nolint:gosec // G103: the kernel wants an address; it is of no use when the call has returned
	n, _, errno := syscall.RawSyscall(syscall.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(&j.message)), flags)
	j.pieces[0].Base, j.pieces[1].Base = nil, nil
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

// flags are for who knows that fd is a socket: recvfrom(2) and sendto(2) go straight to it, while read(2) and write(2) pass all
// that is for files, which took a fifth of the time of a read that finds nothing.
const flags = syscall.MSG_DONTWAIT | syscall.MSG_NOSIGNAL

// call is recvfrom(2) or sendto(2), without an address, of what is at the front of p.
func call(number, fd uintptr, p []byte) (int, syscall.Errno) {
	p = p[:min(len(p), most)]
	//nolint:gosec // G103: the kernel wants an address; it is that of p, and of no use when the call has returned
	n, _, errno := syscall.RawSyscall6(number, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), flags, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

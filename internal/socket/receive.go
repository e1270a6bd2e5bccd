//go:build unix

package socket

import "syscall"

// askAfter is how many reads in vain it takes until a socket is asked to tell when it has nothing more to give: that is a call
// too, and dear for a connection that lasts only for a request.
const askAfter = 3

// Receiver reads from one socket that does not block, like [Read], and learns when it has nothing more to give. Otherwise
// who waits for what comes next has to read once more to find nothing, after everything that has come. A Receiver is
// for one goroutine at a time.
type Receiver struct {
	vain  int
	tells bool
	rest  leftover
}

// Receive is [Read], and reports besides whether the socket is dry: it holds no more bytes, nor the end of the far end's
// direction. What comes then wakes who waits for the socket since before this call. If dry is false, nobody knows. A
// connection that was broken off when it had still given some bytes may be dry for good: its error is found by reading
// once more.
func (r *Receiver) Receive(fd uintptr, p []byte) (n int, dry bool, err error) {
	var errno syscall.Errno
	for errno = syscall.EINTR; errno == syscall.EINTR; {
		if r.tells {
			n, dry, errno = r.rest.read(fd, p)
		} else {
			n, errno = read(fd, p)
		}
	}
	if errno == syscall.EAGAIN && r.vain < askAfter {
		if r.vain++; r.vain == askAfter {
			r.tells = askToTell(fd)
		}
	}
	if errno != 0 {
		return 0, false, errno
	}
	return n, dry, nil
}

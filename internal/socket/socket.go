// Package socket reads from and writes to the sockets of package net at the least price.
//
// The runtime takes each system call for one that may last. It wakes the thread that watches over such calls, and when one
// has not returned after some 20 us, that thread gives the processor away, so that another thread is woken, and the one that
// made the call has to wait for its turn when it returns. A socket of package net never blocks: to read or write is to copy
// some bytes, and what takes 20 us then is the kernel's own work, on loopback even that of the receiving end. Where there are
// many small messages, all that watching and waking took a quarter of the time.
//
// So the calls of this package are made as if they were none, on Linux. While one lasts, its thread keeps its processor, and
// the garbage collector, if it is about to begin, waits for it: therefore one call copies 144 KiB at most, and what is longer
// takes several. Waiting for a socket is the runtime's part, as ever.
//
// Under the race detector all calls are ordinary ones, since it takes what goes over a socket for an order of events.
package socket

import "net"

// Block is how many bytes of a bulk are moved at a time, or a multiple of it. The longest segments of TCP, those of a loopback,
// have 65,464 bytes or a few more: a block fits into one, with 56 bytes for what goes before it. What is longer by a few bytes
// than whole segments ends in a tiny one, which is sent, acknowledged and received on its own, and wakes its reader once more.
const Block = 64<<10 - 128

// Wrap returns a connection to use in place of conn, if that is a TCP or Unix socket, or lets its socket be read and written
// without it, as a method Bare() [net.Conn] tells. Any other is returned as it is, and one that was wrapped already.
//
// Errors are those of package net.
func Wrap(conn net.Conn) net.Conn {
	if c := wrap(conn); c != nil {
		return c
	}
	return conn
}

// Joiner writes two pieces as one.
type Joiner interface {
	// WriteAfter writes head and then p, without a packet for the head alone if p is not empty. No other write comes between. It
	// returns how much of p was written: nothing, if not all of the head was.
	WriteAfter(head, p []byte) (int, error)
}

// JoinerOf returns the Joiner that [Wrap] has made of the socket below conn; nil if it has not, or conn does not let its socket
// be written without it.
func JoinerOf(conn net.Conn) Joiner {
	for {
		if j, ok := conn.(Joiner); ok {
			return j
		}
		above, ok := conn.(interface{ Bare() net.Conn })
		if !ok {
			return nil
		}
		conn = above.Bare()
	}
}

// GiveWay lets those run first, before each write to the socket below conn, who are ready to. It is for a connection on which
// several have something to say: while one write waits and is made, the others get theirs ready, and all that goes with the
// next one. Layers are passed that tell what is below them by a method NetConn() [net.Conn] or Bare() [net.Conn]; where [Wrap] has
// made nothing of the socket, nothing happens.
func GiveWay(conn net.Conn) {
	for conn != nil {
		switch layer := conn.(type) {
		case interface{ giveWay() }:
			layer.giveWay()
			return
		case interface{ Bare() net.Conn }:
			conn = layer.Bare()
		case interface{ NetConn() net.Conn }:
			conn = layer.NetConn()
		default:
			return
		}
	}
}

// Bare returns the socket that conn lets be read and written without it; conn itself if it is none of those that do.
func Bare(conn net.Conn) net.Conn {
	for {
		above, ok := conn.(interface{ Bare() net.Conn })
		if !ok {
			return conn
		}
		conn = above.Bare()
	}
}

//go:build !unix

package websocket

import "net"

// socket is not to be had: there is no way to wait for a socket without a buffer.
type socket struct{}

func newSocket(net.Conn) *socket { return nil }

func (s *socket) read() (*buffer, int, error) { return nil, 0, net.ErrClosed }

// nudge is not to be had: there is no way to write without waiting.
type nudge struct{}

func newNudge(net.Conn) *nudge { return nil }

func (w *nudge) write([]byte) int { return 0 }

//go:build !unix

package relay

import "net"

// newSocketSource returns nil: there is no way to wait for a socket without a buffer.
func newSocketSource(net.Conn) source { return nil }

// socketTrier is not to be had: there is no way to write without waiting.
type socketTrier struct{}

func newSocketTrier(net.Conn) *socketTrier { return nil }

func (t *socketTrier) write([]byte) (int, error) { return 0, nil }

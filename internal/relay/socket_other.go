//go:build !unix

package relay

import "net"

// newSocketSource returns nil: there is no way to wait for a socket without a buffer.
func newSocketSource(net.Conn) source { return nil }

//go:build !unix

package socket

import "net"

func wrap(net.Conn) net.Conn { return nil }

// Waiting reports true: there is no way to know.
func Waiting(net.Conn) bool { return true }

//go:build !linux

package limit

import (
	"net"
	"time"
)

// keepShort does nothing where the kernel has no such limit.
func keepShort(net.Conn) {}

// giveUpAfter does nothing where the kernel has no such limit.
func giveUpAfter(net.Conn, time.Duration) {}

// pending knows nothing where the kernel does not tell.
func pending(net.Conn) (bool, uint64) { return false, 0 }

//go:build !linux

package tunnel

import "net"

// setOptions does nothing here: the heartbeat alone finds a dead peer.
func setOptions(*net.TCPConn) {}

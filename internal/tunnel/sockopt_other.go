//go:build !linux

package tunnel

import "net"

// setUserTimeout does nothing here: the heartbeat alone finds a dead peer.
func setUserTimeout(*net.TCPConn) {}

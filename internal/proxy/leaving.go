package proxy

import "net"

// leaver tells of a connection whether it is about to be ended from below, so that an answer must be the last one. The zero
// value never does.
type leaver struct {
	below interface{ Ending() bool }
}

// leaverOf looks through the layers of a connection for one that may end it.
func leaverOf(c net.Conn) leaver {
	for c != nil {
		if below, ok := c.(interface{ Ending() bool }); ok {
			return leaver{below}
		}
		layer, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		c = layer.NetConn()
	}
	return leaver{}
}

func (l leaver) ending() bool { return l.below != nil && l.below.Ending() }

// parting reports whether this shall be the last answer of the connection: the node stops, or the connection is ended.
func (x *exchange) parting() bool {
	if x.server.draining.Load() {
		return true
	}
	l, _ := x.r.Context().Value(lifeKey{}).(*lifeOf)
	return l != nil && l.leaving.ending()
}

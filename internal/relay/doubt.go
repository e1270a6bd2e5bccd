package relay

import (
	"errors"
	"net"
	"os"
	"sync"
	"time"
)

// doubtFor is how long who waits for a dry socket may miss that the connection was broken off.
const doubtFor = time.Second

// doubt is whether somebody waits in vain for a socket that was dry: if the connection was broken off right behind the last
// bytes, nothing more will come to wake him. Looking once in a while for what is rare costs less than a read each time.
type doubt struct {
	tcp *net.TCPConn

	mu    sync.Mutex // guards the following
	timer *time.Timer
	armed bool
	found bool // the connection is dead, and the wait was ended by a deadline
	over  bool
}

// arise says that a wait begins.
func (d *doubt) arise() {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.armed:
		return
	case d.timer == nil:
		d.timer = time.AfterFunc(doubtFor, d.look)
	default:
		d.timer.Reset(doubtFor)
	}
	d.armed = true
}

func (d *doubt) look() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.armed = false
	if d.over || !dead(d.tcp) {
		return
	}
	d.found = true
	_ = d.tcp.SetReadDeadline(time.Unix(1, 0)) // fails only on a closed socket, for which nobody waits
}

// raised reports whether a wait that ended with err was ended because of the doubt.
func (d *doubt) raised(err error) bool {
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.found {
		return false
	}
	d.found = false
	return d.tcp.SetReadDeadline(time.Time{}) == nil
}

// end ends all doubt.
func (d *doubt) end() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.over = true
	if d.timer != nil {
		d.timer.Stop()
	}
}

package proxy

import (
	"maps"
	"net"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/pikoproxy/piko/internal/guard"
	"github.com/pikoproxy/piko/internal/limit"
)

// restEnough is how long a connection must have carried nothing to be given up. A client that asks for one thing after the
// other rests between them too, and a new connection would cost more than this one.
const restEnough = time.Second

// resting says since when a connection of net/http carries nothing.
type resting struct{ since atomic.Int64 } // nanoseconds after the epoch; 0: it carries something

// noteRest is told of the lives of the connections of net/http. Those of HTTP/2 rest when no request is in flight.
func (f *front) noteRest(c net.Conn, state http.ConnState) {
	since := int64(0)
	switch state {
	case http.StateNew:
		f.waiting.Store(c, new(resting)) // that its first request comes soon is for another limit to see
		return
	case http.StateClosed, http.StateHijacked:
		f.waiting.Delete(c)
		return
	case http.StateIdle:
		since = time.Now().UnixNano()
	case http.StateActive:
	}
	if r, ok := f.waiting.Load(c); ok {
		r.(*resting).since.Store(since)
	}
}

// Relieve closes the connections of clients that carry nothing, for want of memory.
func (s *Server) Relieve() { s.relieve(time.Now()) }

func (s *Server) relieve(now time.Time) {
	s.mu.Lock()
	fronts := slices.Collect(maps.Keys(s.fronts))
	s.mu.Unlock()
	for _, f := range fronts {
		f.relieve(now)
	}
}

func (f *front) relieve(now time.Time) {
	f.mu.Lock()
	plain := slices.Collect(maps.Keys(f.plain))
	f.mu.Unlock()
	for _, c := range plain {
		if c.interruptRest(now.Add(-restEnough)) {
			f.relieved(c.client)
		}
	}
	before := now.Add(-restEnough).UnixNano()
	f.waiting.Range(func(key, value any) bool {
		c, r := key.(net.Conn), value.(*resting)
		since := r.since.Load()
		if since == 0 || since > before || begun(c) || !r.since.CompareAndSwap(since, 0) {
			return true
		}
		f.relieved(c.RemoteAddr().String())
		_ = c.Close() // it has ended already, if it can't be closed
		return true
	})
}

// begun reports whether a part of a request has come. Of HTTP/2 it need not be asked: that counts by frames.
func begun(c net.Conn) bool {
	g := guard.Of(c)
	return g != nil && g.Begun()
}

func (f *front) relieved(remote string) {
	f.server.report.Reject(limit.Proxy, limit.Resting, logrus.Fields{"remote": remote})
}

// interruptRest ends the connection if it has waited for a request since the given time or longer, and nothing of one has
// come. It reports whether it has waited so long.
func (c *plainConn) interruptRest(before time.Time) bool {
	w := &c.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.idle || w.interrupted || w.since.After(before) || c.guard.Begun() {
		return false
	}
	w.interrupted = true
	_ = c.guard.SetReadDeadline(past) // fails only on a closed connection
	return true
}

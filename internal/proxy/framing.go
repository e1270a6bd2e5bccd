package proxy

import (
	"net/http"
	"time"

	"github.com/pikoproxy/piko/internal/fault"
	"github.com/pikoproxy/piko/internal/guard"
)

// maxTarget bounds the request target when the settings do not, in bytes.
const maxTarget = 16 << 10

// guardLimits is asked at the start of each request head.
func (s *Server) guardLimits(e *edge) guard.Limits {
	c := s.settings.Load()
	return guard.Limits{Bytes: e.limits.MaxHeaderBytes, Fields: c.MaxHeaderFields, Target: c.MaxTargetBytes}
}

// guard returns the guard of the client's connection; nil, of which every method does nothing, for HTTP/2 over TLS.
func (x *exchange) guard() *guard.Conn { return guard.From(x.r.Context()) }

// serveRefused answers what stands in the place of a request that the guard has refused. It reports false for any other
// request.
func (x *exchange) serveRefused() bool {
	if x.r.RequestURI != guard.Target {
		return false
	}
	r := x.guard().Refusal()
	if r == 0 {
		return false
	}
	x.record.method, x.record.path = "", "" // the client's were not understood
	x.w.Header().Set("Connection", "close")
	x.refuse(RefusedFault(r), r)
	x.closeWrite()
	// net/http has begun to wait for the client to leave, by reading what it still sends, as the request seems to have
	// no body.
	leave := time.NewTimer(lingerTimeout)
	defer leave.Stop()
	select {
	case <-x.r.Context().Done():
	case <-leave.C:
	}
	return true
}

// RefusedFault returns how a request is answered that the guard has refused.
func RefusedFault(r guard.Refusal) fault.Fault {
	switch r.Kind() {
	case guard.Malformed:
		return fault.MalformedRequest
	case guard.BadTarget:
		return fault.InvalidTarget
	case guard.LongTarget:
		return fault.TargetTooLong
	case guard.LongHead:
		return fault.HeaderTooLarge
	case guard.ManyFields:
		return fault.TooManyFields
	case guard.BadMethod:
		return fault.MethodNotAllowed
	case guard.Slow:
		return fault.RequestTimeout
	default:
		return fault.BadFraming
	}
}

// discardRefused reads on for a while behind a body that the guard has refused, as closing a connection with something
// unread in it destroys the answer on its way.
func (x *exchange) discardRefused() {
	if x.body == noBody || x.r.ProtoMajor != 1 || x.guard().Refusal() == 0 {
		return
	}
	x.closeWrite()
	x.guard().Discard(lingerTimeout)
}

// closeWrite sends the answer and says that it was the last one.
func (x *exchange) closeWrite() {
	if http.NewResponseController(x.w).Flush() == nil {
		_ = x.guard().CloseWrite() // a client that has gone needs no answer
	}
}

// resume lets the guard read on behind a request that might have changed the protocol, and has not.
func (x *exchange) resume() {
	if !x.switched && x.r.ProtoMajor == 1 && x.r.ProtoMinor > 0 && len(x.lines(hasUpgrade, "Upgrade")) > 0 {
		x.guard().Resume()
	}
}

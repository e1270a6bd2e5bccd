package proxy

import (
	"context"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/pikoproxy/piko/internal/auth"
	"github.com/pikoproxy/piko/internal/fault"
	"github.com/pikoproxy/piko/internal/router"
	"github.com/pikoproxy/piko/internal/syntax"
	"github.com/pikoproxy/piko/internal/tunnel"
)

// exchange is one request and its answer. It is used by the handler's goroutine; what the sender of the request body
// and the watcher of the client share with it is said there. Exchanges are pooled, so nothing may keep one after
// finish.
type exchange struct {
	server   *Server
	settings *Settings
	w        http.ResponseWriter
	r        *http.Request
	plain    *plainConn // nil: by way of net/http
	record   record

	// What the request asks for; set by examine.
	target      string
	endpoint    string
	tenant      string // whose domain the request is for; empty: nobody's
	key         router.Key
	tcp         bool // TCP over WebSocket
	origin      origin
	options     connection
	upgrade     string // the protocol to switch to; empty: none
	maxForwards int64
	expect      bool // the client waits for 100 Continue before it sends the body
	body        framing
	bearer      bool // the Authorization field was for us, and stays here
	identity    *auth.Identity
	lease       auth.Lease
	ending      ending

	last      bool // the connection shall carry no more requests
	reader    *bodyReader
	inline    []byte // a small body, read in advance
	sender    *bodySender
	head      responseHead
	copier    bodyCopier
	responded bool // the head of the final answer was written
	switched  bool // the stream belongs to a relay now
	stopWatch func() bool

	timer struct {
		sync.Mutex
		limit time.Duration
		over  bool // the head has come; the deadline must not be set any more
	}
}

func (s *Server) newExchange(w http.ResponseWriter, r *http.Request) *exchange {
	x, ok := s.exchanges.Get().(*exchange)
	if !ok {
		x = &exchange{reader: &bodyReader{}}
	}
	x.server, x.settings, x.w, x.r = s, s.settings.Load(), w, r
	x.last = x.outlived()
	x.record.begin(r)
	return x
}

// release gives the exchange back, without anything that would keep the request's memory.
func (x *exchange) release() {
	s := x.server
	x.lease.Release()
	inline, fields, names, options := x.inline[:0], x.head.fields, x.head.options.names, x.options.names
	clear(fields[:cap(fields)])
	clear(names[:cap(names)])
	clear(options[:cap(options)])
	reader := x.reader
	reader.body, reader.dog.bark = nil, nil
	*x = exchange{inline: inline, reader: reader}
	x.head.fields, x.head.options.names, x.options.names = fields[:0], names[:0], options[:0]
	s.exchanges.Put(x)
}

// serve answers the request.
func (x *exchange) serve() {
	if x.serveRefused() {
		return
	}
	if f := x.examine(); f != nil {
		x.refuse(*f, nil)
		return
	}
	if f, err := x.authenticate(); f != nil {
		x.refuse(*f, err)
		return
	}
	if !x.lively() {
		x.leave(context.Cause(x.r.Context()))
		return
	}
	switch {
	case x.tcp:
		x.serveTCP()
	case x.r.Method == http.MethodOptions && x.maxForwards == 0:
		// We are the last recipient (RFC 9110, 7.6.2).
		x.w.Header().Set("Allow", allowed)
		x.w.WriteHeader(http.StatusNoContent)
		x.record.status = http.StatusNoContent
	case isGRPC(x.r) && x.serveH2():
	default:
		x.serveHTTP()
	}
}

const allowed = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"

// examine reads the request as far as it concerns a proxy. It changes nothing.
func (x *exchange) examine() *fault.Fault {
	r := x.r
	x.maxForwards = -1
	x.origin = originOf(r, x.peer(), x.settings.TrustedProxies)
	if f := x.limited(); f != nil {
		return f
	}
	if r.Method == http.MethodConnect || r.Method == http.MethodTrace || !syntax.IsToken(r.Method) {
		return &fault.MethodNotAllowed
	}
	if limit := x.settings.MaxHeaderFields; limit > 0 && x.countFields() > limit {
		return &fault.TooManyFields
	}
	if x.settings.Underscores == rejectUnderscores && hasTwin(r.Header) {
		return &fault.AmbiguousField
	}
	if most := x.settings.MaxBodyBytes; most > 0 && r.ContentLength > most {
		return &fault.BodyTooLarge
	}
	if len(r.RequestURI) > x.settings.MaxTargetBytes { // the guard does not see HTTP/2 over TLS
		return &fault.TargetTooLong
	}
	var ok bool
	if x.target, ok = targetOf(r); !ok {
		return &fault.InvalidTarget
	}
	if f := x.name(); f != nil {
		return f
	}
	for _, line := range x.lines(hasConnection, "Connection") {
		x.options.parse(line)
	}
	if x.options.bad || x.options.guarded {
		return &fault.ProtectedHeader
	}
	if r.Method == http.MethodOptions {
		if lines := r.Header["Max-Forwards"]; len(lines) == 1 {
			if n, ok := syntax.ParseLength(lines[0]); ok {
				x.maxForwards = n
			}
		}
	}
	switch {
	case r.ContentLength > 0:
		x.body = byLength
	case r.ContentLength < 0:
		x.body = byChunks
	}
	if x.body != noBody {
		x.startBody()
	}
	return x.expectations()
}

// peer is the address of who sent the request; invalid for a client on a Unix socket.
func (x *exchange) peer() netip.Addr {
	if x.plain != nil {
		return x.plain.peer
	}
	return addrOf(x.r.RemoteAddr)
}

// name finds the endpoint, by the path for TCP, else by header or host.
func (x *exchange) name() (f *fault.Fault) {
	if hasReserved(x.r.URL.Path) || hasReserved(x.target) {
		name, ok := tcpEndpoint(x.target)
		if !ok || x.r.Method != http.MethodGet {
			return &fault.ReservedPath
		}
		x.tcp = true
		x.endpoint, f = parseEndpoint(name)
	} else {
		x.endpoint, f = x.endpointOf()
	}
	x.tenant = x.settings.tenantOf(x.r.Host)
	x.record.endpoint = x.endpoint
	return f
}

// expectations reads Expect and Upgrade.
func (x *exchange) expectations() *fault.Fault {
	r := x.r
	if lines := x.lines(hasExpect, "Expect"); len(lines) > 0 && r.ProtoAtLeast(1, 1) {
		if len(lines) > 1 || !strings.EqualFold(trimOWS(lines[0]), "100-continue") {
			return &fault.ExpectationFailed
		}
		x.expect = x.body != noBody
	}
	// An upgrade is one token, asked for on this connection, over HTTP/1.1 (RFC 9110, 7.8). h2c would let requests
	// through that nobody looks at. Everything else is an ordinary request, from which the field is removed.
	if lines := x.lines(hasUpgrade, "Upgrade"); len(lines) == 1 && x.options.upgrade && r.ProtoMajor == 1 && r.ProtoMinor >= 1 &&
		!x.expect && (x.body == noBody || x.fitsInline()) {
		token := lines[0]
		protocol, _, _ := strings.Cut(token, "/")
		if isProtocol(token) && !strings.EqualFold(protocol, "h2c") && !strings.EqualFold(protocol, "tls") {
			x.upgrade = token
		}
	}
	return nil
}

// isProtocol reports whether s is a token, or two joined by a slash.
func isProtocol(s string) bool {
	name, version, found := strings.Cut(s, "/")
	return syntax.IsToken(name) && (!found || syntax.IsToken(version))
}

// fitsInline reports whether the body is read before the request goes out.
func (x *exchange) fitsInline() bool {
	return x.body == byLength && x.r.ContentLength <= inlineLimit && !x.expect
}

// streamHeader is what an agent is told about the stream.
func (x *exchange) streamHeader(protocol string) tunnel.Header {
	h := tunnel.Header{Endpoint: x.endpoint, Protocol: protocol, Client: x.origin.client}
	if trace := x.lines(hasTrace, "Traceparent"); len(trace) == 1 {
		h.Trace = trace[0]
	}
	return h
}

// watch resets the stream as soon as the client is gone, so that the service need not work for nobody, until unwatch.
func (x *exchange) watch(s *router.Stream) {
	if x.plain != nil {
		x.plain.watch.hold(s)
		return
	}
	x.stopWatch = context.AfterFunc(x.r.Context(), func() { _ = s.Reset() })
}

func (x *exchange) unwatch() {
	if x.plain != nil {
		x.plain.watch.drop()
		return
	}
	x.stopWatch()
}

// awaitHead lets the stream's read deadline end the wait for an answer after d; 0 is no limit.
func (x *exchange) awaitHead(s *router.Stream, d time.Duration) {
	if d <= 0 {
		return
	}
	x.timer.Lock()
	defer x.timer.Unlock()
	if !x.timer.over {
		_ = s.SetReadDeadline(time.Now().Add(d)) // where it can't be set, reading fails by itself
	}
}

// gotHead ends the wait.
func (x *exchange) gotHead(s *router.Stream) {
	if x.body != noBody {
		x.reader.release()
	}
	if x.settings.ResponseHeaderTimeout <= 0 {
		return
	}
	x.timer.Lock()
	defer x.timer.Unlock()
	x.timer.over = true
	_ = s.SetReadDeadline(time.Time{})
}

// refuse answers with an error of ours. It must come before any other answer.
func (x *exchange) refuse(f fault.Fault, err error) {
	x.record.fail(f, err)
	h := x.w.Header()
	if x.parting() {
		h.Set("Connection", "close")
	}
	if x.r.ProtoMajor == 1 && x.body != noBody && !x.bodyEnded() {
		if x.sender != nil || x.expect {
			h.Set("Connection", "close")
		}
		// net/http reads a small rest of the body, to keep the connection; a client that sends slowly must not hold us
		// up.
		x.readDeadline(lingerTimeout)
	}
	if f.Code == fault.MethodNotAllowed.Code || f.Code == fault.BadBody.Code || f.Code == fault.BadFraming.Code {
		// What follows a CONNECT is no HTTP, and after a broken body nobody knows where the next request begins.
		h.Set("Connection", "close")
	}
	if x.r.ProtoMajor != 1 {
		h.Del("Connection")
		x.sayGoodbye()
	}
	x.record.status = f.Status
	x.responded = true
	fault.Write(x.w, x.r, f, detailOf(f, err))
	if f.Code == fault.BadBody.Code || f.Code == fault.BadFraming.Code {
		x.discardRefused()
	}
}

// bodyEnded reports whether the client's request was read to its end, so that its connection can carry another one.
func (x *exchange) bodyEnded() bool {
	switch {
	case x.body == noBody, len(x.inline) > 0:
		return true
	case x.sender != nil:
		return x.sender.ended.Load()
	default:
		return false
	}
}

// abort breaks the connection, or the HTTP/2 stream, of the client: what it has of the answer must not look complete.
func (x *exchange) abort() {
	if x.responded {
		x.copier.flush()
	}
	if !x.r.ProtoAtLeast(1, 1) {
		resetClient(x.w)
	}
	panic(http.ErrAbortHandler)
}

package proxy

import (
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/pikoproxy/piko/internal/fault"
	"github.com/pikoproxy/piko/internal/limit"
	"github.com/pikoproxy/piko/internal/router"
	"github.com/pikoproxy/piko/internal/tunnel"
)

// continueWait is how long a service may take to ask for the body, or to answer, when the client waits for 100
// Continue. Some services do neither (RFC 9110, 10.1.1).
const continueWait = time.Second

// attempt is what came of sending a request on one stream.
type attempt int

const (
	finished attempt = iota // answered, or aborted
	repeat                  // no answer, and it is safe to send the request once more
)

// serveHTTP passes the request on by HTTP/1.1 and the answer back.
//
//	open stream ─> write head and small body ─> 1xx* ─> final head ─> body ─> trailers ─> both sides clean? ─yes─> pool
//	                 └─ larger body: own goroutine, meanwhile the answer ─┘                    └─no─> reset
//
// A stream goes back to the pool only if the request was sent and the answer read to its last byte, and nothing odd was
// seen in between.
func (x *exchange) serveHTTP() {
	if !x.readInline() {
		return
	}
	var tried []*router.Upstream
	for fresh := false; ; fresh = true {
		s, err := x.server.router.Open(x.r.Context(), router.Request{
			Key: x.key, Header: x.streamHeader(tunnel.ProtocolHTTP), Fresh: fresh, Tried: tried, Rested: x.rested(),
		})
		if err != nil {
			x.notOpened(err, fresh)
			return
		}
		x.record.session = s.Upstream().Session().ID()
		if x.try(s, fresh) == finished {
			return
		}
		if !s.Reused() {
			tried = append(tried, s.Upstream())
		}
	}
}

// restLimit is how long a stream may have rested that carries a request which can't be sent twice: less than any service
// keeps an idle connection.
const restLimit = time.Second

// rested says how long the stream may have rested; 0: as long as it likes.
func (x *exchange) rested() time.Duration {
	if x.body != noBody && !x.fitsInline() || !x.idempotent() {
		return restLimit
	}
	return 0
}

// notOpened answers when there is no stream. A retry that found no other upstream reports what the first try met.
func (x *exchange) notOpened(err error, retried bool) {
	switch {
	case x.gone():
		x.leave(err)
	case retried:
		x.refuse(fault.UpstreamBroke, err)
	default:
		x.refuse(*openFault(err), err)
	}
}

// leave ends an exchange whose client has gone, or is to go. It returns only when the client could be told why.
func (x *exchange) leave(err error) {
	if why := x.ended(); why != nil && !x.responded && !clientGone(x.r.Context()) {
		x.w.Header().Set("Connection", "close")
		x.refuse(endedFault(why), why)
		return
	}
	x.record.status, x.record.err = statusClientGone, err
	x.tookBack()
	x.abort()
}

// readInline reads a small body in advance, so that it goes out in one write with the head and can be sent again. It
// reports false when the request is answered already.
func (x *exchange) readInline() bool {
	if !x.fitsInline() {
		return true
	}
	n := int(x.r.ContentLength)
	if cap(x.inline) < n {
		x.inline = make([]byte, n)
	}
	m, err := io.ReadFull(x.reader, x.inline[:n])
	x.record.received = int64(m)
	if err != nil {
		x.brokenBody(err)
		return false
	}
	x.inline = x.inline[:n]
	return true
}

// brokenBody answers a request whose body did not arrive as announced.
func (x *exchange) brokenBody(err error) {
	if x.gone() {
		x.leave(err)
		return
	}
	if r := x.guard().Refusal(); r != 0 {
		x.refuse(fault.BadFraming, r)
		return
	}
	switch {
	case errors.Is(err, errBodyTooLarge):
		x.refuse(fault.BodyTooLarge, err)
	case errors.Is(err, errSlowBody):
		x.record.reason = limit.SlowBody
		x.refuse(fault.RequestTimeout, err)
	default:
		x.refuse(fault.BadBody, err)
	}
}

// try sends the request on the stream and passes the answer back.
func (x *exchange) try(s *router.Stream, again bool) attempt {
	x.watch(s)
	x.endWith(s, nil)
	defer func() {
		x.unwatch()
		x.endWith(nil, nil)
		if !x.switched {
			_ = s.Close() // does nothing when something else has ended the stream, as it should
		}
	}()
	if n, err := x.send(s); err != nil {
		return x.unanswered(s, err, again, n == 0)
	}
	if x.expect {
		x.awaitContinue(s)
	}
	for informational := 0; ; informational++ {
		text, started, err := readHead(s.Reader(), x.settings.MaxResponseHeaderBytes)
		if err != nil && !started {
			return x.unanswered(s, err, again, false)
		}
		if err != nil {
			return x.invalid(s, err)
		}
		if err := x.head.parse(text); err != nil {
			return x.invalid(s, err)
		}
		switch {
		case x.head.status == http.StatusSwitchingProtocols:
			return x.switchProtocol(s)
		case x.head.status >= 200:
			x.gotHead(s)
			x.deliver(s)
			return finished
		case informational == x.settings.MaxInformational:
			return x.invalid(s, malformed("more than %d informational answers", informational))
		}
		x.inform(s)
	}
}

// send writes the head, with a small body, and starts the sender of a larger one. It returns how many bytes were
// written: none when it fails is the proof that nothing was delivered.
func (x *exchange) send(s *router.Stream) (int, error) {
	buf := x.server.heads.Get().(*[]byte)
	defer x.server.heads.Put(buf)
	head := append(x.appendHead((*buf)[:0]), x.inline...)
	if cap(head) <= copyLarge {
		*buf = head[:0]
	}
	n, err := s.Write(head)
	if err != nil {
		return n, err
	}
	switch {
	case x.expect:
	case x.body != noBody && !x.fitsInline():
		x.sendBody(s)
	default:
		x.awaitHead(s, x.settings.ResponseHeaderTimeout)
	}
	return n, nil
}

// awaitContinue waits for the first byte of an answer while the client waits for 100 Continue, and sends the body when
// the service keeps silent.
func (x *exchange) awaitContinue(s *router.Stream) {
	_ = s.SetReadDeadline(time.Now().Add(continueWait))
	_, err := s.Reader().Peek(1)
	_ = s.SetReadDeadline(time.Time{})
	if isTimeout(err) {
		x.sendBody(s)
	}
}

// sendBody starts to send a body that is streamed.
func (x *exchange) sendBody(s *router.Stream) {
	if x.expect && x.r.ProtoMajor == 1 {
		// Written here and not by net/http at the first read, which happens in another goroutine, while this one may be
		// writing an answer. For HTTP/2 net/http has a goroutine of its own for writing.
		x.w.WriteHeader(http.StatusContinue)
	}
	x.sender = &bodySender{
		r: x.r, body: x.reader, stream: s, chunked: x.body == byChunks, done: make(chan struct{}),
		sent: func() { x.awaitHead(s, x.settings.ResponseHeaderTimeout) },
	}
	go x.sender.run(x.server.buffers)
}

// inform passes on an informational answer. 100 Continue goes to a client that waits for it, and only once.
func (x *exchange) inform(s *router.Stream) {
	if x.head.status == http.StatusContinue {
		if x.expect && x.sender == nil {
			x.sendBody(s)
		}
		return
	}
	if !x.r.ProtoAtLeast(1, 1) {
		return
	}
	h := x.w.Header()
	x.copyFields(h)
	x.w.WriteHeader(x.head.status)
	clear(h)
}

// unanswered handles a stream that broke before the first byte of an answer.
func (x *exchange) unanswered(s *router.Stream, err error, again, nothing bool) attempt {
	_ = s.Reset()
	x.stopBody()
	switch {
	case x.sender != nil && x.sender.err != nil:
		x.brokenBody(x.sender.err)
	case x.gone():
		x.leave(err)
	case isTimeout(err):
		s.Failed(err)
		x.refuse(fault.UpstreamTimeout, err)
	case !again && (nothing || x.repeatable()) && x.server.router.Retry():
		if !s.Reused() {
			s.Failed(err)
		}
		return repeat
	default:
		if !s.Reused() {
			s.Failed(err)
		}
		x.refuse(fault.UpstreamBroke, err)
	}
	return finished
}

// repeatable reports whether the request may reach a service twice, and can be sent twice.
func (x *exchange) repeatable() bool {
	return x.sender == nil && x.idempotent()
}

func (x *exchange) idempotent() bool {
	switch x.r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodPut, http.MethodDelete:
		return x.upgrade == ""
	}
	return false
}

// invalid answers when the service's answer makes no sense, or broke off in its head.
func (x *exchange) invalid(s *router.Stream, err error) attempt {
	s.Failed(err)
	_ = s.Reset()
	x.stopBody()
	switch {
	case x.gone():
		x.leave(err)
	case isTimeout(err):
		x.refuse(fault.UpstreamTimeout, err)
	case errors.Is(err, errMalformed):
		x.refuse(fault.InvalidResponse, err)
	default:
		x.refuse(fault.UpstreamBroke, err)
	}
	return finished
}

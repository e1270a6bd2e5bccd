package proxy

import (
	"errors"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/pikoproxy/piko/internal/fault"
	"github.com/pikoproxy/piko/internal/h2"
	"github.com/pikoproxy/piko/internal/router"
	"github.com/pikoproxy/piko/internal/syntax"
	"github.com/pikoproxy/piko/internal/tunnel"
)

// isGRPC reports whether the request needs HTTP/2 all the way: gRPC promises nothing over HTTP/1.1.
func isGRPC(r *http.Request) bool {
	return r.ProtoMajor == 2 && strings.HasPrefix(single(r.Header["Content-Type"]), "application/grpc")
}

// h2Conn is an HTTP/2 connection as a stream keeps it between two exchanges. It carries one at a time: the session below
// multiplexes already, with a window for each stream, so that one slow reader stops nobody else.
type h2Conn struct {
	*h2.Conn
	stream router.Conn
}

// Usable reports whether the connection can carry another exchange. What the service has sent meanwhile is read now: it may
// be a GOAWAY, or the end.
func (c h2Conn) Usable() bool {
	if !c.Conn.Usable() {
		return false
	}
	if s, ok := c.stream.(interface{ Idle() bool }); ok && s.Idle() && c.Empty() {
		return true
	}
	// With a deadline in the past, reading a stream yields what is there and waits for nothing.
	return c.stream.SetReadDeadline(time.Unix(1, 0)) == nil && c.Drain() && c.stream.SetReadDeadline(time.Time{}) == nil
}

// serveH2 passes the request on by HTTP/2. It reports false, having done nothing, when nobody at the endpoint speaks
// it.
func (x *exchange) serveH2() bool {
	var tried []*router.Upstream
	for again := false; ; again = true {
		s, err := x.server.router.Open(x.r.Context(), router.Request{
			Key: x.key, Header: x.streamHeader(tunnel.ProtocolH2), Fresh: again, Tried: tried,
		})
		if errors.Is(err, router.ErrProtocol) && !again {
			return false
		}
		if err != nil {
			x.notOpened(err, again)
			return true
		}
		x.record.session = s.Upstream().Session().ID()
		c, ok := s.Attached().(h2Conn)
		if !ok {
			c = h2Conn{x.server.h2.New(s.Conn()), s.Conn()}
			s.Attach(c)
		}
		k := &call{x: x, s: s, c: c.Conn}
		if k.run(again) == finished {
			return true
		}
		if !s.Reused() {
			tried = append(tried, s.Upstream())
		}
	}
}

// run makes the call and passes the answer on.
func (k *call) run(again bool) attempt {
	x := k.x
	defer k.watch()()
	defer k.end() // does nothing when it was ended before
	err := k.c.Begin(h2.Limits{
		Header: x.settings.MaxResponseHeaderBytes, Fields: maxResponseFields, NoBody: x.r.Method == http.MethodHead,
	})
	if err != nil {
		return k.failed(err, again)
	}
	k.open(again)
	for informational := 0; ; informational++ {
		e, err := k.c.Next(func() {})
		if err == nil && e.Kind == h2.Informational && informational == x.settings.MaxInformational {
			err = malformed("more than %d informational answers", informational)
		}
		if err != nil {
			return k.failed(err, again)
		}
		if e.Kind == h2.Head {
			k.gotHead()
			k.deliver(e)
			return finished
		}
		if e.Status != http.StatusContinue { // for that nobody waits, as the body is on its way already
			k.fields(e)
			x.w.WriteHeader(e.Status)
			clear(x.w.Header())
		}
	}
}

// open queues the head, and lets the body come to it, so that both go out in one write if both are there.
func (k *call) open(again bool) {
	x := k.x
	buf := x.server.heads.Get().(*[]byte)
	defer x.server.heads.Put(buf)
	head := k.appendHead((*buf)[:0])
	if cap(head) <= copyLarge {
		*buf = head[:0]
	}
	k.c.Open(head, x.body == noBody)
	if x.body == noBody {
		k.awaitHead()
		return
	}
	if !again {
		x.inline = x.inline[:0]
	}
	k.sender = &callSender{call: k, done: make(chan struct{})}
	go k.sender.run(again)
	runtime.Gosched()
}

// appendHead writes the head of the request for the service.
func (k *call) appendHead(b []byte) []byte {
	x := k.x
	r := x.r
	authority := r.Host
	if authority == "" {
		authority = x.endpoint
	}
	b = h2.AppendRequest(b, r.Method, authority, x.target)
	for name, lines := range r.Header {
		if !x.keepsField(name) {
			continue
		}
		for _, line := range lines {
			if syntax.IsValue(line) {
				b = h2.AppendField(b, name, line)
			}
		}
	}
	buf := x.server.heads.Get().(*[]byte)
	defer x.server.heads.Put(buf)
	origin := x.origin.append((*buf)[:0], r.Header)
	*buf = origin[:0]
	for line := range strings.SplitSeq(string(origin), crlf) {
		if name, value, ok := strings.Cut(line, ": "); ok && syntax.IsValue(value) {
			b = h2.AppendField(b, name, value)
		}
	}
	if x.answersMaxForwards() {
		b = h2.AppendField(b, "max-forwards", strconv.FormatInt(x.maxForwards-1, 10))
	}
	if hasTrailersOption(r.Header["Te"]) {
		b = h2.AppendField(b, "te", "trailers")
	}
	return k.appendBodyFields(b)
}

// failed answers when the service did not, or lets the request be sent once more.
func (k *call) failed(err error, again bool) attempt {
	x, s := k.x, k.s
	k.end()
	switch body := k.bodyErr(); {
	case x.gone():
		x.leave(err)
	case body != nil:
		x.brokenBody(body)
	case k.late(err):
		s.Failed(err)
		x.refuse(fault.UpstreamTimeout, err)
	case errors.Is(err, h2.ErrUnprocessed) && !again && k.repeatable() && x.server.router.Retry():
		return repeat
	case errors.Is(err, h2.ErrMalformed), errors.Is(err, errMalformed):
		s.Failed(err)
		x.refuse(fault.InvalidResponse, err)
	default:
		if !s.Reused() {
			s.Failed(err)
		}
		k.outwait(err)
		if x.gone() {
			x.leave(err)
			return finished
		}
		x.refuse(fault.UpstreamBroke, err)
	}
	return finished
}

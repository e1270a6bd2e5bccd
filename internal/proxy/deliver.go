package proxy

import (
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/pikoproxy/piko/internal/fault"
	"github.com/pikoproxy/piko/internal/limit"
	"github.com/pikoproxy/piko/internal/router"
	"github.com/pikoproxy/piko/internal/syntax"
	"github.com/pikoproxy/piko/internal/tunnel"
)

// lastWriteWait is how long the end of a request may take to be written when its answer is complete already.
const lastWriteWait = 100 * time.Millisecond

// deliver passes the final answer to the client and ends the exchange with the stream.
func (x *exchange) deliver(s *router.Stream) {
	x.head.bodyFor(x.r.Method)
	x.record.status = x.head.status
	x.responded = true
	x.respond()
	x.startCopier(bodyCopier{
		br: s.Reader(), w: x.w, flusher: x.server.flusher(x.w), buffers: x.server.buffers, dirty: true,
	})
	trailer, err := x.copier.copy(x.head.framing, x.head.length)
	x.record.sent = x.copier.written
	if err != nil {
		x.broken(s, err)
	}
	x.respondTrailer(trailer)
	sent := x.requestSent()
	switch {
	case sent && x.head.persistent():
		s.Release()
	case sent:
		_ = s.Close() // the service said that this is the end, or ended by closing
	default:
		// The answer came before the request had ended. What the service would make of the rest, nobody knows.
		_ = s.Reset()
		x.copier.dirty = true
		x.copier.flush()
		x.stopBody()
	}
}

// respond sends the head of the answer to the client.
func (x *exchange) respond() {
	if x.plain != nil {
		x.plain.w.respond(x)
		return
	}
	h := x.w.Header()
	x.copyFields(h)
	x.finalFields(h)
	x.w.WriteHeader(x.head.status)
}

func (x *exchange) respondTrailer(trailer []field) {
	if x.plain != nil {
		x.plain.w.tail = trailer
		return
	}
	if len(trailer) == 0 {
		return
	}
	// Flushed before, so that net/http does not count a short body and send a length, behind which no trailer fits.
	x.copier.dirty = true
	x.copier.flush()
	h := x.w.Header()
	for _, f := range trailer {
		key := http.TrailerPrefix + f.name
		h[key] = append(h[key], f.value)
	}
}

// requestSent reports whether the service was sent the whole request. A service may answer before it has read the body;
// the last write is then given a moment to end.
func (x *exchange) requestSent() bool {
	switch {
	case x.sender == nil:
		return !x.expect
	case !x.sender.ended.Load():
		return false
	}
	select {
	case <-x.sender.done:
		return x.sender.complete
	default:
	}
	moment := time.NewTimer(lastWriteWait)
	defer moment.Stop()
	select {
	case <-x.sender.done:
		return x.sender.complete
	case <-moment.C:
		return false
	}
}

// broken ends an exchange whose answer breaks off in the middle.
func (x *exchange) broken(s *router.Stream, err error) {
	// The request's body must not go on being read while the connection is being closed.
	_ = s.Reset()
	x.stopBody()
	switch {
	case errors.Is(err, errClient), x.gone():
		if x.record.err = err; x.ended() != nil {
			x.record.err = x.ended()
		}
		if x.copier.slow || isSlowReader(err) {
			x.record.reason = limit.SlowReader
		}
	case x.sender != nil && x.sender.err != nil:
		x.record.fail(fault.BadBody, x.sender.err)
	case errors.Is(err, tunnel.ErrUnread):
		x.record.err, x.record.reason = err, limit.SlowReader // who has left it to us is to blame, and not the service
	default:
		s.Failed(err)
		f := fault.UpstreamBroke
		if errors.Is(err, errMalformed) {
			f = fault.InvalidResponse
		}
		x.record.fail(f, err)
	}
	x.abort()
}

// copyFields sets the end-to-end fields of the answer in h. All values share one slice.
func (x *exchange) copyFields(h http.Header) {
	values := make([]string, len(x.head.fields))
	for i, f := range x.head.fields {
		if !x.keepsAnswerField(f.name) {
			continue
		}
		values[i] = f.value
		if have, ok := h[f.name]; ok {
			h[f.name] = append(have, f.value)
		} else {
			h[f.name] = values[i : i+1 : i+1]
		}
	}
}

// keepsAnswerField reports whether a field of the service's answer goes on to the client.
func (x *exchange) keepsAnswerField(name string) bool {
	switch name {
	case "Connection", "Keep-Alive", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
		"Http2-Settings", fault.Header:
		return false
	case "Content-Length":
		// One of digits, as parseFraming has seen to; and net/http must be told no length that it would not find.
		return x.head.status >= 200 && x.head.status != http.StatusNoContent
	}
	return len(x.head.options.names) == 0 || !x.head.options.removes(name)
}

// finalFields sets what describes the connection to the client and the body, and keeps net/http from guessing.
func (x *exchange) finalFields(h http.Header) {
	if _, ok := h["Content-Type"]; !ok {
		h["Content-Type"] = nil
	}
	if x.head.framing == byChunks && x.head.trailer {
		x.announceTrailer(h)
	}
	if x.r.ProtoMajor != 1 {
		x.sayGoodbye()
		return
	}
	if x.head.status == http.StatusUpgradeRequired && isProtocolList(x.head.upgrade) {
		h["Upgrade"], h["Connection"] = []string{x.head.upgrade}, []string{"Upgrade"}
	}
	if parting := x.parting(); parting && h["Connection"] != nil {
		h["Connection"] = []string{"Upgrade, close"}
	} else if parting {
		h["Connection"] = []string{"close"}
	}
	if !x.bodyEnded() {
		// The rest of the request is not going to be read to its end, so what follows on the connection can't be told
		// from a request. With this, net/http also leaves the body to us alone.
		h["Connection"] = []string{"close"}
	}
}

// announceTrailer passes on the names of the trailer fields that may be sent.
func (x *exchange) announceTrailer(h http.Header) {
	for _, f := range x.head.fields {
		if f.name != "Trailer" {
			continue
		}
		for name := range strings.SplitSeq(f.value, ",") {
			name = http.CanonicalHeaderKey(trimOWS(name))
			if syntax.IsToken(name) && inTrailer(name) {
				h["Trailer"] = append(h["Trailer"], name)
			}
		}
	}
}

func isProtocolList(s string) bool {
	for p := range strings.SplitSeq(s, ",") {
		if !isProtocol(trimOWS(p)) {
			return false
		}
	}
	return true
}

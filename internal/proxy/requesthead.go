package proxy

import (
	"net/http"
	"strconv"
	"strings"

	"github.com/pikoproxy/piko/internal/syntax"
)

// framing says how the body of a message is delimited.
type framing int

const (
	noBody framing = iota
	byLength
	byChunks
	byClose // answers only: the body ends with the stream
)

// appendHead writes the head of the HTTP/1.1 request for the service. Every byte of it is either ours or was checked:
// the method and the target here, names and values by net/http and, for what comes by HTTP/2, again here.
func (x *exchange) appendHead(b []byte) []byte {
	r := x.r
	b = append(b, r.Method...)
	b = append(b, ' ')
	b = append(b, x.target...)
	b = append(b, " HTTP/1.1\r\nHost: "...)
	if r.Host != "" {
		b = append(b, r.Host...)
	} else {
		b = append(b, x.endpoint...) // an HTTP/1.0 client need not name a host; an HTTP/1.1 request must
	}
	b = append(b, "\r\n"...)
	b = x.appendFields(b)
	b = x.origin.append(b, r.Header)
	if x.answersMaxForwards() {
		b = strconv.AppendInt(append(b, "Max-Forwards: "...), x.maxForwards-1, 10)
		b = append(b, "\r\n"...)
	}
	if x.expect {
		b = append(b, "Expect: 100-continue\r\n"...)
	}
	b = x.appendHops(b)
	switch x.body {
	case byLength:
		b = strconv.AppendInt(append(b, "Content-Length: "...), r.ContentLength, 10)
		b = append(b, "\r\n"...)
	case byChunks:
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
		b = appendTrailerNames(b, r.Trailer)
	default:
		switch r.Method {
		case http.MethodPost, http.MethodPut, http.MethodPatch:
			// Services may refuse these methods without a length (RFC 9110, 8.6).
			b = append(b, "Content-Length: 0\r\n"...)
		}
	}
	return append(b, "\r\n"...)
}

// appendFields writes the client's fields that go on to the service, in their order where that is known.
func (x *exchange) appendFields(b []byte) []byte {
	if x.plain != nil {
		for _, f := range x.plain.fields {
			if f.ordinary && !x.options.removes(f.name) || x.keepsField(f.name) {
				b = appendField(b, f.name, f.value)
			}
		}
		return b
	}
	for name, lines := range x.r.Header {
		if x.keepsField(name) {
			for _, line := range lines {
				b = appendField(b, name, line)
			}
		}
	}
	return b
}

// appendHops writes the hop-by-hop fields for the connection to the service, which are ours.
func (x *exchange) appendHops(b []byte) []byte {
	te := hasTrailersOption(x.lines(hasTE, "Te"))
	switch {
	case x.upgrade != "" && te:
		b = append(b, "Connection: Upgrade, TE\r\nTE: trailers\r\n"...)
	case x.upgrade != "":
		b = append(b, "Connection: Upgrade\r\n"...)
	case te:
		b = append(b, "Connection: TE\r\nTE: trailers\r\n"...)
	}
	if x.upgrade != "" {
		b = append(b, "Upgrade: "...)
		b = append(b, x.upgrade...)
		b = append(b, "\r\n"...)
	}
	return b
}

// keepsField reports whether a field of the client goes on to the service as it is.
func (x *exchange) keepsField(name string) bool {
	if t := twin(name); t != name && (dropped(t) || forwarding(t) && x.settings.Underscores != allowUnderscores) {
		return false
	}
	switch {
	case dropped(name), x.options.removes(name), !syntax.IsToken(name):
		return false
	case forwarding(name):
		switch name {
		case "Forwarded", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host":
			return false // written by origin.append
		}
		return x.origin.trusted
	case name == "Authorization":
		return !x.bearer
	case name == "Max-Forwards":
		return !x.answersMaxForwards()
	}
	return true
}

// answersMaxForwards reports whether the request counts its hops, which only OPTIONS and TRACE do (RFC 9110, 7.6.2).
func (x *exchange) answersMaxForwards() bool {
	return x.maxForwards > 0 && x.r.Method == http.MethodOptions
}

func appendField(b []byte, name, value string) []byte {
	if !syntax.IsValue(value) {
		return b
	}
	return appendLine(b, name, value)
}

// appendLine is appendField for a value that has been checked.
func appendLine(b []byte, name, value string) []byte {
	b = append(b, name...)
	b = append(b, ": "...)
	b = append(b, value...)
	return append(b, "\r\n"...)
}

// appendTrailerNames announces the trailer fields that the client has announced and may send.
func appendTrailerNames(b []byte, trailer http.Header) []byte {
	first := true
	for name := range trailer {
		if !syntax.IsToken(name) || !inTrailer(name) {
			continue
		}
		if first {
			b = append(b, "Trailer: "...)
		} else {
			b = append(b, ", "...)
		}
		first = false
		b = append(b, name...)
	}
	if first {
		return b
	}
	return append(b, "\r\n"...)
}

// hasTrailersOption reports whether TE says that trailers are welcome; it is the only option that is not hop-by-hop in
// effect (RFC 9110, 10.1.4).
func hasTrailersOption(lines []string) bool {
	for _, line := range lines {
		for option := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(trimOWS(option), "trailers") {
				return true
			}
		}
	}
	return false
}

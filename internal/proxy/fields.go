package proxy

import (
	"net/http"
	"net/textproto"
	"strings"

	"github.com/pikoproxy/piko/internal/syntax"
)

// maxOptions bounds the names in one message's Connection header. Each is compared with each field, so that without a
// bound a small header would cost a lot of time.
const maxOptions = 32

// dropped reports whether a request field of the client never reaches a service: hop-by-hop fields (RFC 9110, 7.6.1),
// what we write ourselves, and what only we may say. The name is in canonical form.
func dropped(name string) bool {
	switch name {
	case "Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer",
		"Transfer-Encoding", "Upgrade", "Http2-Settings", // hop by hop
		"Host", "Content-Length", "Expect", // written by us
		"Proxy", "Early-Data", "Piko-Error": // httpoxy; said by a TLS terminator only; said by us only
		return true
	}
	return strings.HasPrefix(name, "X-Piko-")
}

// forwarding reports whether a field tells where a request came from. Such fields are believed only when they come from
// a trusted proxy. The name is in canonical form.
func forwarding(name string) bool {
	switch name {
	case "Forwarded", "X-Real-Ip", "True-Client-Ip", "X-Client-Ip", "X-Cluster-Client-Ip":
		return true
	}
	return strings.HasPrefix(name, "X-Forwarded-") || name == "X-Forwarded"
}

// twin returns the canonical name that a CGI-like service takes a name with underscores for: it turns '-' and '_' into
// the same thing, so that `X_Piko_Endpoint` would be read as ours. Names without an underscore are returned as they
// are.
func twin(name string) string {
	if !strings.Contains(name, "_") {
		return name
	}
	return textproto.CanonicalMIMEHeaderKey(strings.ReplaceAll(name, "_", "-"))
}

// hasTwin reports whether a field could be taken for one that only proxies write.
func hasTwin(h http.Header) bool {
	for name := range h {
		if t := twin(name); t != name && (dropped(t) || forwarding(t)) {
			return true
		}
	}
	return false
}

// protected reports whether a Connection header may not name the field: routing, framing, authentication or the origin
// of the request depend on it.
func protected(option string) bool {
	name := textproto.CanonicalMIMEHeaderKey(strings.ReplaceAll(option, "_", "-"))
	switch name {
	case "Host", "Authorization", "Cookie", "Transfer-Encoding", "Expect", "Date", "Via", "Set-Cookie", "Location",
		"Www-Authenticate", "Cache-Control":
		return true
	}
	return forwarding(name) || strings.HasPrefix(name, "X-Piko-") || strings.HasPrefix(name, "Content-")
}

// connection is what the Connection header of a message says.
type connection struct {
	close   bool
	upgrade bool
	names   []string // fields to remove
	guarded bool     // names a protected field, which stays in place
	bad     bool     // holds something that is no token, or too many names
}

// parse reads one line of a Connection header into c.
func (c *connection) parse(line string) {
	for line != "" && !c.bad {
		var option string
		option, line, _ = strings.Cut(line, ",")
		option = trimOWS(option)
		switch {
		case option == "":
		case strings.EqualFold(option, "close"):
			c.close = true
		case strings.EqualFold(option, "keep-alive"), strings.EqualFold(option, "te"):
		case strings.EqualFold(option, "upgrade"):
			c.upgrade = true
		case !syntax.IsToken(option), len(c.names) == maxOptions:
			c.bad = true
		case protected(option):
			c.guarded = true
		default:
			c.names = append(c.names, option)
		}
	}
}

// removes reports whether the field is named.
func (c *connection) removes(name string) bool {
	for _, n := range c.names {
		if strings.EqualFold(n, name) {
			return true
		}
	}
	return false
}

// inTrailer reports whether a field may stand in a trailer: nothing that frames, routes, authenticates or describes the
// message may (RFC 9110, 6.5.1). The name is in canonical form.
func inTrailer(name string) bool {
	name = twin(name)
	switch name {
	case "Authorization", "Cache-Control", "Cookie", "Max-Forwards", "Set-Cookie", "Age", "Date", "Expires", "Location",
		"Pragma", "Range", "Retry-After", "Vary", "Warning", "Www-Authenticate", "Accept-Ranges":
		return false
	}
	if strings.HasPrefix(name, "Content-") || strings.HasPrefix(name, "If-") {
		return false
	}
	return !dropped(name) && !forwarding(name)
}

// countFields returns the number of field lines of the request.
func (x *exchange) countFields() int {
	if x.plain != nil {
		return len(x.plain.fields)
	}
	n := 0
	for _, lines := range x.r.Header {
		n += len(lines)
	}
	return n
}

// trimOWS removes optional white space, which is space and tab only (RFC 9110, 5.6.3).
func trimOWS(s string) string {
	for s != "" && (s[0] == ' ' || s[0] == '\t') {
		s = s[1:]
	}
	for s != "" && (s[len(s)-1] == ' ' || s[len(s)-1] == '\t') {
		s = s[:len(s)-1]
	}
	return s
}

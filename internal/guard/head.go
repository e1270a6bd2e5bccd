package guard

import (
	"bytes"
	"net/netip"
)

// head is what is known of the head that is being read. Every line is judged once, when it is complete, so that the
// verdict does not depend on how the bytes are cut.
type head struct {
	at     int // start of the first line that was not judged
	seen   int // there is no further line feed before this
	fields int // without Host

	begun   bool // the request line was judged
	isHead  bool
	star    bool // the target is "*"
	minor   byte // of the version
	host    bool
	upgrade bool
	sized   bool // there is a Content-Length
	chunked bool
	framed  bool // Trailer names fields that frame
	length  int64

	// Where everything stands, for Next.
	mark   bool
	target span // only the name
	spans  []span
	hostAt int // in spans
}

// judge reads on in b, which begins with the head. It returns the length of the head when it is complete, else 0.
func (h *head) judge(b []byte, l Limits) (int, Refusal) {
	for {
		i := bytes.IndexByte(b[h.seen:], '\n')
		if i < 0 {
			h.seen = len(b)
			if len(b) >= l.Bytes {
				return 0, h.tooLarge()
			}
			return 0, 0
		}
		end := h.seen + i
		if end >= l.Bytes {
			return 0, h.tooLarge()
		}
		if end == h.at || b[end-1] != '\r' {
			return 0, bareLF
		}
		at, line := h.at, b[h.at:end-1]
		h.at, h.seen = end+1, end+1
		var r Refusal
		switch {
		case !h.begun:
			r = h.requestLine(line, l)
			if i := bytes.IndexByte(line, ' ') + 1; r == 0 && h.mark {
				h.target = span{name: i, nameEnd: len(line) - len(" HTTP/1.1")}
			}
		case len(line) == 0:
			return end + 1, h.finish()
		default:
			if r = h.field(line, at); r == 0 && l.Fields > 0 && h.fields > l.Fields {
				r = manyFields
			}
		}
		if r != 0 {
			return 0, r
		}
	}
}

func (h *head) tooLarge() Refusal {
	if !h.begun {
		return longTarget
	}
	return longHead
}

func (h *head) requestLine(line []byte, l Limits) Refusal {
	h.begun = true
	method, rest, found := bytes.Cut(line, []byte{' '})
	if !found {
		return badRequestLine
	}
	target, version, found := bytes.Cut(rest, []byte{' '})
	if !found || len(target) == 0 {
		return badRequestLine
	}
	switch string(version) {
	case "HTTP/1.1":
		h.minor = 1
	case "HTTP/1.0":
	default:
		return badVersion
	}
	if !isToken(method) {
		return badMethod
	}
	h.isHead = string(method) == "HEAD"
	h.star = string(target) == "*"
	switch {
	case string(method) == "CONNECT":
		return connectMethod
	case l.Target > 0 && len(target) > l.Target:
		return longTarget
	case h.star && string(method) == "OPTIONS":
		return 0
	case !isTarget(target):
		return badTarget
	}
	return 0
}

// field judges the field line that stands at the given place of the head.
func (h *head) field(line []byte, at int) Refusal {
	name, value, r := cutField(line)
	if r != 0 {
		return r
	}
	if h.mark {
		// A slice keeps the capacity that tells where it begins.
		v := at + cap(line) - cap(value)
		h.spans = append(h.spans, span{at, at + len(name), v, v + len(value)})
	}
	h.fields++
	switch len(name) {
	case len("host"):
		if equalFold(name, "host") {
			return h.setHost(value)
		}
	case len("upgrade"): // and trailer
		h.upgrade = h.upgrade || equalFold(name, "upgrade")
		h.framed = h.framed || equalFold(name, "trailer") && namesFraming(value)
	case len("content-length"):
		if equalFold(name, "content-length") {
			return h.setLength(value)
		}
	case len("transfer-encoding"):
		if equalFold(name, "transfer-encoding") {
			return h.setCoding(value)
		}
	}
	return 0
}

func (h *head) setHost(value []byte) Refusal {
	if h.host {
		return hostTwice
	}
	h.host = true
	h.hostAt = len(h.spans) - 1
	h.fields-- // one that must be there does not count
	for _, c := range value {
		if classes[c]&hostByte == 0 {
			return badHost
		}
	}
	return 0
}

func (h *head) setLength(value []byte) Refusal {
	if h.sized {
		return lengthTwice
	}
	if len(value) == 0 || len(value) > 18 { // 18 digits cannot overflow
		return badLength
	}
	h.sized = true
	for _, c := range value {
		if c < '0' || c > '9' {
			return badLength
		}
		h.length = h.length*10 + int64(c-'0')
	}
	return 0
}

func (h *head) setCoding(value []byte) Refusal {
	switch {
	case h.chunked:
		return codingTwice
	case !equalFold(value, "chunked"):
		return badCoding
	}
	h.chunked = true
	return 0
}

// finish judges what only the whole head tells.
func (h *head) finish() Refusal {
	switch {
	case h.chunked && h.minor == 0:
		return codingIn10
	case h.chunked && h.sized:
		return codingAndLength
	case h.chunked && h.framed:
		return framingInTrailer
	case !h.host && h.minor > 0:
		return hostMissing
	}
	return 0
}

// namesFraming reports whether a Trailer field announces one that decides where the message ends.
func namesFraming(value []byte) bool {
	for found := true; found; {
		var name []byte
		name, value, found = bytes.Cut(value, []byte{','})
		name = trim(name)
		if equalFold(name, "content-length") || equalFold(name, "transfer-encoding") || equalFold(name, "trailer") {
			return true
		}
	}
	return false
}

// cutField takes a field line apart. White space around the value is not part of it.
func cutField(line []byte) (name, value []byte, r Refusal) {
	if len(line) > 0 && (line[0] == ' ' || line[0] == '\t') {
		return nil, nil, foldedLine
	}
	i := 0
	for i < len(line) && classes[line[i]]&tokenByte != 0 {
		i++
	}
	if i == 0 || i == len(line) || line[i] != ':' {
		return nil, nil, badName
	}
	name, value = line[:i], line[i+1:]
	all := byte(valueByte)
	for _, c := range value {
		all &= classes[c]
	}
	if all == 0 {
		return nil, nil, badValue
	}
	return name, trim(value), 0
}

// trim removes white space around b.
func trim(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	for len(b) > 0 && (b[len(b)-1] == ' ' || b[len(b)-1] == '\t') {
		b = b[:len(b)-1]
	}
	return b
}

// isTarget reports whether target is in origin or absolute form, of visible ASCII and without a fragment, and its
// percent encoding is whole: net/http decodes the path.
func isTarget(target []byte) bool {
	all := byte(targetByte)
	for _, c := range target {
		all &= classes[c]
	}
	if all == 0 {
		return false
	}
	path, _, _ := bytes.Cut(target, []byte{'?'})
	if target[0] != '/' {
		scheme, rest, found := bytes.Cut(path, []byte("://"))
		if !found || (!equalFold(scheme, "http") && !equalFold(scheme, "https")) {
			return false
		}
		authority, _, _ := bytes.Cut(rest, []byte{'/'})
		if !isAuthority(authority) {
			return false
		}
	}
	for {
		i := bytes.IndexByte(path, '%')
		if i < 0 {
			return true
		}
		if len(path) < i+3 || unhex(path[i+1]) < 0 || unhex(path[i+2]) < 0 {
			return false
		}
		path = path[i+3:]
	}
}

// isAuthority reports whether b is a host with or without a port, as net/url takes it. User information is none of it:
// no honest client sends it (RFC 9110, 4.2.4).
func isAuthority(b []byte) bool {
	host, port := b, []byte(nil)
	if i := bytes.LastIndexByte(b, ':'); i > bytes.LastIndexByte(b, ']') {
		host, port = b[:i], b[i+1:]
	}
	for _, c := range port {
		if c < '0' || c > '9' {
			return false
		}
	}
	if n := len(host); n > 2 && host[0] == '[' && host[n-1] == ']' {
		addr, err := netip.ParseAddr(string(host[1 : n-1]))
		return err == nil && addr.Is6() && addr.Zone() == "" // a zone means nothing to another host
	}
	for _, c := range host {
		if classes[c]&hostByte == 0 || c == ':' || c == '[' || c == ']' || c == '%' {
			return false
		}
	}
	return len(host) > 0
}

func isToken(s []byte) bool {
	all := byte(tokenByte)
	for _, c := range s {
		all &= classes[c]
	}
	return all != 0 && len(s) > 0
}

// equalFold reports whether s is lower, which is in lower case, in any case. Letters beyond ASCII are equal to nothing.
func equalFold(s []byte, lower string) bool {
	if len(s) != len(lower) {
		return false
	}
	for i, c := range s {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

func unhex(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// What a byte may be part of.
const (
	tokenByte  = 1 << iota // RFC 9110, 5.6.2
	valueByte              // of a field value or chunk extension: no control byte but the tab (RFC 9110, 5.5)
	targetByte             // visible ASCII, but no '#'
	hostByte               // a host with or without port (RFC 3986, 3.2.2)
)

var classes = func() (t [256]byte) {
	for c := range t {
		if c == '\t' || c >= ' ' && c != 0x7f {
			t[c] |= valueByte
		}
		if c > ' ' && c < 0x7f && c != '#' {
			t[c] |= targetByte
		}
	}
	const alphanumeric = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	for _, c := range "!#$%&'*+-.^_`|~" + alphanumeric {
		t[c] |= tokenByte
	}
	for _, c := range "!$%&'()*+,-.:;=[]_~" + alphanumeric {
		t[c] |= hostByte
	}
	return t
}()

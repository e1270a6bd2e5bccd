package proxy

import (
	"net/http"
	"net/netip"
	"strings"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/syntax"
)

// origin is what we tell a service about where a request came from.
type origin struct {
	trusted bool       // the peer may say where the request came from
	peer    netip.Addr // invalid for a client on a Unix socket
	addr    netip.Addr // that of the peer, or the one that a trusted proxy vouches for
	client  string     // host:port of the peer, or the address that a trusted proxy vouches for
	proto   string     // http or https
	host    string
}

// originOf finds out who sends the request. Peers on a Unix socket are trusted as soon as any proxy is: its file mode
// already decides who may connect.
func originOf(r *http.Request, peer netip.Addr, trusted config.CIDRs) origin {
	o := origin{client: r.RemoteAddr, peer: peer, addr: peer, proto: "http", host: r.Host}
	if r.TLS != nil {
		o.proto = "https"
	}
	if len(trusted) == 0 || (o.peer.IsValid() && !trusted.Contains(o.peer)) {
		return o
	}
	o.trusted = true
	if addr := clientOf(r.Header["X-Forwarded-For"], trusted); addr.IsValid() {
		o.client, o.addr = addr.String(), addr
	}
	if v := single(r.Header["X-Forwarded-Proto"]); strings.EqualFold(v, "http") || strings.EqualFold(v, "https") {
		o.proto = strings.ToLower(v)
	}
	if v := single(r.Header["X-Forwarded-Host"]); v != "" && isHost(v) {
		o.host = v
	}
	return o
}

// addrOf takes the address out of host:port.
func addrOf(hostPort string) netip.Addr {
	ap, err := netip.ParseAddrPort(hostPort)
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap().WithZone("")
}

// clientOf walks X-Forwarded-For from its right end, where the nearest proxy has written, and returns the first address
// that is not a trusted proxy's: further left stands what anybody may have sent. When all are trusted it is the
// leftmost one; something that is no address ends the walk. The result is invalid when there is no address at all.
func clientOf(lines []string, trusted config.CIDRs) (client netip.Addr) {
	for i := len(lines) - 1; i >= 0; i-- {
		rest := lines[i]
		for rest != "" {
			var elem string
			if j := strings.LastIndexByte(rest, ','); j >= 0 {
				rest, elem = rest[:j], rest[j+1:]
			} else {
				rest, elem = "", rest
			}
			addr, ok := parseNode(trimOWS(elem))
			if !ok {
				return client
			}
			client = addr
			if !trusted.Contains(addr) {
				return client
			}
		}
	}
	return client
}

// parseNode reads an address as proxies write it: with or without a port, IPv6 with or without brackets.
func parseNode(s string) (netip.Addr, bool) {
	addr, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]"))
	if err != nil {
		ap, err := netip.ParseAddrPort(s)
		if err != nil {
			return netip.Addr{}, false
		}
		addr = ap.Addr()
	}
	return addr.Unmap().WithZone(""), true
}

// append writes the forwarding fields of the request. What a trusted proxy sent is kept and added to; the lines of
// everybody else were dropped.
func (o *origin) append(b []byte, h http.Header) []byte {
	if o.peer.IsValid() {
		b = append(b, "X-Forwarded-For: "...)
		if o.trusted {
			b = appendList(b, h["X-Forwarded-For"])
		}
		b = append(o.peer.AppendTo(b), "\r\n"...)
	}
	b = append(b, "X-Forwarded-Proto: "...)
	b = append(b, o.proto...)
	b = append(b, "\r\nX-Forwarded-Host: "...)
	b = append(b, o.host...)
	b = append(b, "\r\nForwarded: "...)
	if o.trusted {
		b = appendList(b, h["Forwarded"])
	}
	b = append(b, "for="...)
	switch {
	case !o.peer.IsValid():
		b = append(b, "unknown"...)
	case o.peer.Is4():
		b = o.peer.AppendTo(b)
	default:
		b = append(b, `"[`...)
		b = append(o.peer.AppendTo(b), `]"`...)
	}
	b = append(b, ";host="...)
	if syntax.IsToken(o.host) {
		b = append(b, o.host...)
	} else {
		b = appendQuoted(b, o.host)
	}
	b = append(b, ";proto="...)
	b = append(b, o.proto...)
	return append(b, "\r\n"...)
}

// appendList writes the lines of a list field as one, ready for one more element.
func appendList(b []byte, lines []string) []byte {
	for _, line := range lines {
		if line != "" {
			b = append(append(b, line...), ", "...)
		}
	}
	return b
}

// appendQuoted writes a quoted-string (RFC 9110, 5.6.4).
func appendQuoted(b []byte, s string) []byte {
	b = append(b, '"')
	for i := range len(s) {
		if s[i] == '"' || s[i] == '\\' {
			b = append(b, '\\')
		}
		b = append(b, s[i])
	}
	return append(b, '"')
}

func single(lines []string) string {
	if len(lines) != 1 {
		return ""
	}
	return trimOWS(lines[0])
}

// isHost reports whether s has the bytes of a host and port, and none that could end a field element.
func isHost(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte("-._:[]%", c) >= 0:
		default:
			return false
		}
	}
	return s != ""
}

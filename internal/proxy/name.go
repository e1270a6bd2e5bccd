package proxy

import (
	"errors"
	"net/http"
	"strings"

	"github.com/pikoproxy/piko/internal/endpoint"
	"github.com/pikoproxy/piko/internal/fault"
)

const (
	endpointHeader = "X-Piko-Endpoint"
	reserved       = "_piko"          // the path segment that is ours
	tcpPath        = "/_piko/v1/tcp/" // followed by the endpoint, and preceded by any base path
)

// endpointOf returns the canonical name of the endpoint that the request is for. A header that is there decides alone,
// also when it is empty: what one hop takes for absent, another could take for a name.
func (x *exchange) endpointOf() (string, *fault.Fault) {
	switch lines := x.lines(hasEndpoint, endpointHeader); len(lines) {
	case 0:
	case 1:
		name, err := endpoint.Parse(lines[0])
		if err != nil {
			return "", &fault.InvalidEndpoint
		}
		return name, nil
	default:
		return "", &fault.InvalidEndpoint
	}
	_, name, err := x.settings.Endpoint(x.r.Host)
	switch {
	case err == nil:
		return name, nil
	case errors.Is(err, endpoint.ErrForeign):
		return "", &fault.UnknownDomain
	case errors.Is(err, endpoint.ErrNone):
		return "", &fault.MissingEndpoint
	default:
		return "", &fault.InvalidEndpoint
	}
}

// targetOf returns the request target in origin form, byte for byte as the client sent it, without the authority of an
// absolute form (RFC 9112, 3.2.2). It reports false for a target that holds anything but visible ASCII, or a fragment:
// written into a request line of ours, it could end that line early or be read in two ways.
func targetOf(r *http.Request) (string, bool) {
	target := r.RequestURI
	if target == "" || target[0] != '/' {
		if r.URL.User != nil || (r.URL.Scheme != "http" && r.URL.Scheme != "https") {
			return "", false
		}
		_, rest, found := strings.Cut(target, "://")
		if !found {
			return "", false
		}
		switch i := strings.IndexAny(rest, "/?"); {
		case i < 0:
			target = "/"
		case rest[i] == '?':
			target = "/" + rest[i:]
		default:
			target = rest[i:]
		}
	}
	for i := range len(target) {
		if c := target[i]; c <= ' ' || c >= 0x7f || c == '#' {
			return "", false
		}
	}
	return target, true
}

// hasReserved reports whether a segment of the path is ours in any case. It is asked about the path as it was sent and
// as it reads when decoded, so that no spelling reaches past it.
func hasReserved(path string) bool {
	for {
		i := strings.IndexByte(path, '_')
		if i < 0 {
			return false
		}
		before := i == 0 || path[i-1] == '/'
		rest := path[i:]
		if before && len(rest) >= len(reserved) && strings.EqualFold(rest[:len(reserved)], reserved) &&
			(len(rest) == len(reserved) || rest[len(reserved)] == '/') {
			return true
		}
		path = rest[1:]
	}
}

// tcpEndpoint returns the endpoint named by the path of a TCP over WebSocket request, if target is one.
func tcpEndpoint(target string) (string, bool) {
	path, _, _ := strings.Cut(target, "?")
	i := strings.LastIndex(path, tcpPath)
	if i < 0 {
		return "", false
	}
	name := path[i+len(tcpPath):]
	return name, name != "" && !strings.Contains(name, "/")
}

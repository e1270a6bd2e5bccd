package admin

import (
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// ownHost refuses requests that name a host which a web page could have made up. A page can't read answers of another
// origin, but whoever owns a domain can let its name lead to 127.0.0.1 after the page has loaded ("DNS rebinding"), and
// then that origin is this listener. Such a request still names the domain. With tokens asked for, there is nothing to
// protect: a page does not have one.
func (a *handler) ownHost(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Nor could a page's name be that of our certificate. And where everybody is let in, there is no need for tricks.
		open := !a.Config.AllowUnauthenticated && r.TLS == nil && (a.Guard == nil || !a.Config.Auth.Enabled())
		if open && !a.hostAllowed(r.Host) {
			refuse(w, http.StatusMisdirectedRequest, "bad host")
			return
		}
		next.ServeHTTP(w, r)
	})
}

// hostAllowed reports whether a browser could only have got here by that host on purpose: an address, the name of this
// machine, or a name that the public DNS does not serve. No host at all is not the work of a browser.
func (a *handler) hostAllowed(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	if !strings.Contains(host, ".") || strings.EqualFold(host, a.hostname) {
		return true
	}
	return privateSuffix(host[strings.LastIndexByte(host, '.')+1:])
}

// privateSuffix reports whether names under a top-level domain are never delegated: reserved by RFC 6761, RFC 6762,
// RFC 8375 and ICANN, or customary in clusters and absent from the root.
func privateSuffix(tld string) bool {
	switch tld {
	case "localhost", "local", "internal", "test", "lan", "consul", "svc":
		return true
	}
	return false
}

func isProfile(r *http.Request) bool { return strings.HasPrefix(r.URL.Path, "/debug/pprof/") }

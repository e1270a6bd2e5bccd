package diagnose

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"golang.org/x/net/http/httpproxy"

	"github.com/pikoproxy/piko/internal/tlsconf"
	"github.com/pikoproxy/piko/internal/tunnel"
	"github.com/pikoproxy/piko/internal/websocket"
)

// maxSkew is how far the clocks may be apart before it is a failure: tokens are given for minutes, and checked with some
// seconds of leeway.
const maxSkew = 30 * time.Second

// soon is how long before its end a certificate is worth a word.
const soon = 14 * 24 * time.Hour

// way is the connection that is tried, and what earlier steps have found of it.
type way struct {
	*diagnosis
	target *url.URL
	via    *url.URL // the proxy; nil: direct
	client *tls.Config
	date   string // what the server said the time is, and when that was
	asked  time.Time
}

func (w *way) secure() bool { return w.target.Scheme == "https" || w.target.Scheme == "wss" }

// choose picks the proxy as the agent does.
func (w *way) choose() (*url.URL, error) {
	if via := w.settings.Connect.ProxyURL.URL(); via != nil {
		return via, nil
	}
	u := *w.target
	u.Scheme = "http"
	if w.secure() {
		u.Scheme = "https"
	}
	return httpproxy.FromEnvironment().ProxyFunc()(&u)
}

func (w *way) proxy(context.Context) bool {
	via, err := w.choose()
	switch {
	case err != nil:
		w.fail("proxy", "correct HTTPS_PROXY or HTTP_PROXY in the environment, or set connect.proxy_url", "%v", err)
		return false
	case via == nil:
		w.pass("proxy", "none: the connection is direct")
	default:
		w.via = via
		w.pass("proxy", "%s", via.Redacted())
	}
	return true
}

// next is the address that is connected to: that of the proxy if there is one.
func (w *way) next() (host, port string) {
	u := w.target
	if w.via != nil {
		u = w.via
	}
	if port = u.Port(); port == "" {
		port = map[string]string{"http": "80", "ws": "80", "socks5": "1080", "socks5h": "1080"}[u.Scheme]
		if port == "" {
			port = "443"
		}
	}
	return u.Hostname(), port
}

func (w *way) names(ctx context.Context) bool {
	host, _ := w.next()
	if _, err := netip.ParseAddr(host); err == nil {
		w.pass("names", "%s is an address", host)
		return true
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		w.fail("names", "check the spelling of "+host+", /etc/resolv.conf, and that the name server can be reached", "%v", err)
		return false
	}
	text := make([]string, len(addrs))
	for i, a := range addrs {
		text[i] = a.Unmap().String()
	}
	w.pass("names", "%s is %s", host, strings.Join(text, ", "))
	return true
}

func (w *way) connect(ctx context.Context) bool {
	address := net.JoinHostPort(w.next())
	began := w.now()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		remedy := "check that a node's upstream listener has this address, and that no firewall is between"
		if w.via != nil {
			remedy = "check connect.proxy_url, and that the proxy runs"
		}
		w.fail("connect", remedy, "%v", err)
		return false
	}
	defer conn.Close()
	w.pass("connect", "%s answers within %s", conn.RemoteAddr(), w.now().Sub(began).Round(100*time.Microsecond))
	return true
}

// tls asks for a page of the node, which tells of the certificates and of the time.
func (w *way) tls(ctx context.Context) bool {
	var err error
	if w.client, err = tlsconf.Client("connect.tls", w.settings.Connect.TLS); err != nil {
		w.fail("tls", "correct the section [connect.tls]", "%v", err)
		return false
	}
	u := *w.target
	u.Scheme = strings.NewReplacer("wss", "https", "ws", "http").Replace(u.Scheme)
	u.Path = strings.TrimRight(u.Path, "/") + tunnel.PathTunnel
	u.User = nil
	transport := &http.Transport{
		Proxy: func(*http.Request) (*url.URL, error) { return w.via, nil }, TLSClientConfig: w.client.Clone(),
		DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10,
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), http.NoBody)
	if err != nil {
		w.fail("tls", "correct connect.url", "%v", err)
		return false
	}
	if c := w.settings.Connect; c.Token.IsSet() {
		req.Header.Set("Authorization", "Bearer "+c.Token.Reveal())
		req.Header.Set(tunnel.HeaderTenant, c.TenantID)
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		w.fail("tls", w.tlsRemedy(err), "%s", chainIn(err))
		return false
	}
	w.date, w.asked = resp.Header.Get("Date"), w.now()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
	_ = resp.Body.Close()
	switch {
	case w.secure():
		w.chain(resp.TLS)
	case w.settings.Connect.Token.IsSet() && !loopback(w.target.Hostname()):
		w.fail("tls", "use https:// in connect.url, and [upstream.tls] on the nodes",
			"connect.url has no TLS: everybody on the way can read the token")
	default:
		w.skip("tls", "connect.url has no TLS")
	}
	return true
}

func loopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.IsLoopback()
}

// chain reports a chain of certificates that was accepted.
func (w *way) chain(state *tls.ConnectionState) {
	chain := state.PeerCertificates
	if len(state.VerifiedChains) > 0 {
		chain = state.VerifiedChains[0]
	}
	var names []string
	for _, c := range chain {
		names = append(names, called(c))
	}
	end := chain[0].NotAfter
	text := fmt.Sprintf("%s, %s, until %s", tls.VersionName(state.Version), strings.Join(names, " < "), end.Format(time.DateOnly))
	switch {
	case w.settings.Connect.TLS.InsecureSkipVerify:
		w.fail("tls", "remove connect.tls.insecure_skip_verify, and set connect.tls.ca if the nodes have a CA of their own",
			"%s; nothing of it is verified", text)
	case end.Sub(w.now()) < soon:
		w.pass("tls", "%s: soon", text)
	default:
		w.pass("tls", "%s", text)
	}
}

func called(c *x509.Certificate) string {
	if c.Subject.CommonName != "" {
		return fmt.Sprintf("%q", c.Subject.CommonName)
	}
	if len(c.DNSNames) > 0 {
		return fmt.Sprintf("%q", c.DNSNames[0])
	}
	return "serial " + c.SerialNumber.String()
}

// chainIn is an error with the certificates that were shown.
func chainIn(err error) string {
	text := err.Error()
	if bad, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		for _, c := range bad.UnverifiedCertificates {
			text += fmt.Sprintf("; shown: %s by %q, %s to %s", called(c), c.Issuer.CommonName,
				c.NotBefore.Format(time.DateOnly), c.NotAfter.Format(time.DateOnly))
		}
	}
	return text
}

func (w *way) tlsRemedy(err error) string {
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return "set connect.tls.ca to the certificate of the authority that signed it"
	}
	if e, ok := errors.AsType[x509.HostnameError](err); ok {
		return "use a name that the certificate has (" + strings.Join(e.Certificate.DNSNames, ", ") +
			") in connect.url, or set connect.tls.server_name to it"
	}
	if e, ok := errors.AsType[x509.CertificateInvalidError](err); ok && e.Reason == x509.Expired {
		return "renew the node's certificate; if it has not begun or ended, set the clock of this host"
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return "use http:// in connect.url, or give the nodes [upstream.tls]"
	}
	if _, ok := errors.AsType[tls.AlertError](err); ok {
		return "the node wants a client certificate: set connect.tls.cert and connect.tls.key"
	}
	if w.via != nil {
		return "look into the proxy's log: it must let CONNECT through to " + w.target.Host
	}
	if w.secure() {
		return "check that the node speaks TLS there, and whether it wants connect.tls.cert and connect.tls.key"
	}
	return "check that it is the upstream listener of a node, and whether it wants https://"
}

func (w *way) clock(context.Context) bool {
	theirs, err := http.ParseTime(w.date)
	if err != nil {
		w.skip("clock", "the answer has no time")
		return true
	}
	// The server's time has whole seconds.
	skew := w.asked.Sub(theirs.Add(500 * time.Millisecond)).Round(time.Second)
	if skew.Abs() > maxSkew {
		w.fail("clock", "set the clock, best by chrony or systemd-timesyncd: tokens and certificates depend on it",
			"this host's clock is %s off the server's", signed(skew))
		return true
	}
	w.pass("clock", "%s off the server's", signed(skew))
	return true
}

func signed(d time.Duration) string {
	if d > 0 {
		return "+" + d.String()
	}
	return d.String()
}

func (w *way) handshake(ctx context.Context) bool {
	host, err := os.Hostname()
	if err != nil {
		host = "" // a name only for people
	}
	c := w.settings.Connect
	session, err := tunnel.Dial(ctx, tunnel.DialOptions{
		URL: c.URL, Token: c.Token.Reveal(), TenantID: c.TenantID, TLS: w.client,
		Hello: tunnel.Hello{AgentID: host, Labels: map[string]string{"diagnose": "true"}},
		Proxy: func(*url.URL) (*url.URL, error) { return w.via, nil },
	})
	if err != nil {
		w.fail("handshake", handshakeRemedy(err), "%v", err)
		return false
	}
	w.pass("handshake", "session with node %s, round trip %s", session.NodeID(), session.RTT().Round(10*time.Microsecond))
	if err := session.Shutdown(ctx); err != nil {
		_ = session.CloseNow(err) // its streams are gone either way
	}
	session.Wait()
	return true
}

func handshakeRemedy(err error) string {
	refused, ok := errors.AsType[*websocket.StatusError](err)
	if !ok {
		return "check that nothing between, such as a proxy or balancer, stops WebSocket connections"
	}
	switch refused.Status {
	case http.StatusUnauthorized:
		return "set connect.token_file to a token that the nodes' [upstream.auth] accepts, with connect.tenant_id if it is a tenant's"
	case http.StatusForbidden:
		return "ask for a token or a certificate with the permission"
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		return "the node has enough or stops: try again, and look at upstream.max_sessions"
	case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusBadRequest, http.StatusUpgradeRequired:
		return "connect.url must lead to the upstream listener (port 8001), not the proxy listener, and WebSocket must pass"
	}
	return "look into the log of the node, or of the balancer before it"
}

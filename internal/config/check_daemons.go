package config

import (
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
)

func (l *loader) checkPikod(p *Pikod) {
	all := []listening{{"proxy.listen", p.Proxy.Listen}, {"upstream.listen", p.Upstream.Listen}, {"admin.listen", p.Admin.Listen}}
	if len(p.Consul.Address) > 0 {
		all = append(all, listening{"cluster.listen", p.Cluster.Listen})
	}
	if p.ACME.Enabled() {
		all = append(all, listening{"acme.http_listen", p.ACME.HTTPListen})
	}
	l.apart(all...)
	l.checkACME(p)
	l.checkTLS("proxy.tls", p.Proxy.TLS)
	l.checkAuth("proxy.auth", p.Proxy.Auth)
	l.checkDomains("proxy.domains", p.Proxy.Domains)
	l.checkEndpoints(p.Proxy.Endpoints)
	l.checkTLS("upstream.tls", p.Upstream.TLS)
	l.checkAuth("upstream.auth", p.Upstream.Auth)
	// Where there are tenants, an agent that names none is asked for a token of the listener's own, or refused.
	tokens := p.Upstream.Auth.Enabled() || len(p.Upstream.Tenants) > 0
	l.guarded("upstream", p.Upstream.Listen, p.Upstream.TLS, tokens, p.Upstream.AllowUnauthenticated)
	owners := map[string]string{} // of domains: the keys where they stand
	for _, d := range p.Proxy.Domains {
		owners[d] = "proxy.domains"
	}
	for i, t := range p.Upstream.Tenants {
		key := fmt.Sprintf("upstream.tenants[%d]", i)
		l.checkName(key+".id", t.ID)
		l.checkAuth(key+".auth", t.Auth)
		l.checkDomains(key+".domains", t.Domains)
		for _, d := range t.Domains {
			if owner, taken := owners[d]; taken {
				l.blame(Problem{Key: key + ".domains", Want: "a domain that is nobody else's", Have: quote(d) + ", which stands in " + owner})
			}
			owners[d] = key + ".domains"
		}
		if !t.Auth.Enabled() && !l.bad(key+".auth") {
			l.blame(Problem{Key: key + ".auth", Want: "a key or a key set of the tenant", Have: "none"})
		}
	}
	l.checkAdmin(p.Admin)
	l.checkCluster(p)
}

// checkDomains checks the domains and writes them as they are compared: lower case, no dot at the end.
func (l *loader) checkDomains(key string, domains []string) {
	if l.bad(key) {
		return
	}
	for i, d := range domains {
		name := strings.ToLower(strings.TrimSuffix(d, "."))
		switch {
		case strings.HasPrefix(name, "*."):
			l.blame(Problem{Key: key, Want: "a domain", Have: quote(d), Hint: "write " + quote(name[2:]) + ", which covers its subdomains"})
		case !goodHost(name) || isIP(name):
			l.blame(Problem{Key: key, Want: `a domain such as "piko.example.com"`, Have: quote(d)})
		case slices.Contains(domains[:i], name):
			l.blame(Problem{Key: key, Want: "each domain once", Have: quote(d) + " again"})
		}
		domains[i] = name
	}
}

func (l *loader) checkCluster(p *Pikod) {
	c := p.Cluster
	l.checkName("cluster.name", c.Name)
	l.checkName("cluster.node_id", c.NodeID)
	l.checkName("cluster.zone", c.Zone)
	for part := range strings.SplitSeq(p.Consul.Prefix, "/") {
		if part == "" && p.Consul.Prefix != "" && !l.bad("consul.prefix") {
			l.blame(Problem{Key: "consul.prefix", Want: "names joined by single slashes", Have: quote(p.Consul.Prefix)})
		}
		l.checkName("consul.prefix", part)
	}
	if network, _ := c.Listen.Split(); network == "unix" {
		l.blame(Problem{Key: "cluster.listen", Want: `"host:port" or ":port"`, Have: quote(string(c.Listen)),
			Hint: "other nodes cannot reach a unix socket"})
	}
	if a := c.Advertise; a != "" {
		host, _, err := net.SplitHostPort(a)
		if portless := err != nil; hostPortHint(a, portless) != "" || !portless && (host == "" || everywhere(host)) {
			l.blame(Problem{Key: "cluster.advertise", Want: "a host or host:port that other nodes reach", Have: quote(a)})
		}
	}
	if n := len(c.Secret.Reveal()); n > 0 && n < minSecret {
		l.blame(Problem{Key: "cluster.secret", Want: fmt.Sprintf("%d bytes or more", minSecret), Have: fmt.Sprintf("%d", n),
			Hint: "for example the output of: openssl rand -base64 32"})
	}
	if t := c.TLS; !l.bad("cluster.tls") {
		l.pair("cluster.tls", t.Cert, t.Key)
		if t.Cert != "" && t.CA == "" {
			l.blame(Problem{Key: "cluster.tls.ca", Want: "the CA of the nodes' certificates", Have: "none"})
		}
		if t.CA != "" && t.Cert == "" && t.Key == "" {
			l.blame(Problem{Key: "cluster.tls.cert", Want: "a certificate beside cluster.tls.ca", Have: "none"})
		}
	}
	l.checkConsul(p)
}

func (l *loader) checkConsul(p *Pikod) {
	c := p.Consul
	l.checkToken("consul.token", c.Token)
	secure := false
	for _, a := range c.Address {
		scheme, rest, found := strings.Cut(a, "://")
		if !found {
			scheme, rest = "http", a
		}
		secure = secure || scheme == "https"
		ok := false
		switch scheme {
		case "http", "https":
			u, err := url.Parse(scheme + "://" + rest)
			ok = err == nil && u.User == nil && u.Hostname() != "" && (u.Path == "" || u.Path == "/") &&
				u.RawQuery == "" && hostPortHint(u.Host, u.Port() == "") == ""
		case "unix":
			ok = goodUnixPath(rest)
		}
		if !ok && !l.bad("consul.address") {
			l.blame(Problem{Key: "consul.address", Want: "host:port, http://host:port, https://host:port or unix:///path", Have: quote(a)})
		}
	}
	l.checkClientTLS("consul.tls", c.TLS, secure || len(c.Address) == 0, "it needs https:// in consul.address")
	if len(c.Address) > 0 && !p.Cluster.Secret.IsSet() && !p.Cluster.TLS.Enabled() && !l.bad("cluster", "consul.address") {
		l.blame(Problem{Key: "consul.address", Want: "cluster.secret_file or [cluster.tls] beside it", Have: "neither",
			Hint: "nodes must know each other"})
	}
}

func (l *loader) checkAgent(a *Agent) {
	l.checkConnect(a.Connect.URL, a.Connect.Token, a.Connect.TLS)
	l.checkToken("connect.token", a.Connect.Token)
	l.checkName("connect.tenant_id", a.Connect.TenantID)
	l.checkAdmin(a.Admin)
	for i := range a.Listeners {
		l.checkListener(fmt.Sprintf("listeners[%d]", i), &a.Listeners[i])
	}
	if len(a.Listeners) == 0 {
		l.warn(Problem{Key: "listeners", Have: "there are none, so nothing is offered"})
	}
}

func (l *loader) checkListener(key string, n *Listener) {
	n.Endpoint = l.checkEndpoint(key+".endpoint", n.Endpoint)
	if l.bad(key+".protocol", key+".addr") || n.Addr == "" {
		return
	}
	scheme, network, address := n.Addr.Split()
	switch {
	case n.Protocol == "tcp" && scheme != "":
		l.blame(Problem{Key: key + ".addr", Want: `a port, "host:port" or "unix:/path" for protocol "tcp"`, Have: quote(string(n.Addr))})
	case n.Protocol == "tcp" && n.HostHeader != "":
		l.blame(Problem{Key: key + ".host_header", Want: `protocol "http"`, Have: `protocol "tcp", which has no headers`})
	case n.Protocol == "http" && n.ProxyProtocol != "":
		l.blame(Problem{Key: key + ".proxy_protocol", Want: `protocol "tcp"`, Have: `protocol "http"`,
			Hint: "HTTP services learn the client from X-Forwarded-For"})
	}
	if h := n.HostHeader; h != "" {
		_, _, err := net.SplitHostPort(h)
		if hostPortHint(h, err != nil) != "" {
			l.blame(Problem{Key: key + ".host_header", Want: "host or host:port", Have: quote(h)})
		}
	}
	if host, _, err := net.SplitHostPort(address); network == "tcp" && err == nil && linkLocal(host) {
		l.warn(Problem{Key: key + ".addr", Have: quote(string(n.Addr)) + " is a link-local address, where clouds keep credentials"})
	}
	if h := n.Health; h.Type == "http" && !strings.HasPrefix(h.Path, "/") {
		l.blame(Problem{Key: key + ".health.path", Want: "a path that begins with /", Have: quote(h.Path)})
	}
	l.checkClientTLS(key+".tls", n.TLS, scheme == "https", "it needs https:// in addr")
}

func (l *loader) checkForward(f *Forward) {
	l.checkConnect(f.Connect.URL, f.Connect.Token, f.Connect.TLS)
	l.checkToken("connect.token", f.Connect.Token)
	l.checkAdmin(f.Admin)
	all := []listening{{"admin.listen", f.Admin.Listen}}
	for i := range f.Forwards {
		e := &f.Forwards[i]
		key := fmt.Sprintf("forwards[%d]", i)
		e.Endpoint = l.checkEndpoint(key+".endpoint", e.Endpoint)
		all = append(all, listening{key + ".listen", e.Listen})
	}
	l.apart(all...)
	if len(f.Forwards) == 0 {
		l.warn(Problem{Key: "forwards", Have: "there are none, so nothing is forwarded"})
	}
}

package config

import (
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
)

// ACME holds the settings of certificates that an authority issues by itself (RFC 8555).
type ACME struct {
	// Names to get certificates for. A wildcard can't be had this way: it would take a change of DNS. Empty: none.
	Domains []string `toml:"domains" reload:"live"`
	// Get a certificate also for any other host under `proxy.domains` when a client asks for it and its endpoint is
	// offered. Authorities limit how many they issue for a domain in a week.
	OnDemand bool `toml:"on_demand" reload:"live"`
	// Agree to the terms of service of the authority. Nothing is ordered without.
	AgreeTOS bool `toml:"agree_tos" reload:"live"`
	// Where the authority writes to when something is wrong with a certificate. May be empty.
	Email string `toml:"email" reload:"live"`
	// Directory of the authority.
	DirectoryURL string `toml:"directory_url" reload:"live" required:"true"`
	// File with the CA certificates in PEM form that must have signed the certificate of the authority's own server, for
	// an authority of your own. Empty: those that the system trusts.
	CA File `toml:"ca" reload:"live"`
	// Listeners that serve these certificates, beside those of their own `tls` section: `proxy`, `upstream`, `admin`.
	Listeners []string `toml:"listeners" reload:"live"`
	// Address that the authority's questions over plain HTTP (HTTP-01) are answered at; it asks at port 80. Everything
	// else is redirected to https there. Empty: it must ask over TLS (TLS-ALPN-01), at port 443, which has to lead to
	// the proxy listener.
	HTTPListen Address `toml:"http_listen" reload:"live"`
	// Directory for the account and the certificates. Empty: `acme` in the state directory that systemd gives, else
	// `/var/lib/pikod/acme`. Nodes of a cluster share them through Consul, encrypted under `cluster.secret`, and keep a
	// copy here.
	Directory string `toml:"directory" reload:"live"`
	// Name of the key that an authority gave to its customer (external account binding).
	EABKeyID string `toml:"eab_key_id" reload:"live"`
	// That key, in base64 without padding.
	EABKey Secret `toml:"eab_key" reload:"live"`
	// File that holds `eab_key`.
	EABKeyFile File `toml:"eab_key_file" reload:"live" into:"EABKey"`
}

// Enabled reports whether certificates are ordered.
func (a ACME) Enabled() bool { return len(a.Domains) > 0 || a.OnDemand }

// Serves reports whether a listener serves the certificates.
func (a ACME) Serves(listener string) bool {
	return a.Enabled() && slices.Contains(a.Listeners, listener)
}

// ListenHTTP returns the address that questions over plain HTTP are answered at; none while nothing is ordered.
func (a ACME) ListenHTTP() Address {
	if !a.Enabled() {
		return ""
	}
	return a.HTTPListen
}

func defaultACME() ACME {
	return ACME{DirectoryURL: "https://acme-v02.api.letsencrypt.org/directory", Listeners: []string{"proxy"}}
}

func (l *loader) checkACME(p *Pikod) {
	a := p.ACME
	if l.bad("acme") {
		return
	}
	l.checkACMENames(p)
	u, err := url.Parse(a.DirectoryURL)
	if err != nil || u.User != nil || u.Hostname() == "" || u.Scheme != "https" {
		l.blame(Problem{Key: "acme.directory_url", Want: "an https:// address", Have: quote(a.DirectoryURL)})
	}
	if (a.EABKeyID == "") == a.EABKey.IsSet() {
		l.blame(Problem{Key: "acme.eab_key_id", Want: "acme.eab_key_file beside it, or neither", Have: "only one of the two"})
	}
	for _, name := range a.Listeners {
		conf, known := map[string]TLS{"proxy": p.Proxy.TLS, "upstream": p.Upstream.TLS, "admin": p.Admin.TLS}[name]
		switch {
		case !known:
			l.blame(Problem{Key: "acme.listeners", Want: "proxy, upstream or admin", Have: quote(name)})
		case conf.ClientCA != "" && a.Enabled():
			l.blame(Problem{Key: "acme.listeners", Want: "listeners that ask clients for no certificate",
				Have: quote(name) + " beside " + name + ".tls.client_ca", Hint: "give that listener a certificate from a file"})
		}
	}
	if network, _ := p.Proxy.Listen.Split(); a.Enabled() && a.HTTPListen == "" && (network == "unix" || !a.Serves("proxy")) {
		l.blame(Problem{Key: "acme.http_listen", Want: "an address, since the authority can't ask at the proxy listener", Have: "none"})
	}
	if network, _ := a.HTTPListen.Split(); network == "unix" {
		l.blame(Problem{Key: "acme.http_listen", Want: `"host:port" or ":port"`, Have: quote(string(a.HTTPListen))})
	}
	if a.Enabled() && len(p.Consul.Address) > 0 && !p.Cluster.Secret.IsSet() {
		l.blame(Problem{Key: "acme.domains", Want: "cluster.secret_file beside it", Have: "none",
			Hint: "the nodes share private keys through Consul, encrypted under that secret"})
	}
	if a.Enabled() && !a.AgreeTOS {
		l.blame(Problem{Key: "acme.agree_tos", Want: "true, to agree to the terms of service of the authority", Have: "false"})
	}
}

// checkACMENames checks the domains and writes them in lower case.
func (l *loader) checkACMENames(p *Pikod) {
	for i, d := range p.ACME.Domains {
		name := strings.ToLower(strings.TrimSuffix(d, "."))
		switch {
		case strings.HasPrefix(name, "*."):
			l.blame(Problem{Key: "acme.domains", Want: "a name without a wildcard", Have: quote(d),
				Hint: "acme.on_demand gets one certificate for each host"})
		case !goodHost(name) || net.ParseIP(name) != nil:
			l.blame(Problem{Key: "acme.domains", Want: `a name such as "piko.example.com"`, Have: quote(d)})
		case slices.Contains(p.ACME.Domains[:i], name):
			l.blame(Problem{Key: "acme.domains", Want: "each name once", Have: fmt.Sprintf("%q again", d)})
		}
		p.ACME.Domains[i] = name
	}
	if p.ACME.OnDemand && len(p.Proxy.Domains) == 0 {
		l.blame(Problem{Key: "acme.on_demand", Want: "proxy.domains beside it", Have: "none",
			Hint: "else anybody's domain could be pointed here and exhaust the authority's limits"})
	}
}

package config

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/pikoproxy/piko/internal/endpoint"
)

// The rules of this file are those that one value alone cannot break. A rule stays silent when a key it looks at is known
// to be wrong already, so that one mistake gives one problem.

const (
	minSecret  = 16 // bytes of cluster.secret
	minHMACKey = 32 // bytes of a key for HS256 (RFC 7518, 3.2)
)

// listening is an address that a process listens on.
type listening struct {
	key     string
	address Address
}

// apart reports listeners that would take each other's address.
func (l *loader) apart(all ...listening) {
	for i, a := range all {
		for _, b := range all[:i] {
			if a.address != "" && b.address != "" && !l.bad(a.key, b.key) && overlap(a.address, b.address) {
				wrong, other := a, b
				if _, set := l.places[a.key]; !set {
					wrong, other = b, a // what the operator wrote is what can be changed
				}
				l.blame(Problem{Key: wrong.key, Want: "an address of its own",
					Have: quote(string(wrong.address)) + ", which overlaps with " + other.key + " = " + quote(string(other.address))})
			}
		}
	}
}

// overlap reports whether two listeners cannot both have their address. Names of hosts are not resolved.
func overlap(a, b Address) bool {
	netA, addrA := a.Split()
	netB, addrB := b.Split()
	if netA != netB || netA == "unix" {
		return netA == netB && addrA == addrB
	}
	hostA, portA, errA := net.SplitHostPort(addrA)
	hostB, portB, errB := net.SplitHostPort(addrB)
	if errA != nil || errB != nil {
		return false
	}
	a16, _ := strconv.ParseUint(portA, 10, 16)
	b16, _ := strconv.ParseUint(portB, 10, 16)
	return a16 == b16 && a16 != 0 && (strings.EqualFold(hostA, hostB) || everywhere(hostA) || everywhere(hostB))
}

func everywhere(host string) bool {
	addr, err := netip.ParseAddr(host)
	return host == "" || err == nil && addr.IsUnspecified()
}

// guarded reports a listener that strangers can reach and that asks nobody who they are. Tokens says whether it asks for
// tokens, open whether it need not ask.
func (l *loader) guarded(section string, listen Address, t TLS, tokens, open bool) {
	// A client CA without a certificate is a problem of its own.
	if listen == "" || listen.Local() || tokens || t.ClientCA != "" || l.bad(section) {
		return
	}
	if open {
		l.warn(Problem{Key: section + ".allow_unauthenticated", Have: "everybody who reaches " + quote(string(listen)) +
			" is let in without authentication"})
		return
	}
	_, port, _ := net.SplitHostPort(string(listen))
	l.blame(Problem{Key: section + ".listen", Want: "an address that only this host reaches, such as " + quote("127.0.0.1:"+port),
		Have: quote(string(listen)) + " and no authentication",
		Hint: "or set a key in [" + section + ".auth], or client_ca in [" + section + ".tls], or " + section +
			".allow_unauthenticated = true"})
}

// pair reports a certificate without its key, and the reverse.
func (l *loader) pair(section string, cert, key File) {
	switch {
	case cert != "" && key == "":
		l.blame(Problem{Key: section + ".cert", Want: section + ".key beside it", Have: "none"})
	case key != "" && cert == "":
		l.blame(Problem{Key: section + ".key", Want: section + ".cert beside it", Have: "none"})
	}
}

func (l *loader) checkTLS(section string, t TLS) {
	if l.bad(section) {
		return
	}
	l.pair(section, t.Cert, t.Key)
	if t.ClientCA != "" && !t.Enabled() && t.Key == "" {
		l.blame(Problem{Key: section + ".client_ca", Want: section + ".cert and " + section + ".key beside it", Have: "none"})
	}
}

// checkClientTLS checks a TLS section of connections we open. Used says whether they are TLS at all; how says what makes
// them so.
func (l *loader) checkClientTLS(section string, t ClientTLS, used bool, how string) {
	if l.bad(section) {
		return
	}
	l.pair(section, t.Cert, t.Key)
	if t.ServerName != "" && !goodHost(t.ServerName) && !isIP(t.ServerName) {
		l.blame(Problem{Key: section + ".server_name", Want: "a host name", Have: quote(t.ServerName)})
	}
	if t != (ClientTLS{}) && !used {
		l.warn(Problem{Key: section, Have: "is not used", Hint: how})
	}
	if t.InsecureSkipVerify && used {
		l.warn(Problem{Key: section + ".insecure_skip_verify", Have: "whoever sits between can read and change everything"})
	}
}

func isIP(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil
}

func (l *loader) checkAuth(section string, a Auth) {
	if n := len(a.HMACSecretKey.Reveal()); n > 0 && n < minHMACKey {
		l.warn(Problem{Key: section + ".hmac_secret_key", Have: fmt.Sprintf("a key of %d bytes can be guessed", n),
			Hint: fmt.Sprintf("use %d random bytes or more", minHMACKey)})
	}
	if a.Enabled() && a.Audience == "" {
		l.warn(Problem{Key: section + ".audience", Have: "is empty: tokens that were made for others are taken too",
			Hint: "name this service, and let the issuer write that into aud"})
	}
	key := section + ".jwks.url"
	if a.JWKS.URL == "" || l.bad(key) {
		return
	}
	u, err := url.Parse(string(a.JWKS.URL))
	ok := err == nil && u.User == nil && u.Fragment == ""
	if ok {
		switch u.Scheme {
		case "https":
			ok = u.Hostname() != ""
		case "http":
			ok = loopback(u.Hostname())
		case "file":
			ok = u.Host == "" && strings.HasPrefix(u.Path, "/")
		default:
			ok = false
		}
	}
	if !ok {
		l.blame(Problem{Key: key, Want: "https://..., file:///path, or http:// with a loopback address", Have: quote(a.JWKS.URL.String())})
	}
}

func (l *loader) checkAdmin(a Admin) {
	l.checkTLS("admin.tls", a.TLS)
	l.checkAuth("admin.auth", a.Auth)
	if at, set := l.places["admin.auth.disconnect_on_expiry"]; set && a.Auth.DisconnectOnExpiry {
		l.source.warnings = append(l.source.warnings, Problem{File: at.file, Line: at.line, Key: "admin.auth.disconnect_on_expiry",
			Have: "is not used", Hint: "each request to the admin listener shows its token"})
	}
	l.guarded("admin", a.Listen, a.TLS, a.Auth.Enabled(), a.AllowUnauthenticated)
}

// checkConnect checks where an agent or a forwarder connects to.
func (l *loader) checkConnect(text string, token Secret, t ClientTLS) {
	const key = "connect.url"
	if l.bad(key) || text == "" {
		return
	}
	p := Problem{Key: key, Want: "http://host:port or https://host:port", Have: quote(text)}
	u, err := url.Parse(text)
	if strings.Contains(text, "@") {
		p.Have = "something with a password in it" // perhaps
	}
	if err != nil {
		l.blame(p)
		return
	}
	secure := u.Scheme == "https" || u.Scheme == "wss"
	if !secure && u.Scheme != "http" && u.Scheme != "ws" {
		if (u.Scheme == "" || u.Opaque != "") && !strings.Contains(text, "@") {
			p.Hint = "perhaps " + quote("http://"+text)
		}
		l.blame(p)
		return
	}
	p.Hint = hostPortHint(u.Host, u.Port() == "")
	switch {
	case u.Hostname() == "" || p.Hint != "":
		l.blame(p)
	case u.User != nil:
		p.Hint = "a token goes into connect.token_file"
		l.blame(p)
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		p.Hint = "leave out what follows the path"
		l.blame(p)
	}
	if !secure && token.IsSet() && !loopback(u.Hostname()) {
		l.warn(Problem{Key: key, Have: "the token travels unencrypted", Hint: "use https://"})
	}
	l.checkClientTLS("connect.tls", t, secure, "it needs https:// in connect.url")
}

// checkToken reports a token that cannot stand in a header.
func (l *loader) checkToken(key string, token Secret) {
	if strings.ContainsFunc(token.Reveal(), func(r rune) bool { return r <= ' ' || r > '~' }) && !l.bad(key) {
		l.blame(Problem{Key: key, Want: "one line of letters, digits and signs without spaces", Have: "something else"})
	}
}

// checkEndpoint checks the name of an endpoint and returns its canonical form.
func (l *loader) checkEndpoint(key, name string) string {
	if name == "" || l.bad(key) {
		return name // an empty one is reported as missing
	}
	canonical, err := endpoint.Parse(name)
	if err != nil {
		l.blame(Problem{Key: key, Want: fmt.Sprintf("letters, digits and inner '-', '_' or '.', at most %d", endpoint.MaxLength),
			Have: quote(name)})
		return name
	}
	return canonical
}

// checkName checks a name that becomes part of keys, logs and metrics.
func (l *loader) checkName(key, name string) {
	const most = 63
	ok := len(name) <= most && name != "." && name != ".."
	for i := range len(name) {
		c := name[i]
		ok = ok && (c|0x20 >= 'a' && c|0x20 <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.')
	}
	if !ok && !l.bad(key) {
		l.blame(Problem{Key: key, Want: fmt.Sprintf("letters, digits, '-', '_' and '.', at most %d", most), Have: quote(name)})
	}
}

func linkLocal(host string) bool {
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLinkLocalUnicast()
}

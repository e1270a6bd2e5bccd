package config

import (
	"fmt"
	"net/url"
	"strings"
)

// redacted stands where a secret would be shown.
const redacted = "[redacted]"

// Secret is a text that is never shown. Whatever prints, formats or encodes it writes "[redacted]", or nothing when it
// is empty. The zero value is no secret.
type Secret struct{ text string }

// NewSecret returns text as a secret.
func NewSecret(text string) Secret { return Secret{text} }

// Reveal returns the secret itself. Its result belongs into a header or a key, not into a log or an error.
func (s Secret) Reveal() string { return s.text }

// IsSet reports whether there is a secret.
func (s Secret) IsSet() bool { return s.text != "" }

// String returns "[redacted]", or "" for no secret.
func (s Secret) String() string {
	if s.text == "" {
		return ""
	}
	return redacted
}

// Format writes what String returns, whatever the verb, so that %#v shows no more than %s.
func (s Secret) Format(f fmt.State, _ rune) { fmt.Fprint(f, s.String()) }

// MarshalText returns what String returns.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

func (s *Secret) set(text string) error {
	s.text = text
	return nil
}

// ProxyURL is the address of a proxy that connections are made through. It may hold a password, which is never shown.
// The zero value is no proxy.
type ProxyURL struct{ text string }

const wantProxyURL = `http://host:port, https://host:port or socks5://host:port`

// ParseProxyURL reads the address of a proxy. An empty one is no proxy.
func ParseProxyURL(s string) (ProxyURL, error) {
	if s == "" {
		return ProxyURL{}, nil
	}
	u, err := url.Parse(s)
	if err != nil {
		return ProxyURL{}, &mismatch{want: wantProxyURL, have: "something else"} // err would repeat a password
	}
	known := u.Scheme == "http" || u.Scheme == "https" || u.Scheme == "socks5" || u.Scheme == "socks5h"
	if !known || u.Hostname() == "" || (u.Path != "" && u.Path != "/") || u.RawQuery != "" || u.Fragment != "" {
		return ProxyURL{}, &mismatch{want: wantProxyURL, have: quote(u.Redacted())}
	}
	if hint := hostPortHint(u.Host, u.Port() == ""); hint != "" {
		return ProxyURL{}, &mismatch{want: wantProxyURL, have: quote(u.Redacted())}
	}
	return ProxyURL{s}, nil
}

// URL returns the address with its user and password, or nil for no proxy.
func (p ProxyURL) URL() *url.URL {
	if p.text == "" {
		return nil
	}
	u, err := url.Parse(p.text)
	if err != nil {
		return nil // not reached: ParseProxyURL made the text
	}
	return u
}

// String returns the address with its password masked.
func (p ProxyURL) String() string {
	if u := p.URL(); u != nil {
		return u.Redacted()
	}
	return ""
}

// Format writes what String returns, whatever the verb.
func (p ProxyURL) Format(f fmt.State, _ rune) { fmt.Fprint(f, p.String()) }

// MarshalText returns what String returns.
func (p ProxyURL) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

func (p *ProxyURL) set(s string) (err error) {
	*p, err = ParseProxyURL(s)
	return err
}

// PrivateURL is an address that may hold a secret: in its user and password, or in its query. They are never shown. As a text
// it is the whole address.
type PrivateURL string

// String returns the address without what may be secret.
func (p PrivateURL) String() string {
	u, err := url.Parse(string(p))
	if err != nil {
		return redacted
	}
	if u.User != nil {
		u.User = url.User(redacted)
	}
	if u.RawQuery != "" {
		u.RawQuery = redacted
	}
	u.Fragment, u.RawFragment = "", ""
	// What url.User has escaped is our own.
	return strings.Replace(u.String(), url.User(redacted).String(), redacted, 1)
}

// Format writes what String returns, whatever the verb.
func (p PrivateURL) Format(f fmt.State, _ rune) { fmt.Fprint(f, p.String()) }

// MarshalText returns what String returns.
func (p PrivateURL) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

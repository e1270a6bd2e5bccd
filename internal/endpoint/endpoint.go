// Package endpoint decides what a well-formed endpoint name is and which endpoint a request names.
//
// One canonical form is used everywhere: lower case, at most [MaxLength] bytes. Routing, authorization, logs, metrics
// and the directory see the same string, so that no two parts of Piko can disagree about who is meant.
package endpoint

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// MaxLength is the longest endpoint name in bytes: that of one DNS label (RFC 1035, 2.3.4).
const MaxLength = 63

// ErrNone is returned by [FromHost] for a host that names no endpoint, such as an IP address or a single label.
var ErrNone = errors.New("no endpoint named")

// ErrForeign is returned by [FromHost] for a host that lies under none of the configured domains.
var ErrForeign = errors.New("host is not under a domain of this server")

// Parse returns the canonical form of an endpoint name. A name holds letters, digits, '-', '_' and '.', starts and ends
// with a letter or digit, and is at most [MaxLength] bytes. Names with '_' or '.' can be reached by header only, since
// they are no DNS label; existing agents use them.
func Parse(name string) (string, error) {
	if name == "" {
		return "", errors.New("endpoint name is empty")
	}
	if len(name) > MaxLength {
		return "", fmt.Errorf("endpoint name has %d bytes, at most %d are allowed", len(name), MaxLength)
	}
	upper := false
	for i := range len(name) {
		c := name[i]
		switch {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9':
		case 'A' <= c && c <= 'Z':
			upper = true
		case (c == '-' || c == '_' || c == '.') && i > 0 && i < len(name)-1:
		default:
			return "", fmt.Errorf("endpoint name %q: want letters, digits and inner '-', '_' or '.'", name)
		}
	}
	if upper {
		return strings.ToLower(name), nil
	}
	return name, nil
}

// FromHost returns the endpoint that a Host header or :authority names. With domains, the host must be exactly one label
// under one of them, else [ErrForeign]. Without, the first label of any host of two labels or more is taken. A port and
// one trailing dot are removed. IP addresses and single labels give [ErrNone].
func FromHost(host string, domains []string) (string, error) {
	name, ok := hostname(host)
	if !ok {
		return "", fmt.Errorf("host %q: %w", host, ErrNone)
	}
	label, rest, dotted := strings.Cut(name, ".")
	if len(domains) > 0 {
		for _, d := range domains {
			if dotted && len(rest) == len(d) && strings.EqualFold(rest, d) {
				return Parse(label)
			}
		}
		return "", ErrForeign
	}
	if !dotted || rest == "" {
		return "", ErrNone
	}
	return Parse(label)
}

// hostname removes the port and one trailing dot; it reports false for what can't be a DNS name.
func hostname(host string) (string, bool) {
	if host == "" || host[0] == '[' {
		return "", false
	}
	if name, port, found := strings.Cut(host, ":"); found {
		for i := range len(port) {
			if port[i] < '0' || port[i] > '9' {
				return "", false
			}
		}
		host = name
	}
	host = strings.TrimSuffix(host, ".")
	for i := range len(host) {
		switch c := host[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_', c == '.':
		default:
			return "", false
		}
	}
	// Only what ends in a digit can be an IPv4 address; asking netip about every host would cost on the request path.
	if n := len(host); n > 0 && '0' <= host[n-1] && host[n-1] <= '9' {
		if _, err := netip.ParseAddr(host); err == nil {
			return "", false
		}
	}
	return host, host != ""
}

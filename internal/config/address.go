package config

import (
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// File is the path of a file. After a load it is the path that was found, see [Source.Files].
type File string

func (f *File) set(s string) error {
	if strings.ContainsRune(s, 0) {
		return &mismatch{want: "the path of a file", have: quote(s)}
	}
	*f = File(s)
	return nil
}

// List is a list of texts that may be written as one text when it has one entry.
type List []string

// Address is where a listener listens: "host:port", ":port" or "unix:/path". The zero value is nowhere.
type Address string

const wantAddress = `an address such as "127.0.0.1:8000", ":8000" or "unix:/run/piko.sock"`

// maxUnixPath is the longest path that fits into a sockaddr_un of Linux with its final zero.
const maxUnixPath = 107

// ParseAddress reads the address of a listener. Ports are numbers; 0 lets the system choose one.
func ParseAddress(s string) (Address, error) {
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		if !goodUnixPath(path) {
			return "", &mismatch{want: `"unix:" and an absolute path of at most 107 bytes`, have: quote(s)}
		}
		return Address(s), nil
	}
	if goodPort(s) {
		return "", &mismatch{wantAddress, quote(s), `write ":` + s + `" or "127.0.0.1:` + s + `"`}
	}
	if hint := hostPortHint(s, false); hint != "" {
		return "", &mismatch{wantAddress, quote(s), hint}
	}
	return Address(s), nil
}

// Split returns what net.Listen takes: "tcp" and host:port, or "unix" and a path.
func (a Address) Split() (network, address string) {
	if path, ok := strings.CutPrefix(string(a), "unix:"); ok {
		return "unix", path
	}
	return "tcp", string(a)
}

// Local reports whether only programs on this host can reach the address: a unix socket, a loopback address, or
// "localhost".
func (a Address) Local() bool {
	network, address := a.Split()
	if network == "unix" {
		return true
	}
	host, _, err := net.SplitHostPort(address)
	return err == nil && loopback(host)
}

func (a *Address) set(s string) (err error) {
	if s == "" {
		*a = ""
		return nil
	}
	*a, err = ParseAddress(s)
	return err
}

// ServiceAddress is where an agent finds a service: "3000", "host:port", "unix:/path", "http://host:port" or
// "https://host:port".
type ServiceAddress string

const wantService = `a port, "host:port", "unix:/path", "http://host:port" or "https://host:port"`

// ParseServiceAddress reads the address of a service.
func ParseServiceAddress(s string) (ServiceAddress, error) {
	bad := func(hint string) (ServiceAddress, error) { return "", &mismatch{wantService, quote(s), hint} }
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		if !goodUnixPath(path) {
			return bad("")
		}
		return ServiceAddress(s), nil
	}
	if goodPort(s) && s != "0" {
		return ServiceAddress(s), nil
	}
	hostport, portless := s, false
	if strings.Contains(s, "://") {
		u, err := url.Parse(s)
		switch {
		case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil:
			return bad("")
		case u.Path != "" && u.Path != "/", u.RawQuery != "", u.ForceQuery, u.Fragment != "":
			return bad("a service is addressed without a path, and gets the path of each request")
		}
		hostport, portless = u.Host, u.Port() == ""
	}
	if hint := hostPortHint(hostport, portless); hint != "" {
		return bad(hint)
	}
	if host, port, err := net.SplitHostPort(hostport); err == nil && (host == "" || port == "0") {
		return bad("a host and a port above 0 are needed")
	}
	return ServiceAddress(s), nil
}

// Split returns the scheme ("", "http" or "https") and what net.Dial takes: "tcp" and host:port, or "unix" and a path.
// A lone port is one of localhost; a missing port is that of the scheme.
func (a ServiceAddress) Split() (scheme, network, address string) {
	s := string(a)
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		return "", "unix", path
	}
	if !strings.Contains(s, ":") {
		return "", "tcp", net.JoinHostPort("localhost", s)
	}
	scheme, rest, found := strings.Cut(s, "://")
	if !found {
		return "", "tcp", s
	}
	u, err := url.Parse(s)
	if err != nil {
		return scheme, "tcp", rest // not reached: ParseServiceAddress made the text
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return u.Scheme, "tcp", net.JoinHostPort(u.Hostname(), port)
}

func (a *ServiceAddress) set(s string) (err error) {
	*a, err = ParseServiceAddress(s)
	return err
}

// CIDRs is a set of networks.
type CIDRs []netip.Prefix

const wantCIDR = `a network such as "10.0.0.0/8" or a single address`

// ParseCIDR reads a network in CIDR notation or a single address. IPv4 networks written in IPv6 form become IPv4.
func ParseCIDR(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		addr, err := netip.ParseAddr(s)
		if err != nil || addr.Zone() != "" {
			return netip.Prefix{}, &mismatch{want: wantCIDR, have: quote(s)}
		}
		p = netip.PrefixFrom(addr, addr.BitLen())
	}
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	if p != p.Masked() {
		return netip.Prefix{}, &mismatch{wantCIDR, quote(s), "the network is " + strconv.Quote(p.Masked().String())}
	}
	return p, nil
}

// Contains reports whether one of the networks holds addr.
func (c CIDRs) Contains(addr netip.Addr) bool {
	addr = addr.Unmap().WithZone("")
	return slices.ContainsFunc(c, func(p netip.Prefix) bool { return p.Contains(addr) })
}

func loopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback()
}

func goodUnixPath(path string) bool {
	return filepath.IsAbs(path) && len(path) <= maxUnixPath && !strings.ContainsRune(path, 0)
}

func goodPort(s string) bool {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return false
	}
	_, err := strconv.ParseUint(s, 10, 16)
	return err == nil
}

// hostPortHint says what is wrong with host:port, or with a host alone when portless; "" if nothing is.
func hostPortHint(s string, portless bool) string {
	host := strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")
	if !portless {
		var port string
		var err error
		if host, port, err = net.SplitHostPort(s); err != nil {
			return "a host and a port are joined by one colon, IPv6 addresses stand in brackets"
		}
		if !goodPort(port) {
			return "a port is a number up to 65535"
		}
	}
	switch _, err := netip.ParseAddr(host); {
	case host == "*":
		return "every address of the host is written without the *"
	case err != nil && host != "" && !goodHost(host):
		return "a host is a name or an IP address"
	}
	return ""
}

// goodHost reports whether s can be a host name: labels of letters, digits, '-' and '_'.
func goodHost(s string) bool {
	if len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(s, "."), ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			c := label[i] | 0x20
			if (c < 'a' || c > 'z') && (label[i] < '0' || label[i] > '9') && label[i] != '-' && label[i] != '_' {
				return false
			}
		}
	}
	return true
}

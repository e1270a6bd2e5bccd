package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"
)

// unixMode is the mode of a unix socket we make: its owner and group may connect.
const unixMode = 0o660

// probeTimeout bounds the question whether somebody answers on a unix socket that is in the way.
const probeTimeout = time.Second

// Listen opens the listener of that name: "proxy", "upstream". A socket handed over by systemd under the name is used if
// there is one, and else addr is bound, which is "host:port", ":port" or "unix:/path".
//
// explicit says that the operator has written addr. Then a socket of systemd's with another address is an error, a
// [SettingsError] that tells both ways out: neither of the two may be ignored silently.
//
// A name may be asked for again while its listener is open. With the same address the answer is another listener on the
// same socket: either may be closed, and no client notices. An address that overlaps with the one in use is bound beside it.
//
// A unix socket is made with mode 0660. A socket file left behind by a dead process is replaced; one that somebody
// answers on is an error.
func (p *Process) Listen(name, addr string, explicit bool) (net.Listener, error) {
	ls, err := p.listen(name, addr, explicit)
	if err != nil {
		return nil, err
	}
	p.sockets.opened(ls...)
	if len(ls) == 1 {
		return ls[0], nil
	}
	return newMerged(ls), nil
}

func (p *Process) listen(name, addr string, explicit bool) ([]*socket, error) {
	given := p.sockets.take(name, addr)
	old := p.sockets.named(name)
	var units []*socket
	for _, l := range slices.Concat(given, old) {
		if l.unit {
			units = append(units, l)
		}
	}
	if explicit && len(units) > 0 && !anySame(units, addr) {
		for _, l := range given {
			_ = l.Close()
		}
		return nil, p.contradiction(name, addr, units)
	}
	if len(given) > 0 {
		return given, nil
	}
	var same []*socket
	for _, l := range old {
		known := func(o *socket) bool { return o.Addr().String() == l.Addr().String() } // one of two that are being exchanged
		if !l.unit && !sameAddr(l.Addr(), addr) || slices.ContainsFunc(same, known) {
			continue
		}
		o, err := l.again()
		if err != nil {
			for _, o := range same {
				_ = o.Listener.Close()
			}
			return nil, err
		}
		same = append(same, o)
	}
	if len(same) > 0 {
		return same, nil
	}
	l, err := p.sockets.bind(name, addr, old)
	if err != nil {
		return nil, err
	}
	return []*socket{p.sockets.own(l, name, false)}, nil
}

// contradiction says that settings and systemd name different addresses.
func (p *Process) contradiction(name, addr string, units []*socket) error {
	have := make([]string, len(units))
	for i, l := range units {
		have[i] = l.Addr().String()
	}
	slices.Sort(have)
	return &SettingsError{fmt.Errorf("the settings say %s, but systemd handed over a socket at %s: "+
		"remove the address from the settings and set it with `systemctl edit %[3]s-%[4]s.socket`, "+
		"or give up the socket with `systemctl mask --now %[3]s-%[4]s.socket`",
		addr, strings.Join(slices.Compact(have), " and "), p.Name, name)}
}

// bind opens a new socket. old are the listeners that are about to be replaced by it.
func (s *sockets) bind(name, addr string, old []*socket) (net.Listener, error) {
	path, isUnix := strings.CutPrefix(addr, "unix:")
	if isUnix {
		return bindUnix(path)
	}
	l, err := net.Listen("tcp", addr)
	switch {
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, fmt.Errorf("%w: no interface of this host has the address", err)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("%w: a port below 1024 wants the capability CAP_NET_BIND_SERVICE, or a socket from systemd", err)
	case !errors.Is(err, syscall.EADDRINUSE):
		return l, err
	}
	var near []*socket
	for _, o := range old {
		if samePort(o.Addr(), addr) {
			near = append(near, o)
		}
	}
	if len(near) > 0 {
		if l, err := s.beside(near, addr); err == nil {
			return l, nil
		}
	}
	if other := s.holder(addr); other != "" && other != name {
		return nil, fmt.Errorf("%w: the %s listener has it; move that one away first, and this one here afterwards", err, other)
	}
	return nil, fmt.Errorf("%w: another process has it, or this one is running twice", err)
}

// holder returns the name of a listener of this process with the same port.
func (s *sockets) holder(addr string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for l := range s.open {
		if samePort(l.Addr(), addr) {
			return l.name
		}
	}
	return ""
}

func samePort(have net.Addr, want string) bool {
	t, ok := have.(*net.TCPAddr)
	if !ok {
		return false
	}
	_, port, err := net.SplitHostPort(want)
	if err != nil {
		return false
	}
	n, err := net.LookupPort("tcp", port)
	return err == nil && n == t.Port
}

func bindUnix(path string) (net.Listener, error) {
	if err := removeStale(path); err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: its directory has to be there", err)
	}
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, unixMode); err != nil {
		_ = l.Close()
		return nil, err
	}
	return l, nil
}

// removeStale removes the socket file at path if nobody answers on it. Anything but a socket stays, and bind fails.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s is in the way and is no socket: move it, or choose another path", path)
	}
	c, err := net.DialTimeout("unix", path, probeTimeout)
	if err == nil {
		_ = c.Close()
		return fmt.Errorf("%s is in use: another process answers on it", path)
	}
	// Only a refusal proves that nobody has it: a full backlog or a lack of permission does not.
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("%s is in the way: %w", path, err)
	}
	return os.Remove(path)
}

// anySame reports whether one of the listeners has the address an operator wrote.
func anySame(ls []*socket, addr string) bool {
	for _, l := range ls {
		if sameAddr(l.Addr(), addr) {
			return true
		}
	}
	return false
}

// sameAddr compares as far as it can without asking DNS: a host name is not looked up, and counts as different unless it
// is "localhost". An empty host and the unspecified addresses are the same.
func sameAddr(have net.Addr, want string) bool {
	if path, ok := strings.CutPrefix(want, "unix:"); ok {
		u, ok := have.(*net.UnixAddr)
		return ok && u.Name == path
	}
	t, ok := have.(*net.TCPAddr)
	if !ok {
		return false
	}
	host, port, err := net.SplitHostPort(want)
	if err != nil {
		return false
	}
	if n, err := net.LookupPort("tcp", port); err != nil || n != t.Port {
		return false
	}
	if host == "localhost" {
		return t.IP.IsLoopback()
	}
	if host == "" {
		return t.IP == nil || t.IP.IsUnspecified()
	}
	ip := net.ParseIP(host)
	return ip != nil && (ip.Equal(t.IP) || ip.IsUnspecified() && (t.IP == nil || t.IP.IsUnspecified()))
}

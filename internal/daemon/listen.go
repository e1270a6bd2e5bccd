package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
)

// unixMode is the mode of a unix socket we make: its owner and group may connect.
const unixMode = 0o660

// probeTimeout bounds the question whether somebody answers on a unix socket that is in the way.
const probeTimeout = time.Second

// sockets are the listening sockets handed over by systemd, by name. Each is given out once.
type sockets struct {
	mu     sync.Mutex
	byName map[string][]net.Listener
}

// inherit takes over the sockets of systemd's socket activation (sd_listen_fds(3)). It may be called once in a process,
// since it takes them out of the environment so that no child believes them to be its own.
func inherit() (*sockets, error) {
	s := &sockets{byName: map[string][]net.Listener{}}
	var errs []error
	for _, f := range activation.Files(true) {
		l, err := net.FileListener(f)
		if err != nil {
			errs = append(errs, fmt.Errorf("socket %q from systemd is no stream socket that listens: %w", f.Name(), err))
		} else {
			s.byName[f.Name()] = append(s.byName[f.Name()], l)
		}
		// FileListener works on a duplicate.
		_ = f.Close()
	}
	return s, errors.Join(errs...)
}

// take removes and returns the sockets of that name.
func (s *sockets) take(name string) []net.Listener {
	s.mu.Lock()
	defer s.mu.Unlock()
	ls := s.byName[name]
	delete(s.byName, name)
	return ls
}

// left returns the names of the sockets that nobody has taken, in order.
func (s *sockets) left() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.byName))
}

// Listen opens the listener of that name: "proxy", "upstream". A socket handed over by systemd under the name is used if
// there is one, the first time it is asked for; else addr is bound, which is "host:port", ":port" or "unix:/path".
//
// explicit says that the operator has written addr. Then a socket of systemd's with another address is an error, a
// [SettingsError] that tells both ways out: neither of the two may be ignored silently.
//
// A unix socket is made with mode 0660. A socket file left behind by a dead process is replaced; one that somebody
// answers on is an error.
func (p *Process) Listen(name, addr string, explicit bool) (net.Listener, error) {
	inherited := p.sockets.take(name)
	if len(inherited) == 0 {
		return bind(name, addr)
	}
	if explicit && !anySame(inherited, addr) {
		have := make([]string, len(inherited))
		for i, l := range inherited {
			have[i] = l.Addr().String()
			_ = l.Close()
		}
		return nil, &SettingsError{fmt.Errorf("listener %s: the settings say %s, but systemd handed over a socket at %s: "+
			"remove the address from the settings and set it with `systemctl edit %[4]s-%[1]s.socket`, "+
			"or give up the socket with `systemctl mask --now %[4]s-%[1]s.socket`",
			name, addr, strings.Join(have, " and "), p.Name)}
	}
	if len(inherited) == 1 {
		return inherited[0], nil
	}
	return newMerged(inherited), nil
}

func bind(name, addr string) (net.Listener, error) {
	path, isUnix := strings.CutPrefix(addr, "unix:")
	if !isUnix {
		l, err := net.Listen("tcp", addr)
		if errors.Is(err, syscall.EADDRINUSE) {
			return nil, fmt.Errorf("listener %s: %w: another process has it, or this one is running twice", name, err)
		}
		if err != nil {
			return nil, fmt.Errorf("listener %s: %w", name, err)
		}
		return l, nil
	}
	if err := removeStale(path); err != nil {
		return nil, fmt.Errorf("listener %s: %w", name, err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listener %s: %w", name, err)
	}
	if err := os.Chmod(path, unixMode); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("listener %s: %w", name, err)
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
func anySame(ls []net.Listener, addr string) bool {
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

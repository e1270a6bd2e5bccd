package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"
)

// sockets are the listening sockets of this process: those it was given and nobody has asked for yet, and those that are
// open.
type sockets struct {
	mu      sync.Mutex // guards the following, and the fields of sockets
	waiting map[string][]*socket
	open    map[*socket]struct{}
}

// socket is one listener. Several may stand for the same socket of the kernel, and accept from the same queue.
type socket struct {
	net.Listener
	home    *sockets
	name    string
	unit    bool   // systemd's, which decides about its address
	path    string // of the file that goes with it; "": there is none, or it is not ours
	passed  bool   // another process has it too
	closing sync.Once
	err     error // of Close
}

// own makes a listener one of the process.
func (s *sockets) own(l net.Listener, name string, unit bool) *socket {
	o := &socket{Listener: l, home: s, name: name, unit: unit}
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false) // others may stand for the same file: see Close
		if addr, ok := u.Addr().(*net.UnixAddr); ok && !unit && addr.Name != "" && addr.Name[0] != '@' {
			o.path = addr.Name
		}
	}
	return o
}

// opened notes that listeners are in use.
func (s *sockets) opened(ls ...*socket) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		s.open = map[*socket]struct{}{}
	}
	for _, l := range ls {
		s.open[l] = struct{}{}
	}
}

// Close closes the listener. The file of a Unix socket goes with the last listener that stands for it.
func (l *socket) Close() error {
	l.closing.Do(func() {
		s := l.home
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.open, l)
		l.err = l.Listener.Close()
		if l.path == "" || l.passed {
			return
		}
		for other := range s.open {
			if other.path == l.path {
				return
			}
		}
		if err := os.Remove(l.path); err != nil && !errors.Is(err, os.ErrNotExist) {
			l.err = errors.Join(l.err, err)
		}
	})
	return l.err
}

// control runs f with the file descriptor.
func (l *socket) control(f func(fd int) error) error {
	c, ok := l.Listener.(syscall.Conn)
	if !ok {
		return fmt.Errorf("a listener of type %T has no file descriptor", l.Listener)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = f(int(fd)) })
	return errors.Join(err, failed)
}

// duplicate returns a file descriptor for the same socket, which the caller closes. Neither it nor the listener becomes
// blocking by that, as both would by os.File.Fd.
func (l *socket) duplicate() (dup int, err error) {
	err = l.control(func(fd int) (err error) {
		dup, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		return err
	})
	return dup, err
}

// again returns another listener for the same socket.
func (l *socket) again() (*socket, error) {
	fd, err := l.duplicate()
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), l.name)
	defer func() { _ = f.Close() }() // FileListener works on a duplicate
	other, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	o := l.home.own(other, l.name, l.unit)
	o.path = l.path
	return o, nil
}

// allow lets other sockets of this user have the same port, or not any more (SO_REUSEPORT, socket(7)).
func (l *socket) allow(others bool) error {
	on := 0
	if others {
		on = 1
	}
	return l.control(func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, on) })
}

// beside binds an address that overlaps with those of open listeners, as :8000 does with 127.0.0.1:8000. The permission
// for it lasts no longer than it takes: another process that wants the address must go on being told that it is taken.
func (s *sockets) beside(old []*socket, addr string) (net.Listener, error) {
	for _, l := range old {
		if err := l.allow(true); err != nil {
			return nil, err
		}
		defer func() { _ = l.allow(false) }() // it has just been possible
	}
	share := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
		return errors.Join(err, failed)
	}}
	l, err := share.Listen(context.Background(), "tcp", addr)
	if err != nil {
		return nil, err
	}
	if err := s.own(l, "", false).allow(false); err != nil {
		_ = l.Close()
		return nil, err
	}
	return l, nil
}

// named returns the open listeners of a name.
func (s *sockets) named(name string) []*socket {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*socket
	for l := range s.open {
		if l.name == name {
			all = append(all, l)
		}
	}
	return all
}

// take removes and returns the sockets of that name that wait to be asked for: all that are systemd's, and of those of a
// predecessor the one with the address.
func (s *sockets) take(name, addr string) []*socket {
	s.mu.Lock()
	defer s.mu.Unlock()
	var taken, rest []*socket
	for _, l := range s.waiting[name] {
		if l.unit || len(taken) == 0 && sameAddr(l.Addr(), addr) {
			taken = append(taken, l)
		} else {
			rest = append(rest, l)
		}
	}
	if s.waiting != nil {
		s.waiting[name] = rest
	}
	return taken
}

// left returns the names of systemd's sockets that nobody has asked for, in order, and closes what a predecessor had and
// nobody wants any more.
func (s *sockets) left() []string {
	s.mu.Lock()
	var units []string
	var closing []*socket
	for _, name := range slices.Sorted(maps.Keys(s.waiting)) {
		for _, l := range s.waiting[name] {
			if l.unit && !slices.Contains(units, name) {
				units = append(units, name)
			} else if !l.unit {
				closing = append(closing, l)
			}
		}
		s.waiting[name] = slices.DeleteFunc(s.waiting[name], func(l *socket) bool { return !l.unit })
	}
	s.mu.Unlock()
	for _, l := range closing {
		_ = l.Close() // nothing was accepted
	}
	return units
}

// inherit takes over the sockets of systemd's socket activation (sd_listen_fds(3)), or of a predecessor. It may be called
// once in a process, since it takes them out of the environment so that no child believes them to be its own.
func inherit(from *legacy) (*sockets, error) {
	s := &sockets{waiting: map[string][]*socket{}}
	var errs []error
	for i, f := range activation.Files(true) {
		l, err := net.FileListener(f)
		if err != nil {
			errs = append(errs, fmt.Errorf("socket %q from systemd is no stream socket that listens: %w", f.Name(), err))
		} else {
			s.waiting[f.Name()] = append(s.waiting[f.Name()], s.own(l, f.Name(), from.isUnit(i)))
		}
		// FileListener works on a duplicate.
		_ = f.Close()
	}
	return s, errors.Join(errs...)
}

package daemon

import (
	"errors"
	"net"
	"sync"
)

// merged makes one listener of several, for a socket unit with more than one ListenStream=.
type merged struct {
	listeners []*socket
	accepted  chan accepted // never closed: done says when nobody reads it any more
	done      chan struct{} // closed by Close
	start     sync.Once
	stop      sync.Once
	wg        sync.WaitGroup

	mu   sync.Mutex // guards the following
	left []net.Conn // accepted before Close, and not returned yet
}

type accepted struct {
	conn net.Conn
	err  error
}

func newMerged(ls []*socket) *merged {
	return &merged{listeners: ls, accepted: make(chan accepted), done: make(chan struct{})}
}

// Accept returns the next connection of any of the sockets. As with a single socket, what was accepted when it is closed is
// not lost: it is returned before the error that says so.
func (m *merged) Accept() (net.Conn, error) {
	m.start.Do(func() {
		for _, l := range m.listeners {
			m.wg.Go(func() { m.acceptFrom(l) })
		}
	})
	select {
	case a := <-m.accepted:
		return a.conn, a.err
	case <-m.done:
		m.wg.Wait() // all sockets are being closed
		return m.last()
	}
}

func (m *merged) last() (net.Conn, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.left) == 0 {
		return nil, net.ErrClosed
	}
	conn := m.left[0]
	m.left = m.left[1:]
	return conn, nil
}

func (m *merged) acceptFrom(l *socket) {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		select {
		case m.accepted <- accepted{c, err}:
		case <-m.done:
			if c != nil {
				m.mu.Lock()
				m.left = append(m.left, c)
				m.mu.Unlock()
			}
			return
		}
	}
}

// Close closes all sockets and returns when no goroutine accepts any more.
func (m *merged) Close() error {
	var errs []error
	m.stop.Do(func() {
		close(m.done)
		for _, l := range m.listeners {
			errs = append(errs, l.Close())
		}
	})
	m.start.Do(func() {}) // an Accept that has not begun must not begin now
	m.wg.Wait()
	return errors.Join(errs...)
}

// Addr returns the address of the first socket.
func (m *merged) Addr() net.Addr { return m.listeners[0].Addr() }

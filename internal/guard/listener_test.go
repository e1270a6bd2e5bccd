package guard

import (
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A server that is stopped while it starts closes its listener beside the first Accept. The race detector is the judge.
func TestListenerIsClosedBesideItsFirstAccept(t *testing.T) {
	for range 200 {
		inner, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		l := NewListener(inner, Options{TLS: &tls.Config{MinVersion: tls.VersionTLS12}})
		var both sync.WaitGroup
		both.Go(func() {
			if _, err := l.Accept(); err == nil {
				t.Error("a connection that nobody made")
			}
		})
		both.Go(func() { _ = l.Close() })
		both.Wait()
	}
}

// wakingListener is one whose Close wakes who accepts before it has closed anything, as that of package net may.
type wakingListener struct {
	net.Listener
	begun, woken chan struct{}
	told, quiet  <-chan struct{} // closed when others know of it
	early        bool            // they did before this was closed
}

func (l *wakingListener) Accept() (net.Conn, error) {
	close(l.begun)
	<-l.woken
	return nil, net.ErrClosed
}

func (l *wakingListener) Close() error {
	close(l.woken)
	select {
	case <-l.told:
		l.early = true
	case <-l.quiet:
		l.early = true
	case <-time.After(50 * time.Millisecond): // nobody does, if all is well
	}
	return nil
}

// Who is told that nothing is accepted any more may rely on it: the socket is closed by then.
func TestListenerIsClosedWhenAcceptSaysSo(t *testing.T) {
	for name, o := range map[string]Options{
		"plain": {}, "tls": {TLS: &tls.Config{MinVersion: tls.VersionTLS12}},
	} {
		t.Run(name, func(t *testing.T) {
			told := make(chan struct{})
			below := &wakingListener{begun: make(chan struct{}), woken: make(chan struct{}), told: told}
			l := NewListener(below, o)
			below.quiet = l.Quiet()
			var all sync.WaitGroup
			all.Go(func() {
				if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
					t.Errorf("accepting ended with %v", err)
				}
				close(told)
			})
			<-below.begun
			all.Go(l.Retire)
			all.Wait()
			if below.early {
				t.Error("Accept had failed, and the listener was not closed")
			}
			_ = l.Close()
		})
	}
}

// pipes is a listener of connections in memory.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
}

func newPipes() *pipes { return &pipes{make(chan net.Conn), make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error { close(p.closed); return nil }

func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// A connection is owed from the first byte of a client that waits for an answer until somebody has it, so that a server
// which asks before it closes leaves nobody out.
func TestListenerOwesAConnectionUntilItIsAccepted(t *testing.T) {
	server, client := secured(t)
	server.SessionTicketsDisabled = true // or the handshake ends only when the client reads them
	nobody := func(net.Conn) bool { return false }
	everybody := func(net.Conn) bool { return true }
	synctest.Test(t, func(t *testing.T) {
		inner := newPipes()
		l := NewListener(inner, Options{TLS: server, Limits: func() Limits { return Limits{} }})
		accepted := make(chan net.Conn)
		accept := func() {
			c, err := l.Accept()
			if err != nil {
				t.Error(err)
			}
			accepted <- c
		}
		dial := func() *tls.Conn {
			near, far := net.Pipe()
			inner.conns <- far
			return tls.Client(near, client)
		}
		go accept() // the first call starts the listener
		first := dial()
		synctest.Wait()
		if l.Owes(nobody) || !l.Owes(everybody) {
			t.Error("the client's silence, or its bytes, are not asked for")
		}
		if err := first.Handshake(); err != nil {
			t.Fatal(err)
		}
		(<-accepted).Close()
		synctest.Wait()
		if l.Owes(everybody) {
			t.Error("a connection is owed that was handed over")
		}
		second := dial()
		if err := second.Handshake(); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if !l.Owes(nobody) {
			t.Error("a handshake has ended, and nothing is owed")
		}
		go accept()
		(<-accepted).Close()
		synctest.Wait()
		if l.Owes(everybody) {
			t.Error("a connection is owed that was handed over")
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
}

package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pikoproxy/piko/internal/router"
)

// pipes is a listener that accepts what a test gives it, also when it was closed already: so it looks to a process that
// gets no time of the processor.
type pipes struct {
	conns  chan net.Conn // never closed
	closed chan struct{} // closed by Close
	end    chan struct{} // closed by the test, when nothing more comes
	once   sync.Once
}

func newPipes() *pipes {
	return &pipes{conns: make(chan net.Conn), closed: make(chan struct{}), end: make(chan struct{})}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.end:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }

// connect gives the server a connection, as change has it, and returns the client's end.
func (p *pipes) connect(change func(net.Conn) net.Conn) net.Conn {
	client, server := net.Pipe()
	p.conns <- change(server)
	return client
}

// withPipes runs a test with a proxy whose clients come by p, by a clock of its own. The test has to shut the proxy down.
func withPipes(t *testing.T, secure *tls.Config, test func(t *testing.T, s *Server, p *pipes)) {
	synctest.Test(t, func(t *testing.T) {
		r := router.New(router.Options{Settings: router.Settings{RetryBudget: 1}})
		s, err := New(Options{Router: r, TLS: secure, onlyNetHTTP: onlyNetHTTP})
		if err != nil {
			t.Fatal(err)
		}
		p := newPipes()
		served := make(chan error, 1)
		go func() { served <- s.Serve(context.Background(), p) }()
		synctest.Wait() // until it accepts
		test(t, s, p)
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
}

// answered sends a request and reports a test error unless it is answered, for the last time.
func answered(t *testing.T, c net.Conn, request string) {
	t.Helper()
	if _, err := io.WriteString(c, request); err != nil {
		t.Errorf("the request is not read: %v", err)
		return
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Errorf("the request is not answered: %v", err)
		return
	}
	if readAll(t, resp); !resp.Close {
		t.Errorf("%s: the answer does not say that it is the last one", resp.Status)
	}
}

const (
	plainRequest   = "GET / HTTP/1.1\r\nHost: nobody.piko.test\r\n\r\n"
	chunkedRequest = "POST / HTTP/1.1\r\nHost: nobody.piko.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
)

// A process that gets no time of the processor may accept connections long after it was told to stop. It answers them
// like any other.
func TestShutdownAnswersWhoWasAcceptedLate(t *testing.T) {
	for name, request := range map[string]string{"plain": plainRequest, "chunked": chunkedRequest} {
		t.Run(name, func(t *testing.T) {
			withPipes(t, nil, func(t *testing.T, s *Server, p *pipes) {
				over := make(chan error, 1)
				go func() { over <- s.Shutdown(t.Context()) }()
				<-p.closed
				<-time.After(2 * lastCall)
				c := p.connect(func(c net.Conn) net.Conn { return c })
				close(p.end)
				synctest.Wait() // until the proxy has done what it could do without the request
				answered(t, c, request)
				if err := <-over; err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// Clients get no time of the processor either: who has just connected is waited for.
func TestShutdownAnswersWhoSendsLate(t *testing.T) {
	if onlyNetHTTP {
		return // which has no such patience when it closes
	}
	withPipes(t, nil, func(t *testing.T, s *Server, p *pipes) {
		c := p.connect(func(c net.Conn) net.Conn { return c })
		late := time.After(firstCall - time.Millisecond)
		over := make(chan error, 1)
		go func() { over <- s.Shutdown(t.Context()) }()
		<-p.closed
		close(p.end)
		<-late
		answered(t, c, plainRequest)
		if err := <-over; err != nil {
			t.Error(err)
		}
	})
}

// behind is a connection of a process that gets no time of the processor for a while whenever it has set a deadline.
type behind struct {
	net.Conn
	interrupted chan struct{} // closed when reading was ended
	once        sync.Once
}

func (b *behind) SetReadDeadline(t time.Time) error {
	err := b.Conn.SetReadDeadline(t)
	switch {
	case t.IsZero():
	case t.After(time.Now()):
		<-time.After(5 * time.Millisecond)
	default:
		b.once.Do(func() { close(b.interrupted) })
	}
	return err
}

// A request that comes in the moment in which its idle connection is about to be closed is answered, however long it takes
// the process to look, and whoever is to answer it.
func TestShutdownAnswersWhatComesWhileItCloses(t *testing.T) {
	if onlyNetHTTP {
		return // net/http closes idle connections without a look
	}
	for name, request := range map[string]string{"plain": plainRequest, "chunked": chunkedRequest} {
		t.Run(name, func(t *testing.T) {
			withPipes(t, nil, func(t *testing.T, s *Server, p *pipes) {
				b := &behind{interrupted: make(chan struct{})}
				c := p.connect(func(c net.Conn) net.Conn { b.Conn = c; return b })
				if _, err := io.WriteString(c, plainRequest); err != nil {
					t.Fatal(err)
				}
				if resp, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || readAll(t, resp) == "" {
					t.Fatal(resp, err)
				}
				over := make(chan error, 1)
				go func() { over <- s.Shutdown(t.Context()) }()
				<-b.interrupted
				answered(t, c, request)
				<-p.closed
				close(p.end)
				if err := <-over; err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// Who connects when nothing is accepted any more waits for another process to begin. So nothing is waited for then that could
// have been waited for before.
func TestShutdownAcceptsUntilThereIsLittleLeftToWaitFor(t *testing.T) {
	if onlyNetHTTP {
		return // which has connections that rest closed when it is shut down
	}
	withPipes(t, nil, func(t *testing.T, s *Server, p *pipes) {
		kept := p.connect(func(c net.Conn) net.Conn { return c })
		if _, err := io.WriteString(kept, plainRequest); err != nil {
			t.Fatal(err)
		}
		if resp, err := http.ReadResponse(bufio.NewReader(kept), nil); err != nil || readAll(t, resp) == "" || resp.Close {
			t.Fatal(resp, err)
		}
		over := make(chan error, 1)
		go func() { over <- s.Shutdown(t.Context()) }()
		<-time.After(lastCall - time.Millisecond)
		answered(t, p.connect(func(c net.Conn) net.Conn { return c }), plainRequest)
		<-p.closed
		began := time.Now()
		close(p.end)
		if err := <-over; err != nil {
			t.Error(err)
		}
		if waited := time.Since(began); waited > 0 {
			t.Errorf("nothing is accepted for %v before the end", waited)
		}
	})
}

// A handshake that has not ended for want of time of ours is not broken off.
func TestShutdownAnswersWhoseHandshakeIsLate(t *testing.T) {
	if onlyNetHTTP {
		return // which reads nothing more when it is shut down in the moment in which the handshake ends
	}
	borrowed := httptest.NewTLSServer(nil)
	borrowed.Close()
	conf := &tls.Config{Certificates: borrowed.TLS.Certificates, MinVersion: tls.VersionTLS12}
	withPipes(t, conf, func(t *testing.T, s *Server, p *pipes) {
		c := p.connect(func(c net.Conn) net.Conn { return c })
		synctest.Wait() // until the handshake waits for the client, though a pipe counts as one in which something waits for us
		over := make(chan error, 1)
		go func() { over <- s.Shutdown(t.Context()) }()
		<-p.closed
		close(p.end)
		<-time.After(2 * lastCall)
		secured := tls.Client(c, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12})
		answered(t, secured, plainRequest)
		_ = secured.Close()
		if err := <-over; err != nil {
			t.Error(err)
		}
	})
}

package proxy

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	"github.com/pikoproxy/piko/internal/fault"
	"github.com/pikoproxy/piko/internal/router"
)

// hastyLimiter turns requests away, in haste.
type hastyLimiter struct{ hurry func() }

func (hastyLimiter) Client(netip.Addr) *fault.Fault   { return nil }
func (hastyLimiter) BadToken(netip.Addr) *fault.Fault { return nil }
func (l hastyLimiter) Endpoint(netip.Addr, router.Key) *fault.Fault {
	l.hurry()
	return &fault.RateLimited
}

// A deadline for writing that was set in an exchange, as by End, is not that of the next.
func TestNoHasteOutlivesAnExchange(t *testing.T) {
	patiently(t, func(haste time.Duration) error {
		var f *fixture
		first := true
		f = newFixtureFor(t, false, func(o *Options) {
			o.Limiter = hastyLimiter{func() {
				if !first {
					return
				}
				first = false
				f.server.mu.Lock()
				defer f.server.mu.Unlock()
				for front := range f.server.fronts {
					front.mu.Lock()
					for c := range front.plain {
						_ = c.w.SetWriteDeadline(time.Now().Add(haste))
					}
					front.mu.Unlock()
				}
			}}
		})
		c, br := f.dial()
		for i := range 2 {
			_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: ep1.piko.test\r\n\r\n")
			resp, err := http.ReadResponse(br, nil)
			if err != nil || resp.StatusCode != fault.RateLimited.Status {
				return fmt.Errorf("answer %d: %v, %w", i, resp, err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			if i == 0 {
				<-time.After(haste + haste/10) // the deadline has passed
			}
		}
		return nil
	})
}

// silentListener yields connections that hold nothing: who writes waits for a reader.
type silentListener struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (l silentListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l silentListener) Close() error {
	select {
	case <-l.closed:
	default:
		close(l.closed)
	}
	return nil
}

func (silentListener) Addr() net.Addr { return &net.TCPAddr{} }

// Clients of TLS that read nothing do not hold up the end one after the other.
func TestSilentClientsAreCutOffAtOnce(t *testing.T) {
	borrowed := httptest.NewTLSServer(http.NotFoundHandler())
	defer borrowed.Close()
	asked := make(chan struct{}, 8)
	f := newFixtureFor(t, false, func(o *Options) {
		o.TLS = &tls.Config{Certificates: borrowed.TLS.Certificates, MinVersion: tls.VersionTLS12}
	})
	f.serveHTTP(func(_ http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		<-r.Context().Done()
	})
	l := silentListener{make(chan net.Conn), make(chan struct{})}
	served := make(chan error, 1)
	go func() { served <- f.server.Serve(t.Context(), l) }()
	const clients = 6
	for range clients {
		near, far := net.Pipe()
		defer near.Close()
		_ = near.SetDeadline(time.Now().Add(patience))
		l.conns <- far
		c := tls.Client(near, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12})
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: ep1.piko.test\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		await(t, asked, "request")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	began := time.Now()
	_ = f.server.Shutdown(ctx)
	if took := time.Since(began); took > (clients-2)*5*time.Second { // that of crypto/tls for one goodbye is 5 s
		t.Errorf("it took %s to cut off %d clients", took, clients)
	}
	await(t, served, "end of Serve")
}

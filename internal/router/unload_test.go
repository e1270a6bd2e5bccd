package router_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"

	"github.com/pikoproxy/piko/internal/router"
	"github.com/pikoproxy/piko/internal/tunnel"
)

// offering is a stream that writes itself, as those of a tunnel do.
type offering struct{ *conn }

func (o offering) WriteTo(w io.Writer) (int64, error) {
	total := int64(0)
	for b := range o.data {
		n := w.(interface{ TryWrite(p []byte) int }).TryWrite(b)
		k, err := w.Write(b[n:])
		if total += int64(n + k); err != nil {
			return total, err
		}
	}
	return total, nil
}

// willing takes a byte at once and the others when they are written.
type willing struct{ bytes.Buffer }

func (w *willing) TryWrite(p []byte) int {
	n, _ := w.Write(p[:1])
	return n
}

func TestStreamThatWritesItselfCountsAsRead(t *testing.T) {
	for name, wrap := range map[string]func(*conn) router.Conn{
		"by itself": func(c *conn) router.Conn { return offering{c} },
		"by reads":  func(c *conn) router.Conn { return c },
	} {
		for _, to := range []io.Writer{new(willing), new(bytes.Buffer)} {
			t.Run(name, func(t *testing.T) {
				r, s := router.New(router.Options{Settings: router.Settings{EjectAfter: 5}}), newSession("s")
				s.answer = func(_ context.Context, h tunnel.Header) (router.Conn, error) {
					c := &conn{header: h, data: make(chan []byte, 8), deadline: make(chan struct{})}
					c.data <- []byte("hello")
					close(c.data)
					return wrap(c), nil
				}
				r.Add("e", s, router.UpstreamOptions{})
				faults := func() int {
					x, _ := r.Explain("e")
					return x.Upstreams[0].Faults
				}
				bad := open(t, r, tcpRequest("e"))
				bad.Failed(errors.New("no answer"))
				_ = bad.Reset()
				_ = open(t, r, tcpRequest("e")).Close()
				if faults() != 1 {
					t.Fatalf("%d faults, want one as long as nothing was answered", faults())
				}
				good := open(t, r, tcpRequest("e"))
				if n, err := good.WriteTo(to); n != 5 || err != nil {
					t.Errorf("%d bytes written, %v", n, err)
				}
				_ = good.Close()
				if faults() != 0 {
					t.Errorf("%d faults after an answer", faults())
				}
				if have := to.(interface{ String() string }).String(); have != "hello" {
					t.Errorf("have %q", have)
				}
			})
		}
	}
}

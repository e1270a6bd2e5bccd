package router_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pikoproxy/piko/internal/router"
	"github.com/pikoproxy/piko/internal/tunnel"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// session is a fake: what Open answers is up to the test.
type session struct {
	id      string
	closing chan struct{}
	answer  func(context.Context, tunnel.Header) (router.Conn, error) // nil: a new conn

	opened atomic.Int64
	mu     sync.Mutex
	conns  []*conn
}

func newSession(id string) *session { return &session{id: id, closing: make(chan struct{})} }

func (s *session) ID() string               { return s.id }
func (s *session) Closing() <-chan struct{} { return s.closing }

func (s *session) Open(ctx context.Context, h tunnel.Header) (router.Conn, error) {
	s.opened.Add(1)
	if s.answer != nil {
		return s.answer(ctx, h)
	}
	c := &conn{header: h, data: make(chan []byte, 8), deadline: make(chan struct{})}
	s.mu.Lock()
	s.conns = append(s.conns, c)
	s.mu.Unlock()
	return c, nil
}

func (s *session) conn(t *testing.T, i int) *conn {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if i >= len(s.conns) {
		t.Fatalf("session %s has opened %d streams, want more than %d", s.id, len(s.conns), i)
	}
	return s.conns[i]
}

func refusing(code string) func(context.Context, tunnel.Header) (router.Conn, error) {
	return func(context.Context, tunnel.Header) (router.Conn, error) {
		return nil, &tunnel.RefusedError{Code: code, Reason: "test"}
	}
}

// conn is a fake stream: the test sends by data, and a closed data is the service's end.
type conn struct {
	header tunnel.Header
	data   chan []byte

	mu       sync.Mutex
	rest     []byte
	deadline chan struct{} // closed while the read deadline lies in the past
	past     bool
	closed   bool
	reset    bool
	half     bool
}

func (c *conn) Read(p []byte) (int, error) {
	c.mu.Lock()
	rest, deadline := c.rest, c.deadline
	c.mu.Unlock()
	if len(rest) == 0 {
		select {
		case b, ok := <-c.data:
			if !ok {
				return 0, io.EOF
			}
			rest = b
		default:
			select {
			case b, ok := <-c.data:
				if !ok {
					return 0, io.EOF
				}
				rest = b
			case <-deadline:
				return 0, os.ErrDeadlineExceeded
			}
		}
	}
	n := copy(p, rest)
	c.mu.Lock()
	c.rest = rest[n:]
	c.mu.Unlock()
	return n, nil
}

func (c *conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	past := !t.IsZero() && !t.After(time.Now())
	switch {
	case past && !c.past:
		close(c.deadline)
	case !past && c.past:
		c.deadline = make(chan struct{})
	}
	c.past = past
	return nil
}

func (c *conn) Write(p []byte) (int, error)      { return len(p), nil }
func (c *conn) SetDeadline(t time.Time) error    { return c.SetReadDeadline(t) }
func (c *conn) SetWriteDeadline(time.Time) error { return nil }
func (c *conn) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (c *conn) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (c *conn) Close() error                     { return c.set(&c.closed) }
func (c *conn) Reset() error                     { return c.set(&c.reset) }
func (c *conn) CloseWrite() error                { return c.set(&c.half) }

func (c *conn) set(b *bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	*b = true
	return nil
}

func (c *conn) expired() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.past
}

func (c *conn) ended() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.reset:
		return "reset"
	case c.closed:
		return "closed"
	}
	return "open"
}

// answered makes the service send a byte and the request read it.
func answered(t *testing.T, s *router.Stream) {
	t.Helper()
	c, ok := s.Conn().(*conn)
	if !ok {
		t.Fatalf("conn is a %T", s.Conn())
	}
	c.data <- []byte("x")
	if _, err := s.Read(make([]byte, 1)); err != nil {
		t.Fatalf("read the answer: %v", err)
	}
}

func httpRequest(key string) router.Request {
	return router.Request{Key: key, Header: tunnel.Header{Endpoint: key, Protocol: tunnel.ProtocolHTTP}}
}

func tcpRequest(key string) router.Request {
	return router.Request{Key: key, Header: tunnel.Header{Endpoint: key, Protocol: tunnel.ProtocolTCP}}
}

func open(t *testing.T, r *router.Router, req router.Request) *router.Stream {
	t.Helper()
	s, err := r.Open(t.Context(), req)
	if err != nil {
		t.Fatalf("open %s: %v", req.Key, err)
	}
	return s
}

// sessionOf opens a stream, ends it, and tells which session it led to.
func sessionOf(t *testing.T, r *router.Router, req router.Request) string {
	t.Helper()
	s := open(t, r, req)
	defer end(s)
	return s.Upstream().Session().ID()
}

func wantError(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error = %v, want %v", err, want)
	}
}

// pass lets time go by on the clock of a synctest bubble. The house rule on sleeping in tests is about real clocks.
func pass(d time.Duration) { time.Sleep(d) }

func end(s *router.Stream) { _ = s.Close() }

package router

import (
	"context"
	"net"

	"github.com/pikoproxy/piko/internal/tunnel"
)

// Conn is one byte stream to a service, with both kinds of ending. [*tunnel.Stream] is one.
type Conn interface {
	net.Conn
	CloseWrite() error // no more bytes from us; reading goes on
	Reset() error      // abort: the far side must not take this for a clean end
}

// Session is what a router opens streams on. Use [Tunnel] to make one of a tunnel session. A Session is compared with
// ==, so it must be a pointer or a struct around one.
type Session interface {
	// Open returns a stream that the far side has accepted. A [*tunnel.RefusedError] proves that no byte was delivered.
	Open(ctx context.Context, h tunnel.Header) (Conn, error)
	// ID names the session in logs and status.
	ID() string
	// Closing is closed as soon as the far side takes no new streams, and when the session has ended.
	Closing() <-chan struct{}
}

// Tunnel makes a session usable by a router. Two calls for one session give equal values.
func Tunnel(s *tunnel.Session) Session { return tunnelSession{s} }

type tunnelSession struct{ *tunnel.Session }

// Open turns the concrete stream into a Conn without letting a nil pointer become a non-nil interface.
func (t tunnelSession) Open(ctx context.Context, h tunnel.Header) (Conn, error) {
	s, err := t.Session.Open(ctx, h)
	if err != nil {
		return nil, err
	}
	return s, nil
}

package proxy

import (
	"bufio"
	"bytes"
	"context"
	"net"
	"net/http"
	"strings"

	"github.com/pikoproxy/piko/internal/auth"
	"github.com/pikoproxy/piko/internal/fault"
	"github.com/pikoproxy/piko/internal/guard"
	"github.com/pikoproxy/piko/internal/limit"
	"github.com/pikoproxy/piko/internal/relay"
	"github.com/pikoproxy/piko/internal/router"
)

// switchProtocol takes the client's connection from net/http and joins it with the stream: from here on they carry
// whatever the two ends like, for as long as they like.
func (x *exchange) switchProtocol(s *router.Stream) attempt {
	if x.upgrade == "" || !x.head.options.upgrade || !strings.EqualFold(x.head.upgrade, x.upgrade) {
		err := malformed("switches to another protocol than was asked for")
		s.Failed(err)
		_ = s.Reset()
		x.stopBody()
		x.refuse(fault.UnexpectedUpgrade, err)
		return finished
	}
	x.gotHead(s)
	hijacker, ok := x.w.(http.Hijacker)
	if !ok {
		_ = s.Reset()
		x.refuse(fault.Internal, http.ErrNotSupported)
		return finished
	}
	conn, rw, err := hijacker.Hijack()
	if err != nil {
		_ = s.Reset()
		x.leave(err)
		return finished
	}
	x.record.status = http.StatusSwitchingProtocols
	x.responded = true
	client := withEarly(guard.Pass(conn), rw.Reader)
	upstream := withEarly(streamConn{s}, s.Reader())
	if _, err := conn.Write(x.appendSwitch(nil)); err != nil {
		relay.Abort(conn)
		_ = s.Reset()
		x.record.status, x.record.err = statusClientGone, err
		return finished
	}
	x.splice(client, upstream)
	return finished
}

// appendSwitch writes the head of the 101 answer.
func (x *exchange) appendSwitch(b []byte) []byte {
	b = append(b, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "...)
	b = append(append(b, x.head.upgrade...), crlf...)
	for _, f := range x.head.fields {
		if x.keepsAnswerField(f.name) {
			b = appendField(b, f.name, f.value)
		}
	}
	return append(b, crlf...)
}

// splice relays in a goroutine of the server, so that the handler can return and net/http lets go of its buffers. The
// record of the exchange is finished when the relay is.
func (x *exchange) splice(client, upstream net.Conn) {
	x.switched = true
	server, rec := x.server, x.record
	server.tracker.add()
	server.metrics.spliced.Inc()
	limit.Patient(client)
	ctx, cancel := context.WithCancelCause(server.lifetime())
	lease := new(auth.Lease)
	server.leases.Hold(lease, x.identity, cutter{cancel})
	go func() {
		defer server.tracker.done()
		defer server.metrics.spliced.Dec()
		defer cancel(nil)
		defer lease.Release()
		counts, err := relay.Relay(ctx, client, upstream, relay.Options{})
		if why := context.Cause(ctx); why != nil && server.lifetime().Err() == nil {
			err = why
		}
		rec.received += counts.AToB
		rec.sent += counts.BToA
		rec.err = err
		server.finish(&rec)
	}()
}

// streamConn is a stream for a relay. Release is out of reach: after a switch no stream is ever used again.
type streamConn struct{ *router.Stream }

// Release hides that of the stream.
func (streamConn) Release() {}

// earlyConn is a connection of which some bytes were read already.
type earlyConn struct {
	net.Conn
	early []byte
}

// withEarly returns a connection that yields first what r has read of it and nobody has taken yet.
func withEarly(conn net.Conn, r *bufio.Reader) net.Conn {
	if r.Buffered() == 0 {
		return conn
	}
	early, err := r.Peek(r.Buffered())
	if err != nil {
		return conn // can't be: what is buffered can be peeked at
	}
	return &earlyConn{Conn: conn, early: bytes.Clone(early)}
}

func (c *earlyConn) Read(p []byte) (int, error) {
	if len(c.early) == 0 {
		return c.Conn.Read(p)
	}
	n := copy(p, c.early)
	c.early = c.early[n:]
	return n, nil
}

// NetConn returns the connection below.
func (c *earlyConn) NetConn() net.Conn { return c.Conn }

// CloseWrite ends our direction, where the connection has two.
func (c *earlyConn) CloseWrite() error {
	if half, ok := c.Conn.(relay.CloseWriter); ok {
		return half.CloseWrite()
	}
	return c.Close()
}

// Reset breaks the connection off.
func (c *earlyConn) Reset() error {
	relay.Abort(c.Conn)
	return nil
}

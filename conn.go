package piko

import (
	"io"
	"net"
	"net/netip"

	"github.com/pikoproxy/piko/internal/relay"
	"github.com/pikoproxy/piko/internal/tunnel"
)

// Incoming is a connection that a node wants to bring. Either Accept or Refuse must be called, once.
type Incoming struct {
	in *tunnel.Incoming
}

func newIncoming(in *tunnel.Incoming) *Incoming { return &Incoming{in} }

// Endpoint returns the endpoint that the client asked for.
func (i *Incoming) Endpoint() string { return i.in.Header().Endpoint }

// Protocol returns what the connection will carry: "http" for HTTP/1.1, "h2" for HTTP/2 with prior knowledge, "tcp" for
// any bytes.
func (i *Incoming) Protocol() string { return i.in.Header().Protocol }

// RemoteAddr returns the address of the client, as the node saw it. A connection that carries several requests may later
// carry those of other clients.
func (i *Incoming) RemoteAddr() net.Addr { return clientAddr(i.in.Header().Client) }

// Trace returns the W3C traceparent of the request for which the connection was opened, or "".
func (i *Incoming) Trace() string { return i.in.Header().Trace }

// Accept takes the connection. An error means that the node or the client has given up.
func (i *Incoming) Accept() (*Conn, error) {
	s, err := i.in.Accept()
	if err != nil {
		return nil, err
	}
	h := i.in.Header()
	return &Conn{stream: s, local: addr(h.Endpoint), remote: clientAddr(h.Client), protocol: h.Protocol}, nil
}

// Refuse declines the connection with a code, such as [CodeServiceUnreachable], and a reason for the log of the node. The
// client has not been answered yet, so the node tries another upstream.
func (i *Incoming) Refuse(code, reason string) error { return i.in.Refuse(code, reason) }

// stream is what carries the bytes of a Conn: a stream of a session or a WebSocket.
type stream interface {
	net.Conn
	CloseWrite() error
	Reset() error
}

// Conn is a connection between a client and a service. It is a [net.Conn] whose two directions can be closed separately.
type Conn struct {
	stream
	local, remote net.Addr
	protocol      string
}

// CloseWrite ends the direction from here: the other side reads the end of file. Reading goes on.
func (c *Conn) CloseWrite() error { return c.stream.CloseWrite() }

// Reset cuts the connection at once, so that the other side sees it as broken rather than as ended.
func (c *Conn) Reset() error { return c.stream.Reset() }

// WriteTo implements [io.WriterTo]: it writes what the other side sends to w until that has ended its direction.
func (c *Conn) WriteTo(w io.Writer) (int64, error) {
	if from, ok := c.stream.(io.WriterTo); ok {
		return from.WriteTo(w)
	}
	return relay.Copy(w, c.stream)
}

// LocalAddr returns the endpoint on the side of the service, and the local socket on the side of the client.
func (c *Conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr returns the client's address, as the node saw it, on the side of the service, and the endpoint on the side of
// the client.
func (c *Conn) RemoteAddr() net.Addr { return c.remote }

// Protocol returns what the connection carries: "http" for HTTP/1.1, "h2" for HTTP/2 with prior knowledge, "tcp" for any
// bytes.
func (c *Conn) Protocol() string { return c.protocol }

// clientAddr makes a TCP address of host:port, so that callers who look for one find it; other text stays text.
func clientAddr(s string) net.Addr {
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return net.TCPAddrFromAddrPort(ap)
	}
	return addr(s)
}

var _ net.Conn = (*Conn)(nil)

package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"github.com/pikoproxy/piko/internal/guard"
	"github.com/pikoproxy/piko/internal/socket"
)

// plainConn is a client's connection of HTTP/1.1 that is served without net/http, as long as its requests are of the
// plain kind. Everything that a request needs is kept with the connection and used again: the request, its header, the
// writer of its answer. One goroutine does it all.
//
// Nothing here decides about a request. Where its head ends and what its fields are, package guard has said; what is to
// be done with it, exchange says, for these as for all others.
type plainConn struct {
	front   *front
	server  *Server
	conn    net.Conn // as it was accepted
	guard   *guard.Conn
	below   net.Conn      // what is written to
	joiner  socket.Joiner // writes there too; nil if something stands between
	leaving leaver
	client  string
	peer    netip.Addr // invalid for a client on a Unix socket
	ctx     context.Context
	cancel  context.CancelFunc

	request *http.Request
	url     url.URL
	fields  []plainField // of the request, in order
	header  http.Header  // the same by name
	values  []string     // that header has slices of
	traits  trait        // of all fields
	names   spellings
	body    plainBody
	w       plainWriter

	born     time.Time
	deadline time.Time   // for reading
	touched  atomic.Bool // the deadline is another one now
	watch    watch
}

// plainField is a field of a request. One that is ordinary goes on to the service, unless Connection names it.
type plainField struct {
	field
	ordinary bool
}

func newPlainConn(f *front, conn net.Conn) *plainConn {
	c := &plainConn{front: f, server: f.server, conn: conn, guard: guard.Of(conn), client: conn.RemoteAddr().String(), born: time.Now()}
	c.leaving = leaverOf(conn)
	c.peer = addrOf(c.client)
	c.below = c.guard.NetConn()
	c.joiner = socket.JoinerOf(c.below)
	ctx, cancel := context.WithCancel(guard.With(f.server.lifetime(), conn))
	c.ctx, c.cancel = ctx, cancel
	c.header = make(http.Header)
	c.request = (&http.Request{
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, URL: &c.url, Header: c.header, RemoteAddr: c.client,
	}).WithContext(ctx)
	if s, ok := conn.(interface{ ConnectionState() tls.ConnectionState }); ok {
		state := s.ConnectionState()
		c.request.TLS = &state
	}
	c.body.c, c.w.c, c.watch.c = c, c, c
	c.watch.deciding = true
	return c
}

// serve answers requests until the connection ends or is handed over.
func (c *plainConn) serve() {
	stop := context.AfterFunc(c.ctx, c.leave)
	defer func() {
		stop()
		c.cancel()
		c.watch.end()
		c.front.forget(c)
		c.settle()
	}()
	timeout := c.front.edge.limits.ReadHeaderTimeout
	for c.rest(timeout) {
		h, err := c.guard.Next()
		if c.rested() && isTimeout(err) && c.hasMore() {
			h, err = c.guard.Next()
		}
		if err != nil {
			break
		}
		if h == nil || !c.fill(h) {
			c.front.handOver(c.conn)
			return
		}
		c.guard.Take()
		if !c.answer() {
			break
		}
		c.drop()
		timeout = c.front.edge.limits.IdleTimeout
	}
	_ = c.conn.Close()
	c.front.conns.done()
}

// last reports whether an answer is the last one of the connection.
func (c *plainConn) last() bool { return c.front.last() || c.leaving.ending() }

// fill makes the head the connection's request. It reports false for what is left to net/http; nothing of the request
// has been consumed then.
func (c *plainConn) fill(h *guard.Head) bool {
	path, query, found := strings.Cut(h.Target, "?")
	if strings.IndexByte(path, '%') >= 0 {
		plain, err := url.PathUnescape(path)
		if err != nil {
			return false
		}
		c.url = url.URL{Path: plain, RawPath: path}
	} else {
		c.url = url.URL{Path: path}
	}
	c.url.RawQuery, c.url.ForceQuery = query, found && query == ""
	if n := len(h.Fields); cap(c.values) < n {
		c.values = make([]string, 0, n+8)
	}
	c.traits = 0
	for i, f := range h.Fields {
		s := c.names.of(i, f.Name)
		if c.traits |= s.trait; c.traits&hasExpect != 0 {
			return false
		}
		name := s.canonical
		c.values = append(c.values, f.Value)
		c.fields = append(c.fields, plainField{field{name, f.Value}, s.trait&ordinary != 0})
		if lines, ok := c.header[name]; ok {
			c.header[name] = append(lines, f.Value)
		} else {
			n := len(c.values)
			c.header[name] = c.values[n-1 : n : n]
		}
	}
	if c.traits&hasPragma != 0 {
		c.pragma()
	}
	r := c.request
	r.Method, r.RequestURI, r.Host, r.ContentLength = h.Method, h.Target, h.Host, h.Length
	r.Body, c.body.left = http.NoBody, h.Length
	if h.Length > 0 {
		r.Body = &c.body
	}
	return true
}

// drop lets go of a request that was answered. An idle connection keeps nothing of it.
func (c *plainConn) drop() {
	clear(c.header)
	clear(c.fields)
	clear(c.values)
	c.fields, c.values, c.url = c.fields[:0], c.values[:0], url.URL{}
	c.request.Method, c.request.RequestURI, c.request.Host = "", "", ""
}

// pragma does what net/http does: the older way to refuse caches implies the newer one (RFC 9111, 5.4).
func (c *plainConn) pragma() {
	if lines := c.header["Pragma"]; len(lines) == 0 || lines[0] != "no-cache" {
		return
	}
	if _, ok := c.header["Cache-Control"]; !ok {
		c.header["Cache-Control"] = []string{"no-cache"}
		c.fields = append(c.fields, plainField{field{"Cache-Control", "no-cache"}, true})
	}
}

// answer answers the request, and reports whether the connection can carry another one.
func (c *plainConn) answer() bool {
	c.server.tracker.add()
	defer c.server.tracker.done()
	c.settle()
	c.w.begin()
	defer c.w.end()
	if c.body.left == 0 {
		c.watch.start()
	} else {
		_ = c.w.SetReadDeadline(time.Time{}) // that was for the head; fails only on a closed connection
	}
	ok := c.handle()
	c.watch.stop()
	if !ok || c.w.finish() != nil {
		return false
	}
	if c.w.close {
		c.linger()
		return false
	}
	if c.w.hasty.Swap(false) && c.guard.SetWriteDeadline(time.Time{}) != nil {
		return false
	}
	return c.guard.Left() == 0
}

// handle runs the exchange. It reports false when the answer was broken off.
func (c *plainConn) handle() (ok bool) {
	defer func() {
		v := recover()
		if v == nil {
			return
		}
		if err, is := v.(error); !is || !errors.Is(err, http.ErrAbortHandler) {
			c.server.complain("panic serving %s: %v\n%s", c.client, v, debug.Stack())
		}
	}()
	c.server.serve(&c.w, c.request, c)
	return true
}

// linger lets a client that is still sending see the answer, before the connection is closed: closing it with something
// unread in it would destroy the answer on its way.
func (c *plainConn) linger() {
	if c.guard.Left() == 0 {
		return
	}
	_ = c.guard.CloseWrite() // a client that has gone needs no answer
	c.discardBody()
}

// discardBody reads what is left of the body, but not much and not for long. It reports whether that was all.
func (c *plainConn) discardBody() bool {
	if c.w.SetReadDeadline(time.Now().Add(lingerTimeout)) != nil {
		return false
	}
	p := c.server.buffers.middle.Get().(*[copyMiddle]byte)
	defer c.server.buffers.middle.Put(p)
	for total := 0; c.guard.Left() > 0 && total < lingerBytes; {
		n, err := c.guard.ReadBody(p[:])
		total += n
		if err != nil {
			return false
		}
	}
	return c.guard.Left() == 0
}

// cutOff closes the connection below TLS, whose own goodbye would wait for a client that reads nothing.
func (c *plainConn) cutOff() {
	below := c.below
	if secured, ok := below.(*tls.Conn); ok {
		below = secured.NetConn()
	}
	_ = below.Close()
}

// leave is called when the client has gone, or when time is over for all requests.
func (c *plainConn) leave() {
	c.cancel()
	w := &c.watch
	w.mu.Lock()
	w.gone = true
	s := w.stream
	w.mu.Unlock()
	if s != nil {
		_ = s.Reset() // does nothing if the stream has ended
	}
}

// plainBody is the body of a request of known length.
type plainBody struct {
	c    *plainConn
	left int64
}

// Read reads from the client.
func (b *plainBody) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	n, err := b.c.guard.ReadBody(p)
	b.left -= int64(n)
	switch {
	case b.left == 0 && n > 0:
		b.c.watch.start()
		return n, io.EOF
	case err != nil && !isTimeout(err):
		b.c.leave()
	}
	return n, err
}

// Close does nothing: what is left is read, or the connection closed, when the request has been answered.
func (b *plainBody) Close() error { return nil }

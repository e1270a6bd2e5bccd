package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pikoproxy/piko/internal/fault"
	"github.com/pikoproxy/piko/internal/limit"
	"github.com/pikoproxy/piko/internal/router"
	"github.com/pikoproxy/piko/internal/tunnel"
)

// isGRPC reports whether the request needs HTTP/2 all the way: gRPC promises nothing over HTTP/1.1.
func isGRPC(r *http.Request) bool {
	return r.ProtoMajor == 2 && strings.HasPrefix(single(r.Header["Content-Type"]), "application/grpc")
}

// errHeaderTimeout ends a request whose answer does not begin in time.
var errHeaderTimeout = errors.New("no answer within the response header timeout")

// h2Upstream makes HTTP/2 connections of streams. Each connection carries one exchange at a time: the session below
// multiplexes already, with a window for each stream, so that one slow reader stops nobody else.
type h2Upstream struct{ transport *http.Transport }

type h2ConnKey struct{}

func newH2Upstream() *h2Upstream {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	return &h2Upstream{&http.Transport{
		Protocols:          protocols,
		DisableCompression: true,
		HTTP2:              &http.HTTP2Config{MaxReceiveBufferPerStream: 1 << 20, MaxReadFrameSize: 64 << 10},
		// The limit for an answer's header section, as for HTTP/1.1.
		MaxResponseHeaderBytes: maxResponseHead,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn, ok := ctx.Value(h2ConnKey{}).(net.Conn)
			if !ok {
				return nil, net.ErrClosed
			}
			return conn, nil
		},
	}}
}

// h2Conn is an HTTP/2 connection as a stream keeps it between two exchanges.
type h2Conn struct{ *http.ClientConn }

// Usable reports whether the connection can carry another exchange.
func (c h2Conn) Usable() bool { return c.Err() == nil && c.Available() > 0 }

// conn returns the HTTP/2 connection of the stream, with a place reserved on it.
func (u *h2Upstream) conn(ctx context.Context, s *router.Stream) (h2Conn, error) {
	c, ok := s.Attached().(h2Conn)
	if !ok {
		ctx = context.WithValue(ctx, h2ConnKey{}, net.Conn(s.Conn()))
		cc, err := u.transport.NewClientConn(ctx, "http", "upstream:80")
		if err != nil {
			return c, err
		}
		c = h2Conn{cc}
		s.Attach(c)
	}
	return c, c.Reserve()
}

// serveH2 passes the request on by HTTP/2. It reports false, having done nothing, when nobody at the endpoint speaks
// it.
func (x *exchange) serveH2() bool {
	ctx, cancel := context.WithCancelCause(x.r.Context())
	defer cancel(nil)
	x.endWith(nil, cancel)
	defer x.endWith(nil, nil)
	s, c, err := x.openH2(ctx)
	if errors.Is(err, router.ErrProtocol) {
		return false
	}
	if err != nil {
		x.notOpened(err, false)
		return true
	}
	defer s.Close() //nolint:errcheck // whatever has ended the stream before this counts
	x.record.session = s.Upstream().Session().ID()
	body := &countedBody{ReadCloser: x.r.Body, most: x.settings.MaxBodyBytes, limit: x.settings.ResponseHeaderTimeout, expire: cancel}
	if x.body == noBody {
		body.begin()
	}
	resp, err := c.RoundTrip(x.h2Request(ctx, body))
	body.stop()
	if err != nil {
		x.record.received = body.n.Load()
		x.h2Failed(s, c, err, errors.Is(context.Cause(ctx), errHeaderTimeout))
		return true
	}
	defer resp.Body.Close() // resets the HTTP/2 stream if it has not ended
	x.deliverH2(ctx, s, c, resp, body)
	return true
}

// openH2 returns a stream with an HTTP/2 connection. A kept connection that has ended meanwhile is replaced.
func (x *exchange) openH2(ctx context.Context) (*router.Stream, h2Conn, error) {
	for fresh := false; ; fresh = true {
		s, err := x.server.router.Open(ctx, router.Request{
			Key: x.key, Header: x.streamHeader(tunnel.ProtocolH2), Fresh: fresh,
		})
		if err != nil {
			return nil, h2Conn{}, err
		}
		c, err := x.server.h2.conn(ctx, s)
		if err == nil {
			return s, c, nil
		}
		_ = s.Reset()
		if fresh || !s.Reused() {
			return nil, c, err
		}
	}
}

// h2Request is the request for the service. Its body is that of the client, so each message goes on as it comes.
func (x *exchange) h2Request(ctx context.Context, body *countedBody) *http.Request {
	u := *x.r.URL
	u.Scheme, u.Host, u.User = "http", x.r.Host, nil
	if u.Host == "" {
		u.Host = x.endpoint
	}
	out := &http.Request{
		Method: x.r.Method, URL: &u, Host: u.Host, Header: make(http.Header, len(x.r.Header)+4),
		ContentLength: x.r.ContentLength, Trailer: x.r.Trailer,
	}
	if x.body != noBody {
		out.Body = body
	}
	for name, lines := range x.r.Header {
		if x.keepsField(name) {
			out.Header[name] = lines
		}
	}
	for line := range strings.SplitSeq(string(x.origin.append(nil, x.r.Header)), crlf) {
		if f, err := parseField(line); err == nil {
			out.Header[f.name] = []string{f.value}
		}
	}
	if hasTrailersOption(x.r.Header["Te"]) {
		out.Header["Te"] = []string{"trailers"}
	}
	if _, ok := out.Header["User-Agent"]; !ok {
		out.Header["User-Agent"] = []string{""} // else net/http would add its own
	}
	return out.WithContext(ctx)
}

// h2Failed answers when the service did not.
func (x *exchange) h2Failed(s *router.Stream, c h2Conn, err error, timedOut bool) {
	switch {
	case timedOut:
		s.Failed(err)
		x.endH2(s, c)
		x.refuse(fault.UpstreamTimeout, err)
	case x.gone():
		x.endH2(s, c)
		x.leave(err)
	case errors.Is(err, errBodyTooLarge):
		x.endH2(s, c)
		x.refuse(fault.BodyTooLarge, err)
	default:
		if !s.Reused() {
			s.Failed(err)
		}
		_ = s.Reset()
		x.refuse(fault.UpstreamBroke, err)
	}
}

// endH2 gives back the stream of an exchange that was cancelled. HTTP/2 has told the service by RST_STREAM, and the
// connection is as good as before.
func (x *exchange) endH2(s *router.Stream, c h2Conn) {
	if c.Usable() {
		s.Release()
	} else {
		_ = s.Reset()
	}
}

// deliverH2 passes the answer on, each piece as soon as it comes.
func (x *exchange) deliverH2(ctx context.Context, s *router.Stream, c h2Conn, resp *http.Response, body *countedBody) {
	h := x.w.Header()
	for name, lines := range resp.Header {
		switch name {
		case "Connection", "Keep-Alive", "Proxy-Connection", "Transfer-Encoding", "Upgrade", "Trailer", fault.Header:
		default:
			h[name] = lines
		}
	}
	for name := range resp.Trailer {
		if inTrailer(name) {
			h["Trailer"] = append(h["Trailer"], name)
		}
	}
	x.sayGoodbye()
	x.record.status = resp.StatusCode
	x.responded = true
	x.w.WriteHeader(resp.StatusCode)
	x.startCopier(bodyCopier{w: x.w, flusher: x.server.flusher(x.w), dirty: true})
	err := x.copyH2(resp)
	x.record.sent, x.record.received = x.copier.written, body.n.Load()
	if err != nil {
		x.endH2(s, c)
		if errors.Is(err, errClient) || clientGone(ctx) || x.ended() != nil {
			x.record.err = err
			if x.copier.slow || isSlowReader(err) {
				x.record.reason = limit.SlowReader
			}
		} else {
			s.Failed(err)
			x.record.fail(fault.UpstreamBroke, err)
		}
		x.abort()
	}
	for name, lines := range resp.Trailer {
		if inTrailer(name) {
			h[http.TrailerPrefix+name] = lines
		}
	}
	x.endH2(s, c)
}

func (x *exchange) copyH2(resp *http.Response) error {
	buf := x.server.buffers.middle.Get().(*[copyMiddle]byte)
	defer x.server.buffers.middle.Put(buf)
	for {
		if resp.ContentLength != 0 {
			x.copier.flush()
		}
		n, err := resp.Body.Read(buf[:])
		if n > 0 {
			if err := x.copier.write(buf[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// countedBody is the request body as HTTP/2 reads it, in a goroutine of its own that may outlive the handler. It counts
// the bytes, and starts the clock for the head of the answer when the request has ended.
type countedBody struct {
	io.ReadCloser
	n      atomic.Int64
	most   int64 // bytes; 0: no limit
	limit  time.Duration
	expire context.CancelCauseFunc

	mu    sync.Mutex // guards the following
	timer *time.Timer
	over  bool // the head has come, or never will
}

// Read reads from the client.
func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if total := b.n.Add(int64(n)); b.most > 0 && total > b.most {
		return 0, errBodyTooLarge
	}
	if errors.Is(err, io.EOF) {
		b.begin()
	}
	return n, err
}

func (b *countedBody) begin() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.limit > 0 && !b.over && b.timer == nil {
		b.timer = time.AfterFunc(b.limit, func() { b.expire(errHeaderTimeout) })
	}
}

func (b *countedBody) stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.over = true
	if b.timer != nil {
		b.timer.Stop()
	}
}

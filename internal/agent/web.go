package agent

import (
	"context"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pikoproxy/piko"
	"github.com/pikoproxy/piko/internal/fault"
	"github.com/pikoproxy/piko/internal/tunnel"
)

const (
	// headerTimeout bounds the reading of one request head. It comes from a node, which has read it whole already.
	headerTimeout = 30 * time.Second

	// streamIdle is how long a stream may wait for its next request. The node gives idle streams up earlier, so that it
	// never sends a request on one that we are just closing.
	streamIdle = 5 * time.Minute

	// maxRequestHeader is more, in bytes, than a node passes on; maxResponseHeader is what a service may answer.
	maxRequestHeader  = 128 << 10
	maxResponseHeader = 64 << 10
)

// web serves the HTTP streams of a listener whose settings need to read requests: it is a reverse proxy towards the
// service, with its own pool of connections. What breaks on the way breaks the stream, so that the node, which knows
// whether a request may be sent again, gives the answer.
type web struct {
	l        *listener
	h1, h2   *front
	draining atomic.Bool
	serving  sync.WaitGroup
}

func newWeb(l *listener, errorLog *log.Logger) *web {
	w := &web{l: l}
	w.h1 = w.newFront(tunnel.ProtocolHTTP, errorLog)
	w.h2 = w.newFront(tunnel.ProtocolH2, errorLog)
	return w
}

// front serves the streams of one protocol. The protocol is what the stream header says, never a guess from the bytes.
type front struct {
	server    *http.Server
	transport *http.Transport
	conns     chan net.Conn // never closed: done says when nobody takes from it any more
	done      chan struct{} // closed by Close
	once      sync.Once
}

func (w *web) newFront(protocol string, errorLog *log.Logger) *front {
	transport := newTransport(protocol, w.l.dial)
	proxy := &httputil.ReverseProxy{
		Rewrite:        w.rewrite,
		ModifyResponse: holdEmpty,
		Transport:      transport,
		FlushInterval:  -1,
		BufferPool:     buffers{},
		ErrorHandler:   w.broken,
		ErrorLog:       errorLog,
	}
	var protocols http.Protocols
	protocols.SetHTTP1(protocol == tunnel.ProtocolHTTP)
	protocols.SetUnencryptedHTTP2(protocol == tunnel.ProtocolH2)
	return &front{
		server: &http.Server{
			Handler:           w.handler(proxy),
			Protocols:         &protocols,
			ReadHeaderTimeout: headerTimeout,
			IdleTimeout:       streamIdle,
			MaxHeaderBytes:    maxRequestHeader,
			ErrorLog:          errorLog,
		},
		transport: transport,
		conns:     make(chan net.Conn),
		done:      make(chan struct{}),
	}
}

// dialFunc connects to a service for a stream of a protocol, on behalf of a client if that is known.
type dialFunc func(ctx context.Context, protocol string, client net.Addr) (net.Conn, error)

// newTransport connects with dial and in no other way: no proxy of the environment, no redirects. What dial returns for a
// service of https has done its TLS handshake.
func newTransport(protocol string, dial dialFunc) *http.Transport {
	connect := func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx, protocol, nil) }
	var protocols http.Protocols
	protocols.SetHTTP1(protocol == tunnel.ProtocolHTTP)
	protocols.SetHTTP2(protocol == tunnel.ProtocolH2)
	protocols.SetUnencryptedHTTP2(protocol == tunnel.ProtocolH2)
	return &http.Transport{
		DialContext:            connect,
		DialTLSContext:         connect,
		Protocols:              &protocols,
		DisableCompression:     true,
		MaxIdleConnsPerHost:    1024,
		IdleConnTimeout:        90 * time.Second,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: maxResponseHeader,
	}
}

// urlHost is the authority of URLs that lead to the service.
func urlHost(s *service) string {
	if s.network == "unix" {
		return "localhost"
	}
	return s.address
}

// start begins to serve; finish ends what begins here.
func (w *web) start(ctx context.Context) {
	for _, f := range []*front{w.h1, w.h2} {
		f.server.BaseContext = func(net.Listener) context.Context { return ctx }
		w.serving.Go(func() { _ = f.server.Serve(f) }) // always an error: that of Close
	}
}

// cut breaks off all requests.
func (w *web) cut() {
	for _, f := range []*front{w.h1, w.h2} {
		_ = f.server.Close() // closes f and all its streams, which don't fail to close
	}
}

// finish waits until nothing of the web runs any more. All streams must have ended.
func (w *web) finish() {
	w.cut()
	w.serving.Wait()
	for _, f := range []*front{w.h1, w.h2} {
		f.transport.CloseIdleConnections()
	}
}

// serve takes a stream over. It ends long before the stream does.
func (w *web) serve(ctx context.Context, in *piko.Incoming) {
	l := w.l
	f := w.h1
	if in.Protocol() == tunnel.ProtocolH2 {
		f = w.h2
	}
	if l.full() {
		l.refuse(in, piko.CodeOverloaded)
		return
	}
	// As long as all goes well, requests find out by themselves whether the service is there. At first and after a
	// failure one attempt is made before the stream is accepted, when the node can still try another upstream.
	if !l.reachable.Load() {
		conn, err := l.dial(ctx, in.Protocol(), nil)
		if err != nil {
			l.refuse(in, piko.CodeServiceUnreachable)
			return
		}
		_ = conn.Close()
	}
	conn, err := in.Accept()
	if err != nil {
		l.metrics.abandoned.Inc()
		return
	}
	l.metrics.accepted.Inc()
	l.metrics.open.Inc()
	l.streams.Add(1)
	counted := &countedConn{Conn: conn, l: l}
	select {
	case f.conns <- counted:
	case <-f.done:
		_ = counted.Reset()
	}
}

// handler is what surrounds the reverse proxy.
func (w *web) handler(proxy http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		l := w.l
		rec := &recorder{ResponseWriter: rw, start: time.Now()}
		defer l.logRequest(rec, r)
		if !l.enter() {
			fault.Write(rec, r, fault.Overloaded, "")
			return
		}
		defer l.leave()
		if r.ProtoMajor == 1 {
			// Without it, a service that answers before it has read everything would break the request.
			_ = http.NewResponseController(rw).EnableFullDuplex()
			if r.Body != http.NoBody {
				rec.body = &requestBody{ReadCloser: r.Body}
				r.Body = rec.body
			}
			if w.draining.Load() && r.Header.Get("Upgrade") == "" {
				rw.Header().Set("Connection", "close")
			}
		}
		proxy.ServeHTTP(rec, r.WithContext(context.WithValue(r.Context(), recorderKey{}, rec)))
	})
}

// forwarded are the headers that the node sets for the service and that ReverseProxy takes for forgeries.
var forwarded = []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"}

func (w *web) rewrite(r *httputil.ProxyRequest) {
	r.Out.URL.Scheme, r.Out.URL.Host = w.l.service.scheme(), urlHost(w.l.service)
	r.Out.URL.RawQuery = r.In.URL.RawQuery // byte for byte: its meaning is the service's business
	r.Out.Trailer = r.In.Trailer           // the map itself: its values arrive after the body
	r.Out.Host = r.In.Host
	if h := w.l.settings.HostHeader; h != "" {
		r.Out.Host = h
	}
	for _, name := range forwarded {
		if v, ok := r.In.Header[name]; ok {
			r.Out.Header[name] = v
		}
	}
}

// broken is called when there is no answer from the service.
func (w *web) broken(_ http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() == nil {
		w.l.log.WithField("err", err).Debug("request broken by the service")
	}
	panic(http.ErrAbortHandler)
}

// Accept implements net.Listener.
func (f *front) Accept() (net.Conn, error) {
	select {
	case c := <-f.conns:
		return c, nil
	case <-f.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (f *front) Close() error {
	f.once.Do(func() { close(f.done) })
	return nil
}

// Addr implements net.Listener.
func (f *front) Addr() net.Addr { return &net.UnixAddr{Name: "tunnel", Net: "unix"} }

// countedConn tells the listener what passes and when it ends.
type countedConn struct {
	*piko.Conn
	l    *listener
	once sync.Once
}

func (c *countedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.l.metrics.received.Add(float64(n))
	return n, err
}

func (c *countedConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.l.metrics.sent.Add(float64(n))
	return n, err
}

func (c *countedConn) Close() error {
	defer c.once.Do(c.ended)
	return c.Conn.Close()
}

func (c *countedConn) Reset() error {
	defer c.once.Do(c.ended)
	return c.Conn.Reset()
}

func (c *countedConn) ended() {
	c.l.metrics.open.Dec()
	c.l.streams.Done()
}

// buffers lends the copy buffers of all reverse proxies.
type buffers struct{}

const bufferSize = 32 << 10

var bufferPool = sync.Pool{New: func() any { return new([bufferSize]byte) }}

func (buffers) Get() []byte { return bufferPool.Get().(*[bufferSize]byte)[:] }

func (buffers) Put(b []byte) {
	if cap(b) >= bufferSize {
		bufferPool.Put((*[bufferSize]byte)(b[:bufferSize]))
	}
}

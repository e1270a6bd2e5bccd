// Package proxy is the public side of a node: it takes requests of clients, finds out which endpoint each is for, and
// carries it over a stream to an upstream and the answer back.
//
//	client ── guard ──┬─ plainConn, for plain HTTP/1.1 ─┬─> Server.serve
//	                  └─ net/http, for everything else ─┘
//	                        │ examine: method, target, endpoint, Connection, Expect, Upgrade     ─> 4xx
//	                        │ authenticate                                                       ─> 401, 503
//	                        ├─ GET .../_piko/v1/tcp/ENDPOINT    WebSocket <─ relay ─> stream
//	                        ├─ gRPC by HTTP/2                   HTTP/2 on a stream
//	                        └─ everything else                  HTTP/1.1 on a stream, our own round trip
//	                             └─ 101 Switching Protocols     connection <─ relay ─> stream
//
// # What it promises
//
// Bodies and their encodings pass untouched and at once: it waits for nothing that could be sent, and there is no limit
// on how long a request lasts. An answer that breaks off is seen as broken by the client; a client that leaves cancels
// the request at the service. What a client says about itself is believed only from a trusted proxy. A request is sent
// twice only when the first try can't have had an effect, or must not matter. Every error answer of ours is one of
// package fault; none is ever a service's, and none of a service's is ever taken for ours.
//
// # Framing
//
// The end of an HTTP/1.1 request is decided by package guard, below net/http: what two parsers might understand in two
// ways never gets here, and the connection is closed. What does is written anew, head and body, never copied. The end of
// an answer is decided here by the same measure; the stream of a doubtful one is never used again.
//
// # Concurrency
//
// Everything is safe for concurrent use. Each request has one goroutine, one more while a request body too large to be read
// in advance is on its way, and one that waits for the client to leave, if the answer takes longer than a moment; each
// switched connection has two. All of them end before [Server.Shutdown] returns.
package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sirupsen/logrus"

	"github.com/pikoproxy/piko/internal/auth"
	"github.com/pikoproxy/piko/internal/guard"
	"github.com/pikoproxy/piko/internal/h2"
	"github.com/pikoproxy/piko/internal/limit"
	"github.com/pikoproxy/piko/internal/router"
	"github.com/pikoproxy/piko/internal/socket"
)

// Router opens streams to the upstreams of endpoints. [*router.Router] is one.
type Router interface {
	Open(ctx context.Context, req router.Request) (*router.Stream, error)
	// Retry asks for leave to send a request again of which something may have been delivered.
	Retry() bool
}

// Authenticator finds out who sends a request.
type Authenticator interface {
	// Authenticate is told whose domain the request is for: it returns an identity of that tenant, or nil when everybody
	// may reach the tenant's endpoints. The name is empty for what belongs to no tenant, unless the client names one.
	Authenticate(ctx context.Context, h http.Header, tenant string) (*auth.Identity, error)
}

// Options are what [New] needs. Only the Router must be there.
type Options struct {
	Settings
	Limits
	Router     Router
	Auth       Authenticator         // nil: everybody may reach every endpoint
	Limiter    Limiter               // nil: no limits by client or endpoint
	Report     *limit.Reporter       // counts who is turned away; may be nil
	Turns      guard.Turns           // of TLS handshakes; nil: all are worked on at once
	Leases     *auth.Leases          // ends what outlives its token; nil: nothing does
	TLS        *tls.Config           // nil: plain HTTP. It may choose by GetConfigForClient, and so change while in use
	Log        *logrus.Logger        // for requests; nil: none are logged
	ErrorLog   *log.Logger           // for what net/http has to say; nil: its default
	Registerer prometheus.Registerer // nil: metrics are counted but not published

	onlyNetHTTP bool
}

// Server is the proxy listener of a node. Make one with [New].
type Server struct {
	router   Router
	auth     Authenticator
	limiter  Limiter
	report   *limit.Reporter
	turns    guard.Turns
	leases   *auth.Leases
	edge     atomic.Pointer[edge]
	access   *logrus.Logger
	errorLog *log.Logger
	settings atomic.Pointer[Settings]
	metrics  *metrics
	h2       h2.Pool
	buffers  *copyBuffers

	exchanges sync.Pool // of *exchange
	heads     sync.Pool // of *[]byte
	answers   sync.Pool // of *[plainRoom]byte

	date        clock
	onlyNetHTTP bool // for tests: serve nothing by our own loop

	tracker  tracker // of requests and switched connections
	draining atomic.Bool
	retiring sync.WaitGroup // of fronts

	mu     sync.Mutex // guards the following
	fronts map[*front]struct{}
	life   context.Context // ends when what runs is cut off; made by the first Serve
	kill   context.CancelFunc
}

// lastCall is how long clients have to hear by an answer that it was their connection's last one, and how long connections
// are still read when no new ones are accepted. What a client has sent before it could know that, be it on a connection
// that nobody has looked at yet, is answered.
const lastCall = 300 * time.Millisecond

// firstCall is how long a connection has for its first request, counted from when it was accepted, though nothing more is
// accepted. Whoever has connected is about to send, however long the client's processor is busy with others, and can't know
// that the request may be repeated.
const firstCall = time.Second

// New checks and assembles. It listens to nothing; see [Server.Serve].
func New(o Options) (*Server, error) {
	if o.Router == nil {
		return nil, errors.New("proxy without a router")
	}
	s := &Server{
		router: o.Router, auth: o.Auth, leases: o.Leases, limiter: o.Limiter, report: o.Report, turns: o.Turns,
		access: o.Log, errorLog: o.ErrorLog,
		metrics: newMetrics(o.Registerer), buffers: newCopyBuffers(),
	}
	s.heads.New = func() any { b := make([]byte, 0, 2<<10); return &b }
	s.answers.New = func() any { return new([plainRoom]byte) }
	s.fronts = make(map[*front]struct{})
	s.onlyNetHTTP = o.onlyNetHTTP
	s.tracker.init()
	s.Apply(o.Settings)
	s.ApplyToListeners(o.Limits, o.TLS)
	return s, nil
}

// edge is what a listener's connections are subject to as long as they last.
type edge struct {
	limits Limits
	tls    *tls.Config // nil: plain
}

// ApplyToListeners replaces the limits, and the TLS of [Options], for calls of [Server.Serve] that come later. A listener
// that is being served keeps its own: to change them, serve the same socket once more and close the old listener.
func (s *Server) ApplyToListeners(limits Limits, conf *tls.Config) {
	s.edge.Store(&edge{limits.withDefaults(), conf})
}

// Apply replaces the settings. Requests that are being answered finish under the old ones.
func (s *Server) Apply(settings Settings) {
	settings = settings.withDefaults()
	s.settings.Store(&settings)
}

// Serve answers the clients that l accepts, until [Server.Shutdown] or until l fails. It closes l. It may be called for
// several listeners. From ctx come only values: its end does not touch a request, for that is what Shutdown is for.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	f, err := s.newFront(context.WithoutCancel(ctx), s.edge.Load(), l)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	err = f.accept() //nolint:contextcheck // connections have the life of the server
	if s.draining.Load() {
		return nil
	}
	f.retire()
	return fmt.Errorf("accept clients on %s: %w", l.Addr(), err)
}

// handshakeFailed is told by the guard, which logs it too.
func (s *Server) handshakeFailed() { s.report.Count(limit.Proxy, limit.Handshake) }

// lifetime is the context of what outlives the handlers of net/http.
func (s *Server) lifetime() context.Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.life
}

// handle answers one request that net/http has read.
func (s *Server) handle(w http.ResponseWriter, r *http.Request) {
	if r.ProtoMajor == 2 {
		deepen(0)
	}
	if l, _ := r.Context().Value(lifeKey{}).(*lifeOf); l != nil && !l.arrived.Load() && !l.arrived.Swap(true) {
		l.front.arrived(l.conn)
		if r.ProtoMajor == 2 {
			socket.GiveWay(l.conn) // answers that are ready at one time shall take one write
		}
	}
	s.serve(w, r, nil) //nolint:contextcheck // the request carries its context
}

// deepen makes the stack of a goroutine that net/http has made for one request as large as that is going to need. It would
// grow in several steps otherwise, each of which copies more than the one before.
//
//go:noinline
func deepen(i int) byte {
	var room [8 << 10]byte
	room[i] = 1
	return room[len(room)-1-i]
}

// serve answers one request of a client. It comes by the plain connection, or by net/http if that is nil.
func (s *Server) serve(w http.ResponseWriter, r *http.Request, plain *plainConn) {
	if plain == nil { // which counts by itself, until everything is written
		s.tracker.add()
		defer s.tracker.done()
	}
	s.metrics.inFlight.Inc()
	x := s.newExchange(w, r)
	x.plain = plain
	defer func() {
		// Also when the handler panics with http.ErrAbortHandler, which is how an answer is broken off.
		s.metrics.inFlight.Dec()
		if x.sender != nil {
			x.record.received = x.sender.read.Load()
		}
		if !x.switched {
			s.finish(&x.record)
		}
		x.resume()
		x.release()
	}()
	x.serve()
}

// flusher returns the means to send what was written at once. Every ResponseWriter of net/http has it.
func (s *Server) flusher(w http.ResponseWriter) http.Flusher {
	if f, ok := w.(http.Flusher); ok {
		return f
	}
	return noFlusher{}
}

type noFlusher struct{}

// Flush does nothing.
func (noFlusher) Flush() {}

// Shutdown answers for a moment as ever, but for the last time on each connection, closes idle connections, and only then
// stops accepting: who connects after that may have to wait until another process has begun. It answers what clients have sent
// already, and waits for running requests and switched connections until ctx ends; what is left then is cut off, so that both its ends see
// it break. It returns when nothing runs any more, with ctx's error if something had to be cut.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.draining.Store(true)
	fronts, kill := slices.Collect(maps.Keys(s.fronts)), s.kill
	s.mu.Unlock()
	// From here on every answer is the last one of its connection.
	var wait sync.WaitGroup
	for _, f := range fronts {
		wait.Go(func() {
			f.farewell(ctx)
			f.lastCall(ctx)
			f.shutdown(ctx)
		})
	}
	wait.Wait()
	err := s.tracker.wait(ctx)
	if kill != nil {
		kill()
	}
	for _, f := range fronts {
		f.close()
	}
	s.retiring.Wait()
	s.tracker.waitAll()
	return err
}

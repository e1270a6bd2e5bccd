package proxy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/pikoproxy/piko/internal/guard"
	"github.com/pikoproxy/piko/internal/socket"
)

// front is one listener, and what answers its connections.
//
//	guard.Listener ──> plainConn: our own loop, as long as requests are plain
//	      │                │ anything else: the connection as it is, nothing of that request consumed
//	      │ HTTP/2 by TLS  ▼
//	      └──────────> handover ──> http.Server
//
// Both lead to Server.serve, which does not care.
type front struct {
	server  *Server
	edge    *edge
	guarded *guard.Listener
	handed  *handover
	over    chan struct{} // closed when nothing more is accepted
	http    *http.Server
	conns   tracker // of clients' connections, whoever has them
	wait    sync.WaitGroup

	settling tracker // of plain connections that may end, or turn out to have a request
	arriving tracker // of those handed over with a request that its handler has not got yet

	closing atomic.Bool // idle connections are not wanted
	retired atomic.Bool // the listener was closed, so answers are the last ones of their connections

	waiting sync.Map // net.Conn -> *resting: the connections of net/http

	mu      sync.Mutex // guards the following
	plain   map[*plainConn]struct{}
	foreign map[net.Conn]struct{} // which arriving counts
	ended   bool                  // wait takes nothing more
}

// newFront prepares the serving of a listener, and starts net/http, which waits for what is handed over to it.
//
//nolint:contextcheck // see Serve
func (s *Server) newFront(ctx context.Context, e *edge, l net.Listener) (*front, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining.Load() {
		return nil, http.ErrServerClosed
	}
	if s.life == nil {
		s.life, s.kill = context.WithCancel(ctx)
	}
	f := &front{server: s, edge: e, over: make(chan struct{}), plain: make(map[*plainConn]struct{}), foreign: make(map[net.Conn]struct{})}
	f.guarded = guard.NewListener(l, guard.Options{
		TLS: e.tls, Limits: func() guard.Limits { return s.guardLimits(e) }, HeaderTimeout: e.limits.ReadHeaderTimeout,
		HandshakeTimeout: e.limits.HandshakeTimeout, Turns: s.turns, Rejected: s.handshakeFailed,
		ErrorLog: s.errorLog,
	})
	f.handed = &handover{addr: l.Addr(), conns: make(chan net.Conn), closed: make(chan struct{})}
	f.conns.init()
	f.settling.init()
	f.arriving.init()
	f.http = f.newHTTP(s.life)
	f.wait.Go(func() { _ = f.http.Serve(f.handed) }) // ends when f.handed is closed, which is no error
	s.fronts[f] = struct{}{}
	return f, nil
}

func (f *front) newHTTP(life context.Context) *http.Server {
	e := f.edge
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler:           http.HandlerFunc(f.server.handle),
		Protocols:         protocols,
		TLSConfig:         e.tls.Clone(), // net/http writes into it
		ReadHeaderTimeout: e.limits.ReadHeaderTimeout,
		IdleTimeout:       e.limits.IdleTimeout,
		MaxHeaderBytes:    e.limits.MaxHeaderBytes,
		ErrorLog:          f.server.errorLog,
		BaseContext:       func(net.Listener) context.Context { return life },
		ConnContext:       f.connContext,
		ConnState:         f.countConns,
		// No ReadTimeout and no WriteTimeout: they would cut long bodies and streams.
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams:          e.limits.MaxStreams,
			MaxReadFrameSize:              16 << 10,
			MaxReceiveBufferPerStream:     256 << 10,
			MaxReceiveBufferPerConnection: 1 << 20,
		},
	}
}

// countConns is told by net/http of the lives of its connections.
func (f *front) countConns(c net.Conn, state http.ConnState) {
	f.noteRest(c, state)
	if state == http.StateClosed || state == http.StateHijacked {
		f.arrived(c)
		f.conns.done()
	}
}

// accept serves connections until the listener fails or is closed.
func (f *front) accept() error {
	defer close(f.over)
	var pause time.Duration
	for {
		conn, err := f.guarded.Accept()
		switch {
		case err == nil:
			pause = 0
			f.conns.add()
			f.take(conn)
		case transient(err):
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			f.server.complain("accept clients on %s, again in %s: %v", f.guarded.Addr(), pause, err)
			select {
			case <-time.After(pause):
			case <-f.handed.closed:
			}
		default:
			return err
		}
	}
}

// transient reports whether accepting may succeed again: there are too many open files, or the client has gone already.
func transient(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, syscall.EINTR} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (f *front) take(conn net.Conn) {
	if guard.Of(conn) == nil || f.server.onlyNetHTTP {
		f.hand(conn)
		return
	}
	c := newPlainConn(f, conn)
	f.mu.Lock()
	f.plain[c] = struct{}{}
	f.mu.Unlock()
	go c.serve() // waited for by f.conns
}

// forget says that a connection is not served here any more.
func (f *front) forget(c *plainConn) {
	f.mu.Lock()
	delete(f.plain, c)
	f.mu.Unlock()
}

// handOver gives a connection to net/http with a request that is to be answered. Until a handler has it, nothing but this
// count keeps net/http from being stopped, which would then close the connection.
func (f *front) handOver(conn net.Conn) {
	f.arriving.add()
	f.mu.Lock()
	f.foreign[conn] = struct{}{}
	f.mu.Unlock()
	f.hand(conn)
}

// arrived says that a handler of net/http has a request of a connection, or never will.
func (f *front) arrived(conn net.Conn) {
	f.mu.Lock()
	_, waited := f.foreign[conn]
	delete(f.foreign, conn)
	f.mu.Unlock()
	if waited {
		f.arriving.done()
	}
}

// hand gives a connection to net/http.
func (f *front) hand(conn net.Conn) {
	select {
	case f.handed.conns <- conn:
	case <-f.handed.closed:
		_ = conn.Close()
		f.arrived(conn)
		f.conns.done()
	}
}

// last reports whether answers are the last ones of their connections.
func (f *front) last() bool { return f.retired.Load() || f.server.draining.Load() }

// retire lets go of a listener that was closed, once its connections have ended. If the server is being shut down, that does it.
func (f *front) retire() {
	s := f.server
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining.Load() {
		return
	}
	f.retired.Store(true)
	s.retiring.Go(func() {
		f.conns.waitAll()
		f.close()
		s.mu.Lock()
		delete(s.fronts, f)
		s.mu.Unlock()
	})
}

// farewell goes on as ever for a moment, in which clients that keep their connections learn that they should not, and then
// ends the connections that rest. So little is left to wait for once nothing is accepted any more.
func (f *front) farewell(ctx context.Context) {
	for _, wait := range []func(context.Context) error{f.conns.wait, f.settling.wait} {
		moment, cancel := context.WithTimeout(ctx, lastCall)
		_ = wait(moment) // what is left is the concern of what follows
		cancel()
		f.interruptIdle()
	}
}

// interruptIdle ends the plain connections that wait for a request.
func (f *front) interruptIdle() {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	for c := range f.plain {
		c.interrupt(now)
	}
}

// lastCall stops accepting, and then lets everything go on for a moment, unless all connections end before. That moment
// counts from when nothing is accepted any more, which may be late: the clients know of nothing when the processor has no
// time for us.
func (f *front) lastCall(ctx context.Context) {
	f.mu.Lock()
	if !f.ended {
		f.wait.Go(f.guarded.Retire)
	}
	f.mu.Unlock()
	select {
	case <-f.over:
	case <-f.guarded.Quiet():
	case <-ctx.Done():
	}
	for f.moment(ctx) && ctx.Err() == nil && f.guarded.Owes(socket.Waiting) {
		continue // these handshakes wait for us, and not for their clients
	}
}

// moment lets everything go on for a moment, and reports whether handshakes were still under way at its end.
func (f *front) moment(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, lastCall)
	defer cancel()
	select {
	case <-f.over:
		_ = f.conns.wait(ctx) // those that are left are the concern of what follows
		return false
	case <-ctx.Done():
		return true
	}
}

// shutdown ends idle connections, and waits for all others until ctx ends, whose error shows elsewhere.
func (f *front) shutdown(ctx context.Context) {
	_ = f.guarded.Close() // that it is closed is all that is wanted
	<-f.over
	f.closing.Store(true)
	f.interruptIdle()
	_ = f.settling.wait(ctx)
	// From here on net/http reads requests only to throw them away. Those that have come by then it must have begun with.
	moment, cancel := context.WithTimeout(ctx, lastCall)
	defer cancel()
	_ = f.arriving.wait(moment)
	_ = f.http.Shutdown(ctx)
	_ = f.conns.wait(ctx)
}

// close cuts off what is left, and waits for it.
func (f *front) close() {
	f.mu.Lock()
	f.ended = true
	left := slices.Collect(maps.Keys(f.plain))
	f.mu.Unlock()
	for _, c := range left {
		c.cutOff()
	}
	_ = f.guarded.Close()
	_ = f.http.Close()
	f.wait.Wait()
	f.conns.waitAll()
}

// handover is the listener of net/http: it accepts what is handed over to it.
type handover struct {
	addr   net.Addr
	conns  chan net.Conn // never closed
	closed chan struct{} // closed by Close
	once   sync.Once
}

// Accept waits for a connection.
func (h *handover) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

// Close ends Accept.
func (h *handover) Close() error {
	h.once.Do(func() { close(h.closed) })
	return nil
}

// Addr is that of the listener in front.
func (h *handover) Addr() net.Addr { return h.addr }

// complain tells the log of libraries about something outside of any request.
func (s *Server) complain(format string, args ...any) {
	if s.errorLog != nil {
		_ = s.errorLog.Output(2, fmt.Sprintf(format, args...)) // a log that fails has nowhere to say so
	}
}

// Package classic is a Piko agent as v0.8.1 and v0.9.0 were, written from the description of the classic protocol
// alone and with libraries that Piko's own tunnel does not share code with (coder/websocket below, hashicorp/yamux
// above).
//
// It exists to hold pikod to its word: agents people already run keep working. It is not a good agent: it keeps the
// flaws of the originals on purpose, above all that v0.9.0 exits for good on a clean FIN or a WebSocket Close frame.
//
// An Agent serves one endpoint through a net.Listener. All of its methods may be called from any goroutine.
package classic

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"
	// The rule that only internal/tunnel imports yamux is about the main module; this one is the other end of the wire.
	"github.com/hashicorp/yamux"
)

// Version says which original an Agent behaves like.
type Version int

const (
	// V081 reconnects whatever ended its session.
	V081 Version = iota
	// V090 reconnects when its session was broken, and gives up for good when it was ended by a clean FIN or a
	// WebSocket Close frame.
	V090
)

// String gives the version as its release was called.
func (v Version) String() string {
	if v == V090 {
		return "v0.9.0"
	}
	return "v0.8.1"
}

const (
	minBackoff       = 100 * time.Millisecond
	maxBackoff       = 15 * time.Second
	handshakeTimeout = 10 * time.Second
)

// Options describe an agent.
type Options struct {
	// URL is the base of the upstream listener, for example http://127.0.0.1:8001.
	URL string
	// Endpoint is the name offered.
	Endpoint string
	// Token is sent as bearer; empty sends none.
	Token string
	// TenantID is sent as x-piko-tenant-id; empty sends none.
	TenantID string
	// Version chooses the behaviour when a session ends.
	Version Version
}

// Agent keeps one session to the upstream listener and gives its streams as the connections of a net.Listener.
type Agent struct {
	o       Options
	streams chan net.Conn
	ctx     context.Context
	cancel  context.CancelFunc
	done    chan struct{} // closed by run

	mu       sync.Mutex
	session  *yamux.Session
	sessions int
	changed  chan struct{} // closed and replaced when sessions grows
	err      error         // why the agent gave up; set before done is closed
}

var _ net.Listener = (*Agent)(nil)

// Listen starts an agent. It returns once the first session stands, or with the error that made the agent give up.
// The agent lives until Close, or until it gives up, but not longer than ctx.
func Listen(ctx context.Context, o Options) (*Agent, error) {
	a := &Agent{o: o, streams: make(chan net.Conn), done: make(chan struct{}), changed: make(chan struct{})}
	a.ctx, a.cancel = context.WithCancel(ctx)
	go a.run()
	if err := a.WaitSessions(ctx, 1); err != nil {
		return nil, errors.Join(err, a.Close())
	}
	return a, nil
}

// WaitSessions waits until the agent has connected n times in its life. It ends early when the agent has given up.
func (a *Agent) WaitSessions(ctx context.Context, n int) error {
	for {
		a.mu.Lock()
		have, changed := a.sessions, a.changed
		a.mu.Unlock()
		if have >= n {
			return nil
		}
		select {
		case <-changed:
		case <-a.done:
			return a.Err()
		case <-ctx.Done():
			return fmt.Errorf("wait for session %d of %s: %w", n, a.o.Endpoint, ctx.Err())
		}
	}
}

// Sessions is how often the agent has connected in its life.
func (a *Agent) Sessions() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.sessions
}

// Done is closed when the agent has ended: closed by its owner, or given up.
func (a *Agent) Done() <-chan struct{} { return a.done }

// Err says why the agent gave up. It is nil while the agent lives, and net.ErrClosed after Close.
func (a *Agent) Err() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.err
}

// Accept waits for the next stream that the server opens.
func (a *Agent) Accept() (net.Conn, error) {
	select {
	case c := <-a.streams:
		return c, nil
	case <-a.done:
		return nil, net.ErrClosed
	}
}

// Addr names the endpoint.
func (a *Agent) Addr() net.Addr { return addr(a.o.Endpoint) }

// Leave says goodbye as the originals do: GoAway(0). Streams that run go on, new ones are reset. The session stands
// until Close.
func (a *Agent) Leave() error {
	a.mu.Lock()
	s := a.session
	a.mu.Unlock()
	if s == nil {
		return errors.New("leave: no session stands")
	}
	return s.GoAway()
}

// Close ends the agent and waits until it is gone.
func (a *Agent) Close() error {
	a.cancel()
	<-a.done
	return nil
}

func (a *Agent) run() {
	defer close(a.done)
	defer a.cancel()
	backoff := minBackoff
	for {
		before := a.Sessions()
		err := a.serveOnce()
		if a.ctx.Err() != nil {
			err = net.ErrClosed
		}
		if a.ctx.Err() != nil || !a.again(err) {
			a.mu.Lock()
			a.err = err
			a.mu.Unlock()
			return
		}
		if a.Sessions() > before {
			backoff = minBackoff // the pauses grow with attempts that fail, not with sessions that end
		}
		select {
		case <-time.After(backoff/2 + rand.N(backoff/2)): //nolint:gosec // spreading retries needs no secrecy
		case <-a.ctx.Done():
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

// again says whether an agent of this version tries once more after err.
func (a *Agent) again(err error) bool {
	var status *StatusError
	if errors.As(err, &status) {
		return status.Temporary()
	}
	if a.o.Version == V090 && endedCleanly(err) {
		return false
	}
	return true
}

// endedCleanly reports a FIN with nothing before it, or a Close frame.
func endedCleanly(err error) bool {
	return errors.Is(err, io.EOF) || websocket.CloseStatus(err) != -1
}

// serveOnce holds one session from handshake to end. It returns the reason of the end.
func (a *Agent) serveOnce() error {
	header := http.Header{}
	if a.o.Token != "" {
		header.Set("Authorization", "Bearer "+a.o.Token)
	}
	if a.o.TenantID != "" {
		header.Set("X-Piko-Tenant-Id", a.o.TenantID)
	}
	conn, err := dial(a.ctx, a.o.URL+"/piko/v1/upstream/"+a.o.Endpoint, header)
	if err != nil {
		return err
	}
	settings := yamux.DefaultConfig()
	settings.LogOutput = io.Discard
	session, err := yamux.Client(conn, settings)
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	stop := context.AfterFunc(a.ctx, func() { _ = session.Close() })
	defer stop()
	defer func() { _ = session.Close() }()

	a.mu.Lock()
	a.session = session
	a.sessions++
	close(a.changed)
	a.changed = make(chan struct{})
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		a.session = nil
		a.mu.Unlock()
	}()

	for {
		stream, err := session.AcceptStream()
		if err != nil {
			return conn.cause(err)
		}
		select {
		case a.streams <- stream:
		case <-a.ctx.Done():
			return errors.Join(a.ctx.Err(), stream.Close())
		}
	}
}

// StatusError is the answer of a server that did not upgrade.
type StatusError struct {
	// Status is the HTTP status.
	Status int
	// Body is the beginning of the answer's body.
	Body string
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("handshake: status %d: %s", e.Status, e.Body)
}

// Temporary reports whether the originals try again after this status.
func (e *StatusError) Temporary() bool {
	switch e.Status {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

type addr string

// Network is the kind of the address.
func (a addr) Network() string { return "piko" }

// String is the name of the endpoint.
func (a addr) String() string { return string(a) }

// websocketURL turns the http scheme of a base into that of a WebSocket.
func websocketURL(url string) string {
	return strings.Replace(url, "http", "ws", 1)
}

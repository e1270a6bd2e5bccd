package piko

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/pikoproxy/piko/internal/endpoint"
	"github.com/pikoproxy/piko/internal/tunnel"
)

// Protocol says what the connections of an endpoint carry.
type Protocol string

// The protocols that an endpoint can be offered with.
const (
	HTTP Protocol = "http" // requests, among them WebSockets and gRPC
	TCP  Protocol = "tcp"  // any bytes
)

// maxWaiting is how many connections may wait for an Accept; more are refused, and the node tries another upstream.
const maxWaiting = 1024

// ListenOption changes how an endpoint is offered.
type ListenOption func(*Listener)

// WithProtocol offers the endpoint for a protocol; the default is HTTP.
func WithProtocol(p Protocol) ListenOption {
	return func(l *Listener) { l.protocol = string(p) }
}

// WithWeight sets the share of the endpoint's traffic that this process gets, compared with the others that offer it.
// The default is 1; zero and less count as 1.
func WithWeight(weight int) ListenOption {
	return func(l *Listener) { l.weight = max(weight, 1) }
}

// InBackground makes Listen return at once instead of waiting until the endpoint is routable. Whatever goes wrong, even a
// token that is refused, is then logged and tried again until it works; [Listener.Nodes] tells how things stand.
func InBackground() ListenOption {
	return func(l *Listener) { l.background = true }
}

// Replacing makes Listen take the place of the client's listener for the same endpoint, if there is one. The endpoint stays
// routable: from then on what arrives goes to the new listener, which also gets what the old one has not accepted yet; what
// that has accepted lives on, and its Accept returns [net.ErrClosed].
func Replacing() ListenOption {
	return func(l *Listener) { l.replaces = true }
}

// Listener accepts the connections that arrive for one endpoint. It is a [net.Listener]. Its methods may be called from
// several goroutines at once.
type Listener struct {
	pool       *pool
	endpoint   string
	protocol   string
	weight     int
	background bool
	replaces   bool
	done       chan struct{} // closed by Close
	arrived    chan struct{} // holds a token when queue may have something; cap 1

	// Guarded by pool.mu.
	waiting bool   // Listen has not returned yet
	since   uint64 // pool.dials when the listener was added: only later attempts say something about it
	refused error  // the last refusal; nil after a node has accepted

	mu     sync.Mutex
	queue  []*Incoming
	closed bool
}

// Listen offers an endpoint and returns when it is routable: from then on the cluster brings connections to the
// [Listener]. Letters in the name of the endpoint are taken as lower case.
//
// Listen keeps trying while no node can be reached, so its context should have a deadline or be cancelled at some time.
// It returns an error when a node refuses the endpoint or the token, when a certificate is not trusted, when
// TokenSource fails, and when this client listens on the endpoint already. After Listen has returned a Listener, the same
// troubles are logged and retried. The end of ctx does not end the Listener.
func (c *Client) Listen(ctx context.Context, name string, opts ...ListenOption) (*Listener, error) {
	canonical, err := endpoint.Parse(name)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	l := &Listener{
		endpoint: canonical,
		protocol: string(HTTP),
		weight:   1,
		done:     make(chan struct{}),
		arrived:  make(chan struct{}, 1),
	}
	for _, o := range opts {
		o(l)
	}
	if l.protocol != string(HTTP) && l.protocol != string(TCP) {
		return nil, fmt.Errorf("listen on %q: protocol is %q, want %q or %q", canonical, l.protocol, HTTP, TCP)
	}
	p, err := c.start(ctx)
	if err != nil {
		return nil, fmt.Errorf("listen on %q: %w", canonical, err)
	}
	l.pool = p
	l.waiting = !l.background
	old, err := p.add(l) //nolint:contextcheck // places belong to the pool, and not to the caller
	if err != nil {
		return nil, fmt.Errorf("listen on %q: %w", canonical, err)
	}
	if old != nil {
		l.inherit(old)
	}
	if l.background {
		return l, nil
	}
	if err := p.awaitRoutable(ctx, l); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("listen on %q: %w", canonical, err)
	}
	return l, nil
}

// awaitRoutable blocks until a node has accepted the listener, or it is clear that none will.
func (p *pool) awaitRoutable(ctx context.Context, l *Listener) error {
	for {
		p.mu.Lock()
		changed, done, err := p.changed, p.routableLocked(l, false), p.hopelessLocked(l)
		l.waiting = !done
		p.mu.Unlock()
		if done || err != nil {
			return err
		}
		select {
		case <-changed:
		case <-l.done:
			return net.ErrClosed
		case <-ctx.Done():
			p.mu.Lock()
			last := p.dialErr
			p.mu.Unlock()
			if last != nil {
				return fmt.Errorf("%w; last: %w", ctx.Err(), last)
			}
			return ctx.Err()
		}
	}
}

// hopelessLocked returns why a new listener should be given up: an answer that another try would only repeat.
func (p *pool) hopelessLocked(l *Listener) error {
	if permanent(l.refused) {
		return l.refused
	}
	if len(p.links) == 0 && p.dialed > l.since && permanent(p.dialErr) {
		return p.dialErr
	}
	return nil
}

// permanent reports whether an error is an answer rather than an accident.
func permanent(err error) bool {
	var status *StatusError
	var refused *RefusedError
	var certificate *tls.CertificateVerificationError
	switch {
	case errors.As(err, &status):
		return !status.temporary()
	case errors.As(err, &refused):
		return !refused.temporary()
	}
	return errors.As(err, &certificate) || errors.Is(err, errToken)
}

// Accept returns the next connection; its dynamic type is [*Conn]. It returns [net.ErrClosed] after Close, and no other
// error: the loss of nodes does not show here.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		in, err := l.AcceptIncoming()
		if err != nil {
			return nil, err
		}
		// An error means that the client or the node has given up meanwhile; the next one is what the caller wants.
		if c, err := in.Accept(); err == nil {
			return c, nil
		}
	}
}

// AcceptIncoming returns the next connection before it is accepted, for callers that may want to refuse it. The caller
// must call Accept or Refuse on what it gets, soon: the client waits.
func (l *Listener) AcceptIncoming() (*Incoming, error) {
	for {
		if in := l.next(); in != nil {
			return in, nil
		}
		select {
		case <-l.arrived:
		case <-l.done:
			return nil, net.ErrClosed
		}
	}
}

func (l *Listener) next() *Incoming {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) == 0 {
		return nil
	}
	in := l.queue[0]
	l.queue[0] = nil
	if l.queue = l.queue[1:]; len(l.queue) == 0 {
		l.queue = nil
	} else {
		l.wake() // another Accept may wait
	}
	return in
}

// deliver queues what arrived. It reports false, and leaves in alone, when the listener takes no more.
func (l *Listener) deliver(in *Incoming) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || len(l.queue) >= maxWaiting {
		return false
	}
	l.queue = append(l.queue, in)
	l.wake()
	return true
}

func (l *Listener) wake() {
	select {
	case l.arrived <- struct{}{}:
	default: // there is a token already
	}
}

// Close stops offering the endpoint. Connections that wait for an Accept are refused, so that the node can bring them to
// another upstream; those that were accepted live on. Close returns nil.
func (l *Listener) Close() error {
	l.mu.Lock()
	closed, queue := l.closed, l.queue
	l.closed, l.queue = true, nil
	if !closed {
		close(l.done)
	}
	l.mu.Unlock()
	if closed {
		return nil
	}
	l.pool.remove(l)
	code := l.pool.refusal(l)
	for _, in := range queue {
		_ = in.Refuse(code, "listener closed") // fails only if nobody waits any more
	}
	return nil
}

// Addr returns the endpoint; its network is "piko".
func (l *Listener) Addr() net.Addr { return addr(l.endpoint) }

// Nodes returns the ids of the nodes that offer the endpoint on behalf of this listener now, in no particular order. While
// it is empty, the endpoint does not reach this process.
func (l *Listener) Nodes() []string {
	p := l.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	var ids []string
	for k := range p.links {
		if k.on[l.endpoint] == l {
			ids = append(ids, k.nodeID)
		}
	}
	return ids
}

// Err returns the last refusal of the endpoint by a node, or why no node could be reached; nil while some node offers it.
func (l *Listener) Err() error {
	p := l.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.routableLocked(l, false):
		return nil
	case l.refused != nil:
		return l.refused
	}
	return p.dialErr
}

// addr is an endpoint as a net.Addr.
type addr string

// Network implements net.Addr.
func (a addr) Network() string { return "piko" }

// String implements net.Addr.
func (a addr) String() string { return string(a) }

var _ net.Listener = (*Listener)(nil)

// The words with which an agent refuses a connection, for [Incoming.Refuse].
const (
	CodeServiceUnreachable = tunnel.CodeServiceUnreachable // the service behind the agent does not answer
	CodeOverloaded         = tunnel.CodeOverloaded         // too much is running already
	CodeDraining           = tunnel.CodeDraining           // the agent is about to stop
	CodeNotListening       = tunnel.CodeNotListening       // the agent does not offer the endpoint for this protocol
)

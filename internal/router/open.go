package router

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pikoproxy/piko/internal/tunnel"
)

var (
	// ErrNoUpstream tells that nobody offers the endpoint, also after waiting where that made sense.
	ErrNoUpstream = errors.New("no available upstreams")
	// ErrProtocol tells that the endpoint is offered, but nobody there understands the protocol that was asked for: the
	// same request may succeed with another one, say HTTP/1.1 instead of HTTP/2.
	ErrProtocol = errors.New("no upstream speaks the protocol")
	// ErrTimeout tells that the deadline of the request's context passed before a stream was open.
	ErrTimeout = errors.New("no stream in time")
)

// UnreachableError tells that upstreams are there and none of them took the stream. Nothing was delivered to any.
type UnreachableError struct {
	Key   Key
	Tried int   // upstreams asked by this Open
	Err   error // of the one asked last
}

// Error names the endpoint and the last reason.
func (e *UnreachableError) Error() string {
	return fmt.Sprintf("open stream to %s: %d upstreams tried: %v", e.Key, e.Tried, e.Err)
}

// Unwrap returns the last reason.
func (e *UnreachableError) Unwrap() error { return e.Err }

// Request says where a stream shall lead.
type Request struct {
	Key    Key
	Header tunnel.Header // Endpoint as the agent knows it, without the tenant
	Fresh  bool          // a stream that nobody has used: for a second try after a reused one broke
	Tried  []*Upstream   // not these: asked for the same request before

	// Rested is how long an idle stream may have rested to be taken; 0: as long as it likes. A service may close a stream
	// in the same moment, the sooner the longer it has rested, and what has been sent can't always be sent again.
	Rested time.Duration

	peer string // that the request came from: see OpenLocal
}

// Open returns a stream to an upstream of the endpoint. It prefers an idle stream for HTTP. Upstreams that refuse
// before a byte was sent are replaced silently, each candidate being asked once, until ctx ends. When the endpoint was
// here moments ago or this node has just started, Open first waits for it, no longer than the endpoint_wait setting.
//
// The errors are [ErrNoUpstream], [ErrProtocol], [*UnreachableError], [ErrTimeout], and that of ctx when it was
// cancelled.
func (r *Router) Open(ctx context.Context, req Request) (*Stream, error) {
	settings := r.settings.Load()
	if len(req.Tried) == 0 {
		r.budget.earn()
	}
	var first [8]*Upstream // tried; most endpoints have fewer upstreams
	c := chooser{
		policy: settings.Policy, protocol: req.Header.Protocol, peer: req.peer, zone: r.zone,
		tried: first[:0], before: req.Tried, now: r.now(),
	}
	var last error
	var held time.Duration
	for {
		u, probe := r.choose(&c, req.Key)
		if u == nil {
			if req.peer != "" || !r.moving(req.Key, &c) || held >= settings.EndpointWait {
				return nil, r.none(&c, req.Key, last)
			}
			waited, err := r.wait(ctx, &c, req.Key, settings.EndpointWait-held)
			if err != nil {
				return nil, err
			}
			held += waited
			c.again(r.now())
			continue
		}
		s, err := r.open(ctx, u, probe, &req)
		if err == nil {
			return s, nil
		}
		if ctx.Err() != nil {
			return nil, ended(ctx, req.Key)
		}
		c.tried, last, c.now = append(c.tried, u), err, r.now()
		if u.isRemote() && isRefusal(err, tunnel.CodeInvalid) {
			c.speechless++
		}
		c.failed = c.failed || !u.gone() && !leaving(u, err)
	}
}

// choose returns the upstream to ask next, and whether the request decides about its ejection.
func (r *Router) choose(c *chooser, key Key) (u *Upstream, probe bool) {
	e, snap := r.lookup(key)
	for snap != nil {
		u, lastResort := c.pick(e, snap)
		if u == nil {
			before := snap
			if e, snap = r.lookup(key); snap == before {
				return nil, false
			}
			continue // who left while this one looked may have been followed by another
		}
		if probe, ok := u.attempt(c.now, lastResort); ok {
			return u, probe
		}
	}
	return nil, false
}

// open takes an idle stream of the upstream or opens a new one.
func (r *Router) open(ctx context.Context, u *Upstream, probe bool, req *Request) (*Stream, error) {
	kind := poolOf(req.Header.Protocol)
	relayed := ""
	if kind >= 0 {
		relayed = req.peer
	}
	u.count(relayed, 1)
	if kind >= 0 && !req.Fresh && u.crowded() {
		if p := r.takeIdle(u, kind, req.Rested); p != nil {
			r.metrics.reused.Inc()
			return &Stream{pooled: p, reused: true, probe: probe}, nil
		}
	}
	h := req.Header
	if u.isRemote() {
		h.Endpoint = req.Key
	}
	if kind >= 0 {
		h.Client, h.Trace = "", "" // the stream will carry requests of others too
	}
	if u.protocol == tunnel.ProtocolTCP {
		h.Protocol = tunnel.ProtocolTCP // the agent passes the bytes on as they are, whatever they mean
	}
	epoch := u.epoch.Load()
	conn, err := r.openOn(ctx, u, h)
	if err != nil {
		u.count(relayed, -1)
		r.refused(ctx, u, probe, err)
		return nil, err
	}
	r.metrics.opened.Inc()
	if relayed != "" {
		kind = -1 // the peer keeps it
	}
	return &Stream{pooled: &pooled{Conn: conn, upstream: u, pool: kind, epoch: epoch}, probe: probe, relayed: relayed}, nil
}

// takeIdle returns the youngest idle stream that is fit for use and drops those that are not.
func (r *Router) takeIdle(u *Upstream, kind int, rested time.Duration) *pooled {
	var after time.Duration
	if rested > 0 {
		after = r.now() - rested
	}
	for {
		p := u.pools[kind].take(u.isRemote(), after)
		if p == nil {
			return nil
		}
		if p.fit() {
			return p
		}
		_ = p.abort() // it is unusable; how it ends is of no interest
		r.metrics.dropped[dropUnfit].Inc()
	}
}

// refused counts why an upstream did not take a stream, and whether that was a fault.
func (r *Router) refused(ctx context.Context, u *Upstream, probe bool, err error) {
	reason := reasonOf(err)
	if ctx.Err() != nil {
		reason = refusalAbandoned
	}
	r.metrics.refusals[reason].Inc()
	switch {
	case reason == refusalAbandoned, reason == refusalDraining, reason == refusalClosed, reason == refusalOverloaded:
		// Nothing is wrong with the service: the client left, or the session says itself that it has had enough.
	case u.isRemote() && (reason == refusalNotListening || isRefusal(err, tunnel.CodeInvalid)):
		// The agent has left that node a moment ago, or those there do not speak the protocol.
	default:
		u.fault(probe)
	}
}

// moving reports whether waiting for the endpoint is worth while: no upstream is left to be asked, those that were
// asked went away rather than failed, and the endpoint was here moments ago or nobody has had the time to come.
func (r *Router) moving(key Key, c *chooser) bool {
	if c.failed {
		return false
	}
	now := r.now()
	_, snap := r.lookup(key)
	if snap == nil {
		return now < startWindow
	}
	lately := len(snap.all) == 0
	for _, u := range snap.all {
		if c.usable(u) {
			return true // it has just come or come back: who waits finds it at once
		}
		// One that stays and merely can't be used, by its protocol or because it was tried before, is no reason to wait.
		if !u.gone() && !slices.Contains(c.tried, u) {
			return false
		}
		lately = lately || !u.isRemote() || u.remote.DownFor() < recentWindow
	}
	return lately && r.leftRecently(key, now)
}

// none is the error for a request without any candidate left.
func (r *Router) none(c *chooser, key Key, last error) error {
	if last != nil && c.speechless == len(c.tried) {
		return ErrProtocol
	}
	if last != nil {
		return &UnreachableError{Key: key, Tried: len(c.tried), Err: last}
	}
	_, snap := r.lookup(key)
	if snap != nil && slices.ContainsFunc(snap.all, func(u *Upstream) bool {
		return !u.gone() && !u.serves(c.protocol)
	}) {
		return ErrProtocol
	}
	return ErrNoUpstream
}

// ended tells why ctx ended, in the words of this package.
func ended(ctx context.Context, key Key) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("open stream to %s: %w", key, ErrTimeout)
	}
	return fmt.Errorf("open stream to %s: %w", key, context.Cause(ctx))
}

// leaving reports whether an upstream that gave this error is about to go, so that another may be coming.
func leaving(u *Upstream, err error) bool {
	reason := reasonOf(err)
	return reason == refusalDraining || reason == refusalClosed || u.isRemote() && reason == refusalNotListening
}

func isRefusal(err error, code string) bool {
	var refused *tunnel.RefusedError
	return errors.As(err, &refused) && refused.Code == code
}

package piko

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"time"
)

// place is one connection that is wanted: a goroutine in [pool.keep] fills it.
type place struct {
	*settings
	passed  int                // nodes passed over in a row, since others would be better; guarded by pool.mu
	dismiss context.CancelFunc // ends keep: the link that fills the place leaves when others carry what it offers
}

// openLocked adds places under the settings in use.
func (p *pool) openLocked(n int) {
	for range n {
		at := &place{settings: p.settings}
		var ctx context.Context
		ctx, at.dismiss = context.WithCancel(p.ctx)
		p.places = append(p.places, at)
		p.goLocked(func(context.Context) {
			defer at.dismiss()
			p.keep(ctx, at)
		})
	}
}

// Reconfigure makes the client what next is: its fields are taken over, except Logger, and then sessions are made as they
// say. The old sessions stay until the new ones carry all listeners; then they take nothing new, and what runs on them has the
// time of grace to end. As long as no session can be made as next says, the old ones serve on.
//
// next must not have been used; it may be dropped afterwards. An error means that its fields make no sense, and that nothing
// has changed. Reconfigure does not wait for anything.
func (c *Client) Reconfigure(next *Client, grace time.Duration) error {
	s, err := next.settings()
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	c.URL, c.ProxyURL, c.Token, c.TokenSource, c.TenantID = next.URL, next.ProxyURL, next.Token, next.TokenSource, next.TenantID
	c.TLSConfig, c.Proxy, c.Connections, c.Heartbeat = next.TLSConfig, next.Proxy, next.Connections, next.Heartbeat
	c.AgentID, c.Labels = next.AgentID, maps.Clone(next.Labels)
	if c.pool != nil {
		c.pool.reconfigure(s, grace)
	}
	return nil
}

// SetConnections changes the number of sessions to hold, as the field Connections says it at first; zero means two. When
// there are too many, some take nothing new, and what runs on them has the time of grace to end.
func (c *Client) SetConnections(n int, grace time.Duration) error {
	if n < 0 {
		return fmt.Errorf("client: %d connections; there can't be fewer than none", n)
	}
	if n == 0 {
		n = defaultConnections
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	c.Connections = n
	if c.pool != nil {
		c.pool.resize(n, grace)
	}
	return nil
}

// RenewToken asks TokenSource for a token now and presents it on every open session, if it is another one. It does not wait
// for that; a source that fails is asked again. Without a TokenSource it does nothing.
func (c *Client) RenewToken() {
	p := c.current()
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for k := range p.links {
		select {
		case k.fresh <- struct{}{}:
		default: // it knows already
		}
	}
}

// reconfigure replaces all places.
func (p *pool) reconfigure(s settings, grace time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.log, s.instanceID = p.log, p.settings.instanceID
	p.settings, p.grace = &s, grace
	old := p.places
	p.places = nil
	if !p.running || p.draining {
		return
	}
	p.openLocked(s.connections)
	for _, at := range old {
		at.dismiss()
	}
	p.notifyLocked()
}

// resize adds places or takes some away.
func (p *pool) resize(n int, grace time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.settings.connections, p.grace = n, grace
	if !p.running || p.draining {
		return
	}
	if more := n - len(p.places); more > 0 {
		p.openLocked(more)
		return
	}
	for _, at := range p.places[n:] {
		at.dismiss()
	}
	p.places = p.places[:n:n]
}

// dismiss retires a link whose place is not wanted any more. It reports false when the pool ends, or the session has.
func (p *pool) dismiss(k *link) bool {
	if k.ended() || p.ending() || p.ctx.Err() != nil {
		return false
	}
	p.vacate(k, false)
	p.mu.Lock()
	defer p.mu.Unlock()
	grace := p.grace
	p.goLocked(func(ctx context.Context) {
		defer p.vacate(k, true)
		defer k.session.Wait()
		p.awaitCovered(ctx, k)
		deadline := time.Now().Add(grace)
		ctx, cancel := context.WithDeadline(ctx, deadline)
		defer cancel()
		p.log.Info("session not wanted any more", "node", k.nodeID)
		if err := k.shutdown(ctx, "agent has other settings", deadline); err != nil && !errors.Is(err, net.ErrClosed) {
			p.log.Warn("streams cut when their session had to end", "node", k.nodeID, "err", err)
		}
	})
	return true
}

// succeedLocked lets a listener take the place of another one. Nodes that have accepted the old one send what arrives to the
// new one at once. They are told all the same: the service may be another, so that streams which they keep for later are of no
// use any more.
func (p *pool) succeedLocked(old, l *Listener) {
	l.refused = old.refused
	for k := range p.links {
		if k.on[l.endpoint] == old {
			k.on[l.endpoint] = l
			k.again[l.endpoint] = !k.leaving
		}
	}
}

// inherit closes a listener whose place l has taken, and takes over what it has not accepted.
func (l *Listener) inherit(old *Listener) {
	old.mu.Lock()
	queue := old.queue
	closed := old.closed
	old.queue, old.closed = nil, true
	if !closed {
		close(old.done)
	}
	old.mu.Unlock()
	for _, in := range queue {
		if !l.deliver(in) {
			_ = in.Refuse(CodeOverloaded, "") // fails only if nobody waits any more
		}
	}
}

package piko

import (
	"context"
	"errors"
	"time"

	"github.com/pikoproxy/piko/internal/backoff"
	"github.com/pikoproxy/piko/internal/tunnel"
)

// listenTimeout bounds the wait for a node's answer to one listen; the node answers when the whole cluster routes.
const listenTimeout = 30 * time.Second

// reconcileLocked starts a goroutine that brings one endpoint of a link to what it should be, unless one is at it.
func (p *pool) reconcileLocked(k *link, endpoint string) {
	if !k.busy[endpoint] && (p.wantedLocked(k, endpoint) != k.on[endpoint] || k.again[endpoint]) {
		k.busy[endpoint] = true
		p.goLocked(func(ctx context.Context) { p.reconcile(ctx, k, endpoint) })
	}
}

// wantedLocked returns the listener that a link should offer for an endpoint. A link that is leaving gets nothing new.
func (p *pool) wantedLocked(k *link, endpoint string) *Listener {
	l := p.listeners[endpoint]
	if k.leaving && k.on[endpoint] != l {
		if l != nil {
			return k.on[endpoint] // good enough until the link has left: what arrives goes to l anyway
		}
		return nil
	}
	return l
}

// takenBack is called when a node withdraws what it had accepted. It is offered again, after the pause of a refusal. A node may
// also say so before the link has been claimed, when there is nothing to take back.
func (p *pool) takenBack(k *link, endpoint string, cause *tunnel.RefusedError) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, claimed := p.links[k]; !claimed {
		return
	}
	k.back[endpoint] = &RefusedError{Endpoint: endpoint, Code: cause.Code, Reason: cause.Reason}
	if !k.busy[endpoint] {
		k.busy[endpoint] = true
		p.goLocked(func(ctx context.Context) { p.reconcile(ctx, k, endpoint) })
	}
}

// reconcile tells the node to listen or unlisten until it has what the pool wants. A listener that takes the place of
// another is told as it is: the node changes its upstream, and the endpoint stays routable. Since one goroutine at a time does so
// for an endpoint, a listener that is closed and opened again can't overtake itself.
func (p *pool) reconcile(ctx context.Context, k *link, endpoint string) {
	var wait backoff.Backoff
	var last string
	for {
		want, have, done, err := p.compare(k, endpoint)
		if done {
			return
		}
		if have != nil && want == nil {
			_ = k.session.Unlisten(endpoint) // fails only with the session
			p.settle(k, endpoint, nil)
			continue
		}
		if err == nil {
			err = k.listen(ctx, want)
		}
		if err == nil {
			p.settle(k, endpoint, want)
			p.log.Info("listening", "endpoint", endpoint, "node", k.nodeID)
			continue
		}
		if k.ended() {
			continue // an end is no refusal
		}
		p.noteRefusal(k, want, err)
		if text := err.Error(); text != last {
			p.log.Warn("endpoint not accepted, will retry", "endpoint", endpoint, "node", k.nodeID, "err", err)
			last = text
		}
		timer := time.NewTimer(wait.Next())
		select {
		case <-timer.C:
		case <-want.done:
		case <-k.session.Done():
		}
		timer.Stop()
	}
}

// compare returns what a link should offer and what it does offer for an endpoint, and the error with which the node took
// back what it had accepted. When there is nothing to do, it ends the claim of its caller on the endpoint.
func (p *pool) compare(k *link, endpoint string) (want, have *Listener, done bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	want = p.wantedLocked(k, endpoint)
	if back := k.back[endpoint]; back != nil {
		delete(k.back, endpoint)
		delete(k.on, endpoint)
		err = back
	}
	have = k.on[endpoint]
	again := k.again[endpoint]
	delete(k.again, endpoint)
	if again && want != nil && want == have && !k.ended() {
		return want, nil, false, err
	}
	if want == have || k.ended() {
		delete(k.busy, endpoint)
		return nil, nil, true, nil
	}
	return want, have, false, err
}

// listen offers one endpoint and waits until the node has made it routable.
func (k *link) listen(ctx context.Context, l *Listener) error {
	ctx, cancel := context.WithTimeout(ctx, listenTimeout)
	defer cancel()
	err := k.session.Listen(ctx, tunnel.Listen{Endpoint: l.endpoint, Protocol: l.protocol, Weight: l.weight})
	var refused *tunnel.RefusedError
	if errors.As(err, &refused) {
		return &RefusedError{Endpoint: l.endpoint, Code: refused.Code, Reason: refused.Reason}
	}
	return err
}

// settle records what the node has for an endpoint; nil means nothing.
func (p *pool) settle(k *link, endpoint string, l *Listener) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l == nil {
		delete(k.on, endpoint)
	} else {
		k.on[endpoint] = l
		l.refused = nil
	}
	p.notifyLocked()
}

// noteRefusal tells a waiting Listen that a node said no.
func (p *pool) noteRefusal(k *link, l *Listener, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if k.on[l.endpoint] == l {
		delete(k.on, l.endpoint) // taken for accepted while it took another one's place
	}
	l.refused = err
	p.notifyLocked()
}

// refusal says why an incoming stream is not taken.
func (p *pool) refusal(l *Listener) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.draining:
		return tunnel.CodeDraining
	case l == nil || p.listeners[l.endpoint] != l:
		return tunnel.CodeNotListening
	}
	return tunnel.CodeOverloaded
}

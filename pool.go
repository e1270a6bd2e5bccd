package piko

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"sync"
	"time"

	"github.com/pikoproxy/piko/internal/backoff"
)

// pool holds the sessions of a client and brings what arrives on them to its listeners.
//
//	slot goroutines (one for each wanted connection)
//	    dial ──► same node as another link, or a poor zone? ──► close, try again: a few times at once, then less and less often
//	      ▲            │ no
//	      │            ▼
//	      │          link: accept, offer every listener, renew the token
//	      │            │                      │
//	      └── died ────┘         the node drains: the slot dials elsewhere at once; the link retires
//	                             when another link carries all its endpoints
//
// What a link should offer is p.listeners, what it does offer is link.on; [pool.reconcile] brings the two together, one
// goroutine for each pair of link and endpoint that differs, and none when nothing does.
type pool struct {
	log  *slog.Logger
	ctx  context.Context // ends when the pool is closed
	stop context.CancelFunc
	wg   sync.WaitGroup // everything the pool started

	mu        sync.Mutex
	listeners map[string]*Listener
	links     map[*link]struct{}
	settings  *settings     // of the sessions to make
	grace     time.Duration // for what runs on links that were dismissed
	places    []*place      // for the connections that are wanted; none before the first listener
	running   bool          // they have been made
	draining  bool          // no new connections, no new listeners
	closed    bool          // wg takes nothing more
	dials     uint64        // attempts to connect that were begun; each has its number
	dialed    uint64        // the attempt that ended last
	dialErr   error         // how it ended
	changed   chan struct{} // closed and replaced at each change of the above
	lost      chan struct{} // closed and replaced when a link begins to retire and when it ends: try again
	zones     zones         // that nodes were met in
}

func newPool(ctx context.Context, s settings) *pool {
	p := &pool{
		log:       s.log,
		settings:  &s,
		listeners: map[string]*Listener{},
		links:     map[*link]struct{}{},
		changed:   make(chan struct{}),
		lost:      make(chan struct{}),
	}
	p.ctx, p.stop = context.WithCancel(ctx)
	return p
}

// notifyLocked wakes everyone who waits for a change.
func (p *pool) notifyLocked() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// goLocked runs f as a goroutine of the pool, unless the pool has ended. What f gets is the pool's context: it belongs to
// the pool, and not to whoever made it start.
func (p *pool) goLocked(f func(ctx context.Context)) {
	if !p.closed {
		p.wg.Go(func() { f(p.ctx) })
	}
}

// add takes a listener in and offers its endpoint on every link. It returns the listener whose place that takes, if any,
// which nothing reaches any more.
func (p *pool) add(l *Listener) (old *Listener, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.draining {
		return nil, net.ErrClosed
	}
	old = p.listeners[l.endpoint]
	if old != nil && !l.replaces {
		return nil, errors.New("this client listens on it already")
	}
	p.listeners[l.endpoint] = l
	l.since = p.dials
	if old != nil {
		p.succeedLocked(old, l)
	}
	if !p.running {
		p.running = true
		p.openLocked(p.settings.connections)
	}
	for k := range p.links {
		p.reconcileLocked(k, l.endpoint)
	}
	p.notifyLocked()
	return old, nil
}

// remove takes a listener out and stops offering its endpoint.
func (p *pool) remove(l *Listener) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listeners[l.endpoint] != l {
		return
	}
	delete(p.listeners, l.endpoint)
	if p.draining {
		return // nodes are told of the end of all at once
	}
	for k := range p.links {
		p.reconcileLocked(k, l.endpoint)
	}
	p.notifyLocked()
}

// keep fills one place for a connection until ctx ends, which is when the pool does or the place is not wanted any more.
func (p *pool) keep(ctx context.Context, at *place) {
	var failed backoff.Backoff                              // no session could be made
	short := backoff.Backoff{Max: time.Second}              // sessions that were made did not last
	same := backoff.Backoff{Min: sameMin, Max: time.Minute} // there seems to be no other node
	report := reporter{log: p.log, url: at.url}
	for p.awaitListener(ctx) {
		attempt, lost := p.beginDial()
		k, err := p.connect(ctx, at)
		p.endDial(attempt, err)
		switch {
		case err != nil && ctx.Err() != nil:
			return
		case err == nil:
			report.connected(k)
			same.Reset()
			failed.Reset() // a node that is restarted again and again is there, so it is not left alone for long
			if p.hold(ctx, k) >= time.Second {
				short.Reset()
			}
			if short.Wait(ctx) != nil {
				return
			}
		case errors.Is(err, errElsewhere):
			failed.Reset()
			p.pause(ctx, passPause, lost)
		case errors.Is(err, errSameNode):
			failed.Reset()
			if p.pause(ctx, same.Next(), lost) {
				same.Reset()
				p.impatient(at)
			}
		default:
			report.failed(err)
			if p.pause(ctx, failed.Next(), lost) {
				failed.Reset()
			}
		}
	}
}

// awaitListener blocks until there is something to offer. It reports false when no connection is wanted any more.
func (p *pool) awaitListener(ctx context.Context) bool {
	for {
		p.mu.Lock()
		wanted, changed, ended := len(p.listeners) > 0, p.changed, p.draining
		p.mu.Unlock()
		if ended {
			return false
		}
		if wanted {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// beginDial returns the number of a new attempt to connect, and the channel that is closed when a link is lost from now on.
func (p *pool) beginDial() (attempt uint64, lost <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dials++
	return p.dials, p.lost
}

// endDial tells waiting Listen calls how an attempt ended.
func (p *pool) endDial(attempt uint64, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dialed, p.dialErr = attempt, err
	p.notifyLocked()
}

// pause waits for d, or until early is closed or somebody who waits in Listen asks for an attempt now. It reports whether
// early was closed.
func (p *pool) pause(ctx context.Context, d time.Duration, early <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		p.mu.Lock()
		changed, hurry := p.changed, p.hurryLocked()
		p.mu.Unlock()
		if hurry {
			return false
		}
		select {
		case <-timer.C:
			return false
		case <-early:
			return true
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// hurryLocked reports whether a new listener should not have to wait for the end of a pause: no attempt was begun since it
// came, and there is no link. Ending the pool also ends pauses.
func (p *pool) hurryLocked() bool {
	if p.draining {
		return true
	}
	if len(p.links) > 0 {
		return false
	}
	for _, l := range p.listeners {
		if l.waiting && l.since == p.dials {
			return true
		}
	}
	return false
}

// vacate marks a link as one that will not stay, so that its place can be filled; gone also forgets it. Whoever waits to
// connect is woken.
func (p *pool) vacate(k *link, gone bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	k.leaving = true
	if gone {
		delete(p.links, k)
		clear(k.on)
	}
	// Twice for a link that retires first: when its node has stopped, the next one at the address may be there already.
	close(p.lost)
	p.lost = make(chan struct{})
	p.notifyLocked()
}

// covered reports whether everything that k offers is offered by a link that stays.
func (p *pool) coveredLocked(k *link) bool {
	for endpoint := range k.on {
		if l := p.listeners[endpoint]; l != nil && !p.routableLocked(l, true) {
			return false
		}
	}
	return true
}

// routableLocked reports whether a node has accepted the listener; with stays, only nodes that are not leaving count.
func (p *pool) routableLocked(l *Listener, stays bool) bool {
	for k := range p.links {
		if k.on[l.endpoint] == l && (!stays || !k.leaving) {
			return true
		}
	}
	return false
}

// ending reports whether the pool is being shut down.
func (p *pool) ending() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.draining
}

// listener returns the listener for an endpoint, or nil.
func (p *pool) listener(endpoint string) *Listener {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.listeners[endpoint]
}

func (p *pool) status() []Session {
	p.mu.Lock()
	links := make([]*link, 0, len(p.links))
	sessions := make([]Session, 0, len(p.links))
	for k := range p.links {
		links = append(links, k)
		sessions = append(sessions, Session{NodeID: k.nodeID, Since: k.since, Draining: k.leaving})
	}
	p.mu.Unlock()
	for i, k := range links {
		sessions[i].RTT = k.session.RTT() // outside the lock: it is another package's business how long this takes
	}
	return sessions
}

// drainListeners ends the making of connections and closes all listeners, in that order, so that no listener comes back.
func (p *pool) drainListeners() []*link {
	p.mu.Lock()
	p.draining = true
	listeners := make([]*Listener, 0, len(p.listeners))
	for _, l := range p.listeners {
		listeners = append(listeners, l)
	}
	links := make([]*link, 0, len(p.links))
	for k := range p.links {
		links = append(links, k)
	}
	p.notifyLocked()
	p.mu.Unlock()
	for _, l := range listeners {
		_ = l.Close()
	}
	return links
}

// shutdown drains: see [Client.Shutdown].
func (p *pool) shutdown(ctx context.Context) error {
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(time.Hour) // only told to the nodes, as the longest they need to reckon with
	}
	links := p.drainListeners()
	errs := make([]error, len(links))
	var wg sync.WaitGroup
	for i, k := range links {
		wg.Go(func() { errs[i] = k.shutdown(ctx, "agent is stopping", deadline) })
	}
	wg.Wait()
	p.close()
	return errors.Join(errs...)
}

// close ends the pool and waits until nothing of it runs.
func (p *pool) close() {
	for _, k := range p.drainListeners() {
		_ = k.session.CloseNow(net.ErrClosed) // its slot waits for the end
	}
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.stop()
	p.wg.Wait()
}

// reporter logs what happens to one place for a connection: the first failure of a kind as a warning, its repetitions
// at debug.
type reporter struct {
	log  *slog.Logger
	url  string
	last string
}

func (r *reporter) failed(err error) {
	say := r.log.Debug
	if text := err.Error(); text != r.last {
		say, r.last = r.log.Warn, text
	}
	say("connection to the cluster could not be made, will retry", "url", redacted(r.url), "err", err)
}

func (r *reporter) connected(k *link) {
	r.last = ""
	r.log.Info("connected", "node", k.nodeID, "url", redacted(r.url))
}

func redacted(s string) string {
	u, err := url.Parse(s)
	if err != nil {
		return fmt.Sprintf("%q", s)
	}
	return u.Redacted()
}

package agent

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"

	"github.com/sirupsen/logrus"
	"golang.org/x/time/rate"

	"github.com/pikoproxy/piko"
	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/tunnel"
)

// listener offers one endpoint and brings its streams to one service. It knows nothing of the other listeners, so that
// each can be started and stopped while the others run.
type listener struct {
	settings config.Listener
	service  *service
	health   *health // nil: the service is not checked
	web      *web    // nil: streams are spliced
	log      *logrus.Entry
	metrics  *listenerMetrics

	inFlight  atomic.Int64  // requests, or connections when spliced
	reachable atomic.Bool   // the last attempt to connect to the service succeeded
	failing   atomic.Bool   // the last attempt failed; both false: there was none
	changes   *rate.Limiter // log lines about that
	unhealthy atomic.Bool
	previous  *listener                     // whose place it takes: it may offer the endpoint still; used by offer only
	succeeded atomic.Bool                   // another has taken the place of this one
	stop      context.CancelFunc            // ends the offer; set before run
	settled   chan struct{}                 // closed when the endpoint is offered, or it is clear that it can't be now
	settle    sync.Once                     // closes it
	offered   atomic.Pointer[piko.Listener] // nil while the endpoint is not offered
	streams   sync.WaitGroup                // accepted and not ended
}

// run offers the endpoint until ctx ends, and returns when all its streams have ended. The end of cut breaks them off.
func (l *listener) run(ctx, cut context.Context, client *piko.Client) {
	serve := l.splice
	if l.web != nil {
		serve = l.web.serve
		l.web.start(cut)
		defer l.web.finish()
		defer context.AfterFunc(cut, l.web.cut)()
		defer context.AfterFunc(ctx, func() { l.web.draining.Store(true) })()
	}
	defer l.streams.Wait()
	if l.health == nil {
		l.offer(ctx, cut, client, serve)
		return
	}
	l.unhealthy.Store(true)
	var offering sync.WaitGroup
	stop := func() {}
	l.health.watch(ctx, func(healthy bool) {
		l.unhealthy.Store(!healthy)
		if !healthy {
			l.settleNow()
		}
		stop()
		offering.Wait()
		if !healthy {
			stop = func() {}
			return
		}
		var offer context.Context
		offer, stop = context.WithCancel(ctx)
		offering.Go(func() { l.offer(offer, cut, client, serve) })
	})
	stop()
	offering.Wait()
}

// offer listens until ctx ends. Streams that were accepted live on.
func (l *listener) offer(ctx, cut context.Context, client *piko.Client, serve func(context.Context, *piko.Incoming)) {
	if previous := l.previous; previous != nil {
		// However quickly one follows the other, the last one must be the last to be offered.
		select {
		case <-previous.settled:
		case <-ctx.Done():
		}
		previous.succeeded.Store(true)
		l.previous = nil
	}
	options := []piko.ListenOption{
		piko.InBackground(), piko.WithProtocol(piko.Protocol(l.settings.Protocol)), piko.WithWeight(l.settings.Weight),
	}
	if !l.succeeded.Load() {
		options = append(options, piko.Replacing()) // also one that has been closed, if that is not known yet
	}
	ln, err := client.Listen(ctx, l.settings.Endpoint, options...)
	l.settleNow()
	if err != nil {
		if !errors.Is(err, net.ErrClosed) {
			l.log.WithField("err", err).Error("endpoint can't be offered")
		}
		return
	}
	l.offered.Store(ln)
	defer l.offered.Store(nil)
	defer context.AfterFunc(ctx, func() { _ = ln.Close() })()
	for {
		in, err := ln.AcceptIncoming()
		if err != nil {
			return // closed, by us or with the client
		}
		if in.Protocol() == tunnel.ProtocolTCP && l.settings.Protocol != tunnel.ProtocolTCP {
			l.refuse(in, piko.CodeNotListening) // raw bytes are for endpoints that were declared so
			continue
		}
		l.streams.Go(func() { serve(cut, in) })
	}
}

func (l *listener) settleNow() { l.settle.Do(func() { close(l.settled) }) }

// enter counts something in, unless max_in_flight is reached; leave counts it out.
func (l *listener) enter() bool {
	n := l.inFlight.Add(1)
	if limit := int64(l.settings.MaxInFlight); limit > 0 && n > limit {
		l.inFlight.Add(-1)
		return false
	}
	return true
}

func (l *listener) leave() { l.inFlight.Add(-1) }

func (l *listener) full() bool {
	limit := int64(l.settings.MaxInFlight)
	return limit > 0 && l.inFlight.Load() >= limit
}

// refuse declines a stream. Its error would only say that nobody waits for the answer any more.
func (l *listener) refuse(in *piko.Incoming, code string) {
	l.metrics.refuse(code)
	_ = in.Refuse(code, "")
}

// dial connects to the service and notes how that went. Only changes are logged, and not often: a dead or failing
// service under load must not fill the log.
func (l *listener) dial(ctx context.Context, protocol string, client net.Addr) (net.Conn, error) {
	conn, err := l.service.dial(ctx, protocol, client)
	if err != nil && errors.Is(ctx.Err(), context.Canceled) {
		return nil, err // we were told to stop, or the client left; this says nothing of the service
	}
	l.reachable.Store(err == nil)
	was := l.failing.Swap(err != nil)
	switch {
	case err != nil:
		l.metrics.unreachable.Inc()
		if !was && l.changes.Allow() {
			l.log.WithField("err", err).Warn("service unreachable, connections are refused")
		}
	case was && l.changes.Allow():
		l.log.Info("service reachable again")
	}
	return conn, err
}

func (l *listener) debug() bool { return l.log.Logger.IsLevelEnabled(logrus.DebugLevel) }

// state is one word for how the listener fares.
func (l *listener) state() string {
	ln := l.offered.Load()
	switch {
	case l.unhealthy.Load():
		return stateUnhealthy
	case ln == nil || len(ln.Nodes()) == 0:
		return stateWaiting
	}
	return stateRoutable
}

// The states of a listener, in the order in which the status lists them.
const (
	stateRoutable  = "routable"  // requests come in
	stateWaiting   = "waiting"   // for a node, or for its consent
	stateUnhealthy = "unhealthy" // the service fails its check, so the endpoint is not offered
)

package forward

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"

	"github.com/sirupsen/logrus"
	"golang.org/x/time/rate"

	"github.com/pikoproxy/piko"
	"github.com/pikoproxy/piko/internal/backoff"
	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/relay"
)

// forward takes the connections of one address.
type forward struct {
	target atomic.Pointer[target]
	client func() *piko.Client // the one in use
	ln     net.Listener        // set by bind
	stop   context.CancelFunc  // ends the taking of connections; set before run
	open   atomic.Int64
}

// target is where the connections of a forward lead.
type target struct {
	settings config.ForwardEntry
	log      *logrus.Entry
	lines    *rate.Limiter // of the log about connections that failed
	skipped  atomic.Int64  // lines that were not written
	metrics  *forwardMetrics
}

// run forwards until ctx ends, and returns when the connections have ended. The end of cut breaks them off.
func (f *forward) run(ctx, cut context.Context) {
	var conns sync.WaitGroup
	defer conns.Wait()
	defer context.AfterFunc(ctx, func() { _ = f.ln.Close() })()
	f.target.Load().log.WithField("address", f.ln.Addr().String()).Info("forwarding")
	var wait backoff.Backoff
	for {
		conn, err := f.ln.Accept()
		switch {
		case err == nil:
			wait.Reset()
			conns.Go(func() { f.serve(cut, conn) })
		case ctx.Err() != nil:
			return
		case errors.Is(err, net.ErrClosed):
			f.target.Load().log.WithField("err", err).Error("listener closed")
			return
		default:
			// Most likely out of file descriptors, which gets better when connections end.
			f.target.Load().log.WithField("err", err).Warn("connection can't be accepted, will retry")
			if wait.Wait(ctx) != nil {
				return
			}
		}
	}
}

// serve brings one connection to the endpoint.
func (f *forward) serve(ctx context.Context, conn net.Conn) {
	to := f.target.Load()
	f.open.Add(1)
	to.metrics.open.Inc()
	defer func() {
		f.open.Add(-1)
		to.metrics.open.Dec()
	}()
	remote, err := f.client().Dial(ctx, to.settings.Endpoint)
	if err != nil {
		to.metrics.failed.Inc()
		to.report(conn, err)
		relay.Abort(conn)
		return
	}
	to.metrics.forwarded.Inc()
	counts, err := relay.Relay(ctx, conn, remote, relay.Options{})
	to.metrics.sent.Add(float64(counts.AToB))
	to.metrics.received.Add(float64(counts.BToA))
	if err != nil {
		to.log.WithFields(logrus.Fields{"client": conn.RemoteAddr().String(), "err": err}).Debug("connection broken")
	}
}

// report logs why a connection was aborted, but not more often than somebody could read.
func (f *target) report(conn net.Conn, err error) {
	if !f.lines.Allow() {
		f.skipped.Add(1)
		return
	}
	entry := f.log.WithFields(logrus.Fields{"client": conn.RemoteAddr().String(), "err": err})
	if n := f.skipped.Swap(0); n > 0 {
		entry = entry.WithField("suppressed", n)
	}
	entry.Error("endpoint can't be reached, connection aborted")
}

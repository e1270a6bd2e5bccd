package limit

import (
	"context"
	"time"

	"github.com/sirupsen/logrus"
)

// slowEvery is the longest time between two looks at who reads slowly.
const slowEvery = 5 * time.Second

// Watch breaks off connections whose other end takes less than it must of what is there for it, until ctx ends. That an
// end takes nothing at all the kernel notices by itself; one that takes a few bytes now and then holds a request, its
// stream and its buffers just as well.
func (g *Gate) Watch(ctx context.Context) error {
	timer := time.NewTimer(slowEvery)
	defer timer.Stop()
	var all []*conn
	for {
		wait := slowEvery
		if span := g.settings.Load().NoProgress; span > 0 {
			wait = min(wait, span/8+time.Millisecond)
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		all = g.look(time.Now(), all[:0])
		clear(all) // those that have ended are not to be kept
	}
}

// look looks at all connections once. It returns the slice with room for them.
func (g *Gate) look(now time.Time, all []*conn) []*conn {
	s := g.settings.Load()
	if s.NoProgress <= 0 || s.LeastRate <= 0 {
		return all
	}
	g.mu.Lock()
	for c := range g.conns {
		all = append(all, c)
	}
	g.mu.Unlock()
	for _, c := range all {
		if c.slow(now, s.NoProgress, s.LeastRate) {
			g.report.Reject(g.listener, SlowReader, logrus.Fields{"remote": c.RemoteAddr().String()})
			_ = c.Reset() // it is of no use any more
		}
	}
	return all
}

// slow reports whether the other end had something to take at every look for the time of span, and took less than rate
// bytes a second of it.
func (c *conn) slow(now time.Time, span time.Duration, rate int64) bool {
	waiting, taken := pending(c.Conn)
	switch {
	case !waiting, c.patient.Load():
		c.since = time.Time{}
		return false
	case c.since.IsZero():
		c.since, c.taken = now, taken
		return false
	}
	waited := now.Sub(c.since)
	if waited < span {
		return false
	}
	if float64(taken-c.taken) < float64(rate)*waited.Seconds() {
		return true
	}
	c.since, c.taken = now, taken
	return false
}

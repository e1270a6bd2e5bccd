package server

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/pikoproxy/piko/internal/auth"
	"github.com/pikoproxy/piko/internal/tlsconf"
	"github.com/pikoproxy/piko/internal/tunnel"
)

const (
	drainTold   = time.Second // for the agents to take the news
	expirySweep = time.Second
	expiryDrain = 30 * time.Second // for the streams of a session whose token has expired
	revokeDrain = time.Second      // for those of one whose token has been revoked: just enough to be told
)

// sessions is the set of all sessions of the node. Its lock is the only one held while the set changes; nothing that
// can block is called under it.
type sessions struct {
	work sync.WaitGroup // sessions, and goroutines that belong to them

	mu       sync.Mutex
	limit    int // 0: none
	all      map[*session]struct{}
	pending  int // handshakes under way that count as sessions
	drained  bool
	reason   string
	deadline time.Time
	closed   bool
}

func newSessions(limit int) *sessions {
	return &sessions{limit: limit, all: make(map[*session]struct{})}
}

// setLimit changes how many there may be. Those that are too many stay.
func (ss *sessions) setLimit(limit int) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	ss.limit = limit
}

// reserve makes room for one session, if there is any. Every reservation ends by add or release.
func (ss *sessions) reserve() bool {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if ss.limit > 0 && len(ss.all)+ss.pending >= ss.limit {
		return false
	}
	ss.pending++
	return true
}

func (ss *sessions) release() {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	ss.pending--
}

// add takes a session into the set. It reports false when the node has shut its sessions down meanwhile; the session is
// then the caller's to end. A session that arrives during a drain is told so.
func (ss *sessions) add(x *session) bool {
	ss.mu.Lock()
	ss.pending--
	if ss.closed || x.ended {
		closed := ss.closed
		ss.mu.Unlock()
		return !closed // one that has ended already is nobody's to end
	}
	ss.all[x] = struct{}{}
	ss.work.Add(1) // until remove
	late, reason, deadline := ss.drained, ss.reason, ss.deadline
	ss.mu.Unlock()
	if late {
		_ = x.tunnel.Drain(reason, deadline) // one that can't be told any more has ended
	}
	return true
}

// remove takes a session that has ended out of the set, or keeps it from getting there.
func (ss *sessions) remove(x *session) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	x.ended = true
	if _, ok := ss.all[x]; ok {
		delete(ss.all, x)
		ss.work.Done()
	}
}

// spawn runs f as part of the life of the sessions, unless they have been shut down.
func (ss *sessions) spawn(f func()) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if !ss.closed {
		ss.work.Go(f)
	}
}

func (ss *sessions) len() int {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	return len(ss.all)
}

// list returns the sessions in no order.
func (ss *sessions) list() []*session {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	all := make([]*session, 0, len(ss.all))
	for x := range ss.all {
		all = append(all, x)
	}
	return all
}

// sorted returns the sessions, oldest first.
func (ss *sessions) sorted() []*session {
	all := ss.list()
	slices.SortFunc(all, func(a, b *session) int {
		return cmp.Or(a.since.Compare(b.since), cmp.Compare(a.tunnel.ID(), b.tunnel.ID()))
	})
	return all
}

// drain asks all agents to connect elsewhere, and those that come later too.
func (ss *sessions) drain(reason string, deadline time.Time) {
	ss.mu.Lock()
	ss.drained, ss.reason, ss.deadline = true, reason, deadline
	ss.mu.Unlock()
	var told sync.WaitGroup
	for _, x := range ss.list() {
		told.Add(1)
		ss.spawn(func() {
			defer told.Done()
			_ = x.tunnel.Drain(reason, deadline) // one that can't be told any more has ended
		})
	}
	all := make(chan struct{}) // closed when all have been told
	ss.spawn(func() {
		told.Wait()
		close(all)
	})
	// Those that do not read their messages must not hold up the drain.
	patience := time.NewTimer(drainTold)
	defer patience.Stop()
	select {
	case <-all:
	case <-patience.C:
	}
}

// shutdown ends all sessions when their streams have ended, or ctx has, and waits until everything that belonged to
// them is gone. It returns how many had open streams then. Idle streams do not count: the router drops those of a
// session that takes nothing new.
func (ss *sessions) shutdown(ctx context.Context) int {
	ss.mu.Lock()
	ss.closed = true
	ss.mu.Unlock()
	var cut atomic.Int64
	for _, x := range ss.list() {
		ss.work.Go(func() {
			if x.tunnel.Shutdown(ctx) != nil {
				cut.Add(1)
			}
		})
	}
	ss.work.Wait()
	return int(cut.Load())
}

// expire ends sessions whose token or certificate is good for nothing any more. One sweep for all is cheaper than a timer
// for each.
func (ss *sessions) expire(ctx context.Context, s *Server) error {
	tick := time.NewTicker(expirySweep)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			ss.judge(ctx, s)
		}
	}
}

// judge begins the end of sessions whose token or certificate is good for nothing any more.
func (ss *sessions) judge(ctx context.Context, s *Server) {
	now, at := s.now(), time.Now()
	for _, x := range ss.list() {
		why := now.agents.Judge(x.identity.Load())
		if why == nil {
			why = x.vouched.Judge(now.tls[upstreamListener], at)
		}
		if why == nil || x.expired.Swap(true) {
			continue
		}
		s.o.Log.WithFields(x.fields()).WithError(why).Info("session ends: it would not be accepted any more")
		grace := expiryDrain
		switch {
		case errors.Is(why, auth.ErrRevoked):
			grace = revokeDrain
		case errors.Is(why, tlsconf.ErrCertificateRefused):
			grace = tlsconf.GuestGrace
		}
		ss.spawn(func() { s.retire(ctx, x, why.Error(), grace) })
	}
}

// retire takes a session out of use, gives its streams some time, and ends it.
func (s *Server) retire(ctx context.Context, x *session, why string, grace time.Duration) {
	s.router.RemoveSession(x.route)
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	// One that can't be told has ended, and streams that are cut off had a token that is good for nothing any more.
	_ = x.tunnel.Drain(why, time.Now().Add(grace))
	_ = x.tunnel.Shutdown(ctx)
}

// closing hears that a session takes nothing new, possibly before the handshake has returned it.
func (s *Server) closing(x *session, t *tunnel.Session) {
	x.adopt(t)
	s.router.RemoveSession(x.route)
}

// done hears that a session has ended.
func (s *Server) done(x *session) {
	// In this order: an agent that gets the room of the session finds that of its endpoints, too.
	for _, key := range x.end() {
		s.tally.withdraw(key, x.tenant)
	}
	s.tally.leave(x.holder)
	s.sessions.remove(x)
	level := logrus.DebugLevel
	if x.useful.Load() {
		level = logrus.InfoLevel
	}
	log := s.o.Log.WithFields(x.fields()).WithField("duration", time.Since(x.since).Round(time.Millisecond).String())
	log.WithError(x.tunnel.Err()).Log(level, "session closed")
}

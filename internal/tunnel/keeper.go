package tunnel

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"
)

// heartbeatTick is how often sessions are looked at.
const heartbeatTick = time.Second

// Keeper watches all sessions of a node: it asks those from which nothing was heard for a while for a sign of life, and ends
// those that give none. One goroutine does it for all; an idle session costs none.
type Keeper struct {
	o KeeperOptions

	crowd chan struct{} // has room for one: many sessions have come since the last tick

	mu       sync.Mutex // guards the following
	sessions map[*link]struct{}
	come     int // since the last tick
}

// KeeperOptions say how patient a Keeper is.
type KeeperOptions struct {
	// Interval is after how much silence a ping is sent; 0 means 10 s.
	Interval time.Duration
	// Dead is after how much silence a session ends with ErrSilent; 0 means 25 s. It is found up to a second earlier.
	Dead time.Duration
	// Stall is how long the rest of a frame may take when nothing else comes either; 0 means 10 s.
	Stall time.Duration
	// Settled is called when many sessions have come, gone or carried something and all has been quiet for some seconds:
	// a time to give memory back. It is called by Run, which waits for it; nil does nothing.
	Settled func()
	// Crowded is called with true when many sessions come within a second, and with false when that is over: what their
	// beginnings leave behind lies between what stays, and is best collected soon. It is called by Run, which waits for it; nil
	// does nothing.
	Crowded func(bool)
}

// How a Keeper finds that its sessions have settled: after restAfter ticks with little change, when there has been much since
// the last time.
const (
	restAfter  = 3
	muchChange = 100 // sessions
)

// When there is a crowd: from crowdFrom sessions within a tick until restAfter ticks with less than a fifth of that.
const crowdFrom = 50

// NewKeeper returns a Keeper. It watches while Run runs.
func NewKeeper(o KeeperOptions) *Keeper {
	o.Interval = orDefault(o.Interval, defaultHeartbeat)
	o.Dead = orDefault(o.Dead, defaultDead)
	o.Stall = orDefault(o.Stall, stallTimeout)
	return &Keeper{o: o, crowd: make(chan struct{}, 1), sessions: make(map[*link]struct{})}
}

// Add has a session watched until it ends.
func (k *Keeper) Add(s *Session) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.sessions[s.l] = struct{}{}
	if k.come++; k.come == crowdFrom {
		signal(k.crowd)
	}
}

// Run watches until ctx ends, and returns nil.
func (k *Keeper) Run(ctx context.Context) error {
	every := min(heartbeatTick, k.o.Interval)
	tick := time.NewTicker(every)
	defer tick.Stop()
	var links []*link
	var tide tide
	crowd := crowd{tell: k.o.Crowded}
	defer crowd.end()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-k.crowd:
			crowd.begin()
			continue
		case <-tick.C:
		}
		crowd.tick(k.newcomers())
		links = k.living(links[:0])
		for _, l := range links {
			l.check(k.o.Interval, k.o.Dead-every, k.o.Stall)
			tide.moved += l.moved()
		}
		if tide.settled(len(links)) && k.o.Settled != nil {
			k.o.Settled()
		}
		clear(links)
	}
}

// newcomers returns how many sessions have come since it was last asked.
func (k *Keeper) newcomers() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := k.come
	k.come = 0
	return n
}

// crowd tells of many sessions that come at once.
type crowd struct {
	tell  func(bool) // may be nil
	there bool
	quiet int // ticks in which few have come
}

func (c *crowd) begin() {
	c.quiet = 0
	if !c.there && c.tell != nil {
		c.there = true
		c.tell(true)
	}
}

// tick is told how many have come since the last one.
func (c *crowd) tick(come int) {
	if come >= crowdFrom/5 {
		c.quiet = 0
	} else if c.quiet++; c.quiet == restAfter {
		c.end()
	}
}

func (c *crowd) end() {
	if c.there {
		c.there = false
		c.tell(false)
	}
}

// tide is how much goes on among many sessions.
type tide struct {
	count int // of sessions at the last tick
	moved int // sessions that have carried something since then, counted by moved
	much  int // changes since all had settled
	quiet int // ticks with little change
}

// settled is called at each tick, and reports whether all has just settled.
func (t *tide) settled(count int) bool {
	change := t.moved + max(count-t.count, t.count-count)
	t.count, t.moved = count, 0
	if change > muchChange/10 {
		t.much += change
		t.quiet = 0
		return false
	}
	t.quiet++
	if t.quiet != restAfter || t.much < muchChange {
		return false
	}
	t.much = 0
	return true
}

// moved reports, as 1 or 0, whether the session has carried more than two messages since it was last asked.
func (l *link) moved() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := l.flushes - l.asked; n > 2 {
		l.asked = l.flushes
		return 1
	}
	return 0
}

// living forgets the sessions that have ended and appends the others to links.
func (k *Keeper) living(links []*link) []*link {
	k.mu.Lock()
	defer k.mu.Unlock()
	for l := range k.sessions {
		select {
		case <-l.done:
			delete(k.sessions, l)
		default:
			links = append(links, l)
		}
	}
	return links
}

// check pings a peer that was silent for interval and ends the session of one that was silent for dead. It never blocks.
func (l *link) check(interval, dead, stall time.Duration) {
	silence := time.Since(l.ws.LastRead())
	if silence >= dead {
		l.fail(fmt.Errorf("%w: nothing received for %v", ErrSilent, silence.Round(time.Second)))
		return
	}
	if silence >= stall && l.stalled() {
		l.abuse(&AbuseError{AbuseStall, "a frame was begun and not continued"})
		return
	}
	now := l.now()
	if silence < interval || now-time.Duration(l.pinged.Load()) < interval {
		return
	}
	l.pinged.Store(int64(now))
	// It does not wait; that nothing can be sent any more ends the session elsewhere.
	_ = l.ws.Ping(strconv.AppendInt(nil, int64(now), 36))
}

// stalled reports whether the peer has begun a frame and we wait for the rest.
func (l *link) stalled() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.body > 0 || l.nhead > 0
}

// pong takes the answer to a ping of check.
func (l *link) pong(payload []byte) {
	sent := l.pinged.Load()
	var buf [13]byte // the longest number in base 36
	if string(payload) == string(strconv.AppendInt(buf[:0], sent, 36)) {
		l.rtt.Store(max(int64(l.now())-sent, 1))
	}
}

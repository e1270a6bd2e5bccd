package daemon

import (
	"context"
	"os"
	"strconv"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// extendEvery is how often systemd is asked for more time to stop, extendBy what it is asked for.
const (
	extendEvery = time.Second
	extendBy    = 10 * time.Second
)

// stopGrace is what a stop may take beyond the limit that the settings set to the drain.
const stopGrace = 15 * time.Second

// Alive says how to find out whether the program still does its work: alive returns nil if it does, or an error, or does not
// return before ctx has ended. It is called before [Process.Ready], once, if at all.
func (p *Process) Alive(alive func(ctx context.Context) error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.alive = alive
}

// watchdogTimeout returns after what silence systemd takes this process for hung; 0: never.
func watchdogTimeout() time.Duration {
	usec, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64)
	if err != nil || usec <= 0 {
		return 0
	}
	if pid := os.Getenv("WATCHDOG_PID"); pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return 0
	}
	return time.Duration(usec) * time.Microsecond
}

// guard tells systemd that the process lives, as long as it does, until ctx ends. What it asks goes the way of the traffic,
// so that a process whose loops are stuck is not kept by a timer that is not. A failed attempt is repeated before systemd
// loses its patience.
func (p *Process) guard(ctx context.Context, timeout time.Duration) {
	tick := time.NewTicker(timeout / 4)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		p.mu.Lock()
		ready, alive := p.ready, p.alive
		p.mu.Unlock()
		var err error
		if ready && alive != nil {
			limited, cancel := context.WithTimeout(ctx, timeout/4)
			err = alive(limited)
			cancel()
		}
		if err != nil && ctx.Err() == nil {
			p.Log.WithError(err).Error("watchdog: the process does not do its work")
			continue
		}
		p.tell(daemon.SdNotifyWatchdog)
	}
}

// stopping asks systemd for time while the program drains, until ctx ends, or the drain takes longer than it may.
func (p *Process) stopping(ctx context.Context) {
	limit := p.stopLimit() + stopGrace
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(extendEvery)
	defer tick.Stop()
	for {
		p.tell("EXTEND_TIMEOUT_USEC=" + strconv.FormatInt(extendBy.Microseconds(), 10))
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// stopLimit is what the settings in use grant to a drain.
func (p *Process) stopLimit() time.Duration {
	if p.reload == nil {
		return 0
	}
	p.reload.mu.Lock()
	defer p.reload.mu.Unlock()
	return p.reload.inUse.DrainLimit()
}

package consul

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/hashicorp/consul/api"
	"golang.org/x/time/rate"

	"github.com/pikoproxy/piko/internal/backoff"
)

// errShort says that a list of a node had far fewer keys than its head promises.
var errShort = errors.New("buckets are missing")

// epoch ends all blocking reads when it is cancelled, so that they begin anew on new connections.
type epoch struct {
	context.Context
	cancel context.CancelFunc
	life   context.Context // of Run, which the next epoch has to end with too
}

// begin has blocking reads end with ctx, or when restart is called.
func (d *Directory) begin(ctx context.Context) {
	next, cancel := context.WithCancel(ctx)
	d.epoch.Store(&epoch{next, cancel, ctx})
}

// restart ends all blocking reads that are open. They begin anew.
func (d *Directory) restart(reason string) {
	d.metrics.resets.WithLabelValues(reason).Inc()
	old := d.epoch.Load()
	if old == nil {
		return // Run has not begun
	}
	d.begin(old.life)
	old.cancel()
	d.reads.reset()
}

// follow calls read again and again, each time with the index to wait for, until ctx ends. After an error it reads once
// without waiting from any server, for continuity while there is no leader, and then spaces its attempts.
//
// An index that went back, as after a restored snapshot, means to begin from nothing. The rate is limited, since each
// return may be caused by keys that are not meant.
func (d *Directory) follow(ctx context.Context, read func(context.Context, *api.QueryOptions) (*api.QueryMeta, error)) {
	d.metrics.watches.Inc()
	defer d.metrics.watches.Dec()
	limit := rate.NewLimiter(20, 3)
	retry := backoff.Backoff{Min: d.pace.retryMin, Max: d.pace.retryMax}
	current := false
	defer func() {
		if current {
			d.metrics.current.Dec()
		}
	}()
	var index uint64
	for limit.Wait(ctx) == nil {
		next, err := d.ask(ctx, index, read)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, errRestart):
			index = 0
			continue
		case err != nil:
			d.watchFailed(err)
			if current {
				current = false
				d.metrics.current.Dec()
				// What this brings is shown, but it is no answer to go on from.
				call, cancel := context.WithTimeout(ctx, writeTime)
				_, _ = read(call, (&api.QueryOptions{AllowStale: true}).WithContext(call))
				cancel()
			}
			if retry.Wait(ctx) != nil {
				return
			}
			continue
		}
		retry.Reset()
		if !current {
			current = true
			d.metrics.current.Inc()
		}
		d.metrics.returns.Inc()
		if next < index {
			d.metrics.resets.WithLabelValues("index").Inc()
			index = 0
			continue
		}
		index = max(next, 1)
	}
}

var errRestart = errors.New("blocking reads begin anew")

// ask makes one blocking read.
func (d *Directory) ask(ctx context.Context, index uint64,
	read func(context.Context, *api.QueryOptions) (*api.QueryMeta, error),
) (uint64, error) {
	wait := d.pace.wait
	if now, _ := d.servers.use(); !now.local {
		wait = min(wait, 15*time.Second) // a middlebox may forget a silent connection, and nobody would tell us
	}
	wait += d.jitter(wait/10) / 2
	call, cancel := context.WithTimeout(ctx, wait*17/16+writeTime)
	defer cancel()
	age := d.epoch.Load()
	defer context.AfterFunc(age, cancel)() //nolint:contextcheck // the epoch ends the read too
	meta, err := read(call, (&api.QueryOptions{WaitIndex: index, WaitTime: wait}).WithContext(call))
	if err != nil {
		if age.Err() != nil {
			return 0, errRestart
		}
		return 0, err
	}
	return meta.LastIndex, nil
}

func (d *Directory) watchFailed(err error) {
	code := "none"
	if s := status(err); s != 0 {
		code = strconv.Itoa(s)
	}
	if errors.Is(err, errShort) {
		code = "short"
	}
	d.metrics.watchErrors.WithLabelValues(code).Inc()
	d.complain(err, "the directory cannot be read; what is known stays, trying again")
}

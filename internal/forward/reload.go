package forward

import (
	"context"
	"strings"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/daemon"
)

// Prepare builds what the forwarder needs for other settings, and opens the listeners that are new; see [daemon.Prepare].
// A forward that is removed takes nothing new, and its connections finish. One that leads to another endpoint keeps its
// listener, and a connection that is open stays where it is, as it does when the server is another. Problems are like those
// of [New] and [Forwarder.Run].
func (f *Forwarder) Prepare(next config.Forward) (daemon.Change, error) {
	old := f.current.Load()
	client := f.client.Load()
	var err error
	admin := false
	connect := false
	for _, c := range config.Diff(old.settings, next) {
		admin = admin || strings.HasPrefix(c.Key, "admin.")
		connect = connect || strings.HasPrefix(c.Key, "connect.")
	}
	if connect {
		if client, err = newClient(next.Connect, f.options.Log); err != nil {
			return daemon.Change{}, err
		}
	}
	s, fresh, retarget := f.shape(next, old)
	if err := f.open(fresh); err != nil {
		return daemon.Change{}, err
	}
	commitConsole, retireConsole := func() {}, func() {}
	if admin {
		if commitConsole, retireConsole, err = f.console.Prepare(next.Admin, next.IsSet("admin.listen")); err != nil {
			shut(fresh)
			return daemon.Change{}, err
		}
	}
	return daemon.Change{
		Commit: func() {
			f.client.Store(client)
			for one, to := range retarget {
				one.target.Store(to)
			}
			f.current.Store(s)
			commitConsole()
			f.start(fresh)
		},
		Retire: func() {
			f.retire(s, old)
			retireConsole()
		},
	}, nil
}

// shape returns what the forwarder becomes: which forwards are new, and which lead elsewhere.
func (f *Forwarder) shape(next config.Forward, old *shape) (s *shape, fresh []*forward, retarget map[*forward]*target) {
	before := map[config.Address]*forward{}
	for _, one := range old.forwards {
		before[one.target.Load().settings.Listen] = one
	}
	s, retarget = &shape{settings: next}, map[*forward]*target{}
	for i, entry := range next.Forwards {
		one := before[entry.Listen]
		switch {
		case one == nil:
			one = f.newForward(i, entry)
			fresh = append(fresh, one)
		case one.target.Load().settings != entry:
			retarget[one] = f.newTarget(i, entry)
		}
		s.forwards = append(s.forwards, one)
	}
	return s, fresh, retarget
}

// startLocked runs a forward.
func (f *Forwarder) startLocked(one *forward) {
	cut := f.life.cut
	var ctx context.Context
	ctx, one.stop = context.WithCancel(f.life.ctx)
	f.running.Go(func() {
		defer one.stop()
		one.run(ctx, cut)
		endpoint := one.target.Load().settings.Endpoint
		for _, other := range f.current.Load().forwards {
			if other.target.Load().settings.Endpoint == endpoint {
				return
			}
		}
		f.metrics.forget(endpoint)
	})
}

// start runs forwards whose listeners are open.
func (f *Forwarder) start(fresh []*forward) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.life == nil {
		shut(fresh) // too late: the forwarder is stopping
		return
	}
	for _, one := range fresh {
		f.startLocked(one)
	}
}

// retire ends the forwards that are not wanted any more.
func (f *Forwarder) retire(next, old *shape) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.life == nil {
		return // all of them end
	}
	wanted := map[*forward]bool{}
	for _, one := range next.forwards {
		wanted[one] = true
	}
	for _, one := range old.forwards {
		if !wanted[one] {
			one.stop()
		}
	}
}

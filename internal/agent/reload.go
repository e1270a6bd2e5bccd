package agent

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"time"

	"github.com/pikoproxy/piko"
	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/daemon"
)

// Prepare builds what the agent needs for other settings; see [daemon.Prepare]. What the change means for requests:
//
//	listener added     it is offered
//	listener removed   it is withdrawn, and what runs finishes
//	listener changed   the new one takes the place of the old one, on which what runs finishes; the endpoint stays routable
//	token              is presented on the open sessions
//	connections        sessions are added, or taken away when others carry their endpoints
//	anything else      of the connection: new sessions are made, and then the old ones are left
//
// Problems are like those of [New].
func (a *Agent) Prepare(next config.Agent) (daemon.Change, error) {
	old := a.current.Load()
	changed := keysOf(config.Diff(old.settings, next))
	s, err := a.shape(next, changed)
	reconnect := func() {}
	if changed.under("connect") {
		var problem error
		reconnect, problem = a.prepareConnection(next, changed)
		err = errors.Join(err, problem)
	}
	if err != nil {
		return daemon.Change{}, err
	}
	commitConsole, retireConsole := func() {}, func() {}
	if changed.under("admin") {
		if commitConsole, retireConsole, err = a.console.Prepare(next.Admin, next.IsSet("admin.listen")); err != nil {
			return daemon.Change{}, err
		}
	}
	return daemon.Change{
		Commit: func() {
			a.current.Store(s)
			reconnect()
			commitConsole()
			a.start(s, old)
		},
		Retire: func() {
			a.retire(s, old)
			retireConsole()
		},
	}, nil
}

// shape makes the listeners for some settings. Those whose settings have not changed are taken over.
func (a *Agent) shape(c config.Agent, changed keys) (*shape, error) {
	s := &shape{settings: c}
	before := map[string]*listener{}
	if old := a.current.Load(); old != nil {
		before = old.byEndpoint()
	}
	var err error
	for i, entry := range c.Listeners {
		name := strings.ToLower(entry.Endpoint)
		old := before[name]
		if old != nil && !changed.under("listeners["+name+"]") {
			s.listeners = append(s.listeners, old)
			continue
		}
		l, problem := newListener(i, entry, a.options, a.metrics)
		if problem != nil {
			err = errors.Join(err, problem)
			continue
		}
		s.listeners = append(s.listeners, l)
	}
	return s, err
}

// byEndpoint returns the listeners by the canonical name of their endpoint. The map is not to be changed.
func (s *shape) byEndpoint() map[string]*listener {
	s.once.Do(func() {
		s.names = make(map[string]*listener, len(s.listeners))
		for _, l := range s.listeners {
			s.names[strings.ToLower(l.settings.Endpoint)] = l
		}
	})
	return s.names
}

// prepareConnection returns what puts another [connect] section into use.
func (a *Agent) prepareConnection(next config.Agent, changed keys) (commit func(), err error) {
	client, err := a.newClient(next.Connect)
	if err != nil {
		return nil, err
	}
	old := a.current.Load().settings.Connect
	grace := time.Duration(next.DrainTimeout)
	onlyToken := changed.only("connect", "token", "token_file") && old.Token.IsSet() && next.Connect.Token.IsSet()
	return func() {
		a.token.set(next.Connect)
		var err error
		switch {
		case onlyToken:
			a.client.RenewToken()
		case changed.only("connect", "connections"):
			err = a.client.SetConnections(next.Connect.Connections, grace)
		default:
			err = a.client.Reconfigure(client, grace)
		}
		if err != nil && !a.draining.Load() {
			// Its settings have been checked, so the client has been closed; then nothing matters any more.
			a.options.Log.WithField("err", err).Error("connection not changed")
		}
	}, nil
}

// startLocked runs a listener, unless it runs or nothing does. Settings that come before Run has begun are what it begins with.
func (a *Agent) startLocked(l *listener) {
	if a.life == nil || l.stop != nil {
		return
	}
	if l.service.dangerous() {
		l.log.Warn("the service has a link-local address or the name of a metadata service: " +
			"everybody who may reach the endpoint can read what it serves")
	}
	name := strings.ToLower(l.settings.Endpoint)
	l.previous, a.latest[name] = a.latest[name], l
	cut := a.life.cut
	var ctx context.Context
	ctx, l.stop = context.WithCancel(a.life.ctx)
	a.running.Go(func() {
		defer l.settleNow()
		defer l.stop()
		l.run(ctx, cut, a.client)
		a.ended(l)
		if a.current.Load().byEndpoint()[name] == nil {
			a.metrics.forget(name)
		}
	})
}

// ended forgets a listener that has ended.
func (a *Agent) ended(l *listener) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if name := strings.ToLower(l.settings.Endpoint); a.latest[name] == l {
		delete(a.latest, name)
	}
}

// start runs the listeners that are new.
func (a *Agent) start(next, old *shape) {
	a.mu.Lock()
	defer a.mu.Unlock()
	running := old.byEndpoint()
	for _, l := range next.listeners {
		if running[strings.ToLower(l.settings.Endpoint)] != l {
			a.startLocked(l)
		}
	}
}

// retire ends the listeners that are not wanted any more: those with a successor when it has taken over, the others now.
func (a *Agent) retire(next, old *shape) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.life == nil {
		return // all of them end
	}
	ctx := a.life.ctx
	wanted := next.byEndpoint()
	for _, l := range old.listeners {
		switch successor := wanted[strings.ToLower(l.settings.Endpoint)]; {
		case successor == l, l.stop == nil: // wanted, or it never ran
		case successor == nil:
			l.stop()
		default:
			a.running.Go(func() {
				select {
				case <-successor.settled:
				case <-ctx.Done():
				}
				l.stop()
			})
		}
	}
}

// tokenSource gives the SDK the token of the settings in use. A file is read each time, since it may be replaced at any
// moment before an event tells of it.
type tokenSource struct {
	current atomic.Pointer[func(context.Context) (string, error)]
}

func (t *tokenSource) set(c config.AgentConnect) {
	source := func(context.Context) (string, error) { return c.Token.Reveal(), nil }
	if c.TokenFile != "" {
		source = piko.TokenFile(string(c.TokenFile))
	}
	t.current.Store(&source)
}

func (t *tokenSource) get(ctx context.Context) (string, error) { return (*t.current.Load())(ctx) }

// keys are those of the settings that differ.
type keys []string

func keysOf(changes []config.Change) keys {
	out := make(keys, len(changes))
	for i, c := range changes {
		out[i] = c.Key
	}
	return out
}

// under reports whether something in a section differs, or it itself.
func (k keys) under(section string) bool {
	for _, key := range k {
		if rest, ok := strings.CutPrefix(key, section); ok && (rest == "" || rest[0] == '.' || rest[0] == '[') {
			return true
		}
	}
	return false
}

// only reports whether nothing but these keys differs in a section.
func (k keys) only(section string, names ...string) bool {
	for _, key := range k {
		rest, ok := strings.CutPrefix(key, section+".")
		if !ok {
			continue
		}
		known := false
		for _, name := range names {
			known = known || rest == name
		}
		if !known {
			return false
		}
	}
	return true
}

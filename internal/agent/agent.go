// Package agent assembles piko-agent: it offers the endpoints of its settings through the SDK and brings their streams to
// local services.
//
//	node ── session ──► listener ── splice ─────────────────────────► service
//	                       └─────── web (when HTTP must be read) ───► service
//
// A stream is spliced to a connection of its own unless a setting needs to read HTTP (host_header, access_log,
// max_in_flight); then a reverse proxy with its own connections serves it. Either way the agent connects only to the
// addresses of its settings: nothing that arrives in a stream selects where it goes.
//
// The agent never ends because a node went away, and one listener's trouble is no other's: each runs on its own, may
// be started and stopped on its own, and is retried for ever.
//
// Settings are values that never change; [Agent.Prepare] puts others in their place. A listener whose settings are the same
// in both is the same listener, and notices nothing.
package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sirupsen/logrus"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/pikoproxy/piko"
	"github.com/pikoproxy/piko/internal/admin"
	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/console"
	"github.com/pikoproxy/piko/internal/daemon"
	"github.com/pikoproxy/piko/internal/tlsconf"
)

// Options are what an agent needs beside its settings.
type Options struct {
	Log      *logrus.Logger // required
	ErrorLog *log.Logger    // for what libraries say; nil: theirs is dropped
	Version  string         // of the program
	Ready    func()         // called when the agent has begun to try; may be nil
	Succeeds bool           // Ready ends another process that offers the same: first it has to be true
	Status   func(string)   // told in a line how the agent fares, now and then; may be nil

	Collector prometheus.Collector        // more metrics to show; may be nil
	Reload    func(context.Context) error // reloads the settings for an operator; nil: that is not offered
	Reloaded  func() any                  // what became of the last reload, for the status; nil: it is not shown

	// Listen opens the socket of the admin listener; explicit says that the settings name the address. Nil: net.Listen.
	Listen func(name, address string, explicit bool) (net.Listener, error)
}

// Agent offers what its settings list. All methods may be called at any time from any goroutine, except Run, which may be
// called once.
type Agent struct {
	options  Options
	client   *piko.Client
	token    tokenSource
	metrics  *metrics
	console  *console.Console
	current  atomic.Pointer[shape]
	draining atomic.Bool

	running sync.WaitGroup // listeners, and what retires them

	mu     sync.Mutex           // guards the following
	life   *lifetime            // nil while nothing runs
	latest map[string]*listener // that run, by endpoint; of two the later one
}

// shape is what the agent is under some settings.
type shape struct {
	settings  config.Agent
	listeners []*listener // in the order of the settings

	once  sync.Once // makes names
	names map[string]*listener
}

// lifetime is what listeners run in.
type lifetime struct {
	ctx context.Context // ends when the drain begins
	cut context.Context // ends when it is over
}

// New prepares an agent: files are read and everything is checked, but no socket is opened. Problems with the settings are
// of type [config.Problem], all of them joined.
func New(c config.Agent, o Options) (*Agent, error) {
	if o.ErrorLog == nil {
		o.ErrorLog = log.New(io.Discard, "", 0)
	}
	if o.Listen == nil {
		o.Listen = func(_, address string, _ bool) (net.Listener, error) {
			return net.Listen(config.Address(address).Split())
		}
	}
	a := &Agent{options: o, latest: map[string]*listener{}}
	registry := console.NewRegistry(o.Version)
	if o.Collector != nil {
		registry.MustRegister(o.Collector)
	}
	a.metrics = newMetrics(registry, a)
	first, err := a.shape(c, nil)
	a.current.Store(first)
	var problem error
	a.client, problem = a.newClient(c.Connect)
	err = errors.Join(err, problem)
	a.token.set(c.Connect)
	a.console, problem = console.New(c.Admin, admin.Options{
		Gatherer: registry,
		Ready:    a.Ready,
		Status:   map[string]admin.StatusFunc{"": func(*http.Request) (any, error) { return a.status(), nil }},
		Reload:   o.Reload,
	}, console.Options{
		Log: o.Log, ErrorLog: o.ErrorLog, Version: o.Version, Listen: o.Listen, Explicit: c.IsSet("admin.listen"),
	})
	if err = errors.Join(err, problem); err != nil {
		return nil, err
	}
	return a, nil
}

// newClient makes the SDK's client of the settings.
func (a *Agent) newClient(c config.AgentConnect) (*piko.Client, error) {
	tls, err := tlsconf.Client("connect.tls", c.TLS)
	if err != nil {
		return nil, err
	}
	host, err := os.Hostname()
	if err != nil {
		host = "" // a name only for people; the node then shows the session's id
	}
	client := &piko.Client{
		URL:         c.URL,
		TokenSource: a.token.get,
		TenantID:    c.TenantID,
		TLSConfig:   tls,
		Connections: c.Connections,
		Heartbeat:   time.Duration(c.Heartbeat),
		AgentID:     host,
		Logger:      daemon.Slog(a.options.Log),
	}
	if proxy := c.ProxyURL.URL(); proxy != nil {
		client.Proxy = func(*url.URL) (*url.URL, error) { return proxy, nil }
	}
	return client, nil
}

func newListener(index int, c config.Listener, o Options, m *metrics) (*listener, error) {
	tls, err := tlsconf.Client(fmt.Sprintf("listeners[%d].tls", index), c.TLS)
	if err != nil {
		return nil, err
	}
	s := newService(c, tls)
	entry := o.Log.WithFields(logrus.Fields{"endpoint": c.Endpoint, "service": s.text})
	l := &listener{
		settings: c,
		service:  s,
		log:      entry,
		metrics:  m.listener(strings.ToLower(c.Endpoint), index),
		changes:  rate.NewLimiter(rate.Every(5*time.Second), 4),
		health:   newHealth(c, s, entry),
		settled:  make(chan struct{}),
	}
	if readsHTTP(c) {
		l.web = newWeb(l, o.ErrorLog)
	}
	return l, nil
}

// readsHTTP reports whether a setting can't be kept without looking into the requests.
func readsHTTP(c config.Listener) bool {
	return c.Protocol == "http" && (c.HostHeader != "" || c.AccessLog || c.MaxInFlight > 0)
}

// Run offers the listeners until ctx ends. Then it tells the nodes, takes nothing new, and returns when what runs has
// ended, at the latest after the drain timeout. It returns an error only if the admin listener can't be served.
func (a *Agent) Run(ctx context.Context) error {
	if err := a.console.Listen(); err != nil {
		return err
	}
	// The console goes on until the drain is over, so that probes and operators can follow it.
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	group, life := errgroup.WithContext(life)
	group.Go(func() error { return a.console.Run(life) })
	group.Go(func() error {
		daemon.Tell(life, a.options.Status, a.summary)
		return nil
	})
	switch {
	case a.options.Ready == nil:
	case a.options.Succeeds:
		group.Go(func() error {
			a.awaitRoutable(life)
			a.options.Ready()
			return nil
		})
	default:
		// To wait for a node would let systemd give up on an agent that only came up before its cluster.
		a.options.Ready()
	}
	failed, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(life, cancel)()
	a.offer(failed)
	stop()
	return group.Wait()
}

// offer runs the listeners until ctx ends and they are drained.
func (a *Agent) offer(ctx context.Context) {
	cut, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	a.mu.Lock()
	a.life = &lifetime{ctx, cut}
	for _, l := range a.current.Load().listeners {
		a.startLocked(l) //nolint:contextcheck // what is started belongs to Run, and not to the caller
	}
	a.mu.Unlock()
	<-ctx.Done()
	a.draining.Store(true)
	a.mu.Lock()
	a.life = nil // nothing more is started
	a.mu.Unlock()
	timeout := time.Duration(a.current.Load().settings.DrainTimeout)
	a.options.Log.WithField("timeout", timeout.String()).Info("draining")
	grace, cancel := context.WithTimeout(cut, timeout)
	defer cancel()
	if err := a.client.Shutdown(grace); err != nil {
		a.options.Log.WithField("err", err).Warn("streams cut at the end of the drain timeout")
	}
	stop()
	a.running.Wait()
}

const (
	routableMost = 10 * time.Second // that a process waits before it takes over from another one
	routableLook = 10 * time.Millisecond
)

// awaitRoutable waits until all endpoints are routable, for some time.
func (a *Agent) awaitRoutable(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, routableMost)
	defer cancel()
	tick := time.NewTicker(routableLook)
	defer tick.Stop()
	for a.states()[stateRoutable] < len(a.current.Load().listeners) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// ConsoleAddr returns the address of the admin listener while the agent runs; nil when there is none.
func (a *Agent) ConsoleAddr() net.Addr { return a.console.Addr() }

// Ready returns nil when requests can come in, and otherwise why not.
func (a *Agent) Ready() error {
	if a.draining.Load() {
		return errors.New("draining")
	}
	listeners := a.current.Load().listeners
	if len(listeners) == 0 {
		return nil // nothing to wait for
	}
	if a.states()[stateRoutable] > 0 {
		return nil
	}
	for _, l := range listeners {
		if ln := l.offered.Load(); ln != nil && ln.Err() != nil {
			return fmt.Errorf("no endpoint is routable: %w", ln.Err())
		}
	}
	return errors.New("no endpoint is routable yet")
}

// states counts the listeners by their state.
func (a *Agent) states() map[string]int {
	counts := map[string]int{}
	for _, l := range a.current.Load().listeners {
		counts[l.state()]++
	}
	return counts
}

var (
	_ net.Listener        = (*front)(nil)
	_ http.ResponseWriter = (*recorder)(nil)
)

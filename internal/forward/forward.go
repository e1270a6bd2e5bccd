// Package forward assembles piko-forward: it takes connections at local addresses and brings each to an endpoint, through
// the SDK.
//
//	local client ──► forward ── one WebSocket for each connection ──► node ──► agent ──► service
//
// Half-closes pass through in both directions. When the endpoint can't be reached, the local connection is aborted, so that
// its client sees an error and not an empty answer, and the log says why. Each forward is independent of the others.
//
// Settings are values that never change; [Forwarder.Prepare] puts others in their place.
package forward

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
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

// Options are what a forwarder needs beside its settings.
type Options struct {
	Log      *logrus.Logger // required
	ErrorLog *log.Logger    // for what libraries say; may be nil
	Version  string         // of the program
	Ready    func()         // called when all listeners are open; may be nil
	Status   func(string)   // told in a line how the forwarder fares, now and then; may be nil

	Collector prometheus.Collector        // more metrics to show; may be nil
	Reload    func(context.Context) error // reloads the settings for an operator; nil: that is not offered
	Reloaded  func() any                  // what became of the last reload, for the status; nil: it is not shown

	// Listen opens a socket: "admin", or that of a forward, which is named by its endpoint. Explicit says that the
	// settings name the address. Nil: net.Listen.
	Listen func(name, address string, explicit bool) (net.Listener, error)
}

// Forwarder brings connections to endpoints. All methods may be called at any time from any goroutine, except Run, which
// may be called once.
type Forwarder struct {
	options  Options
	client   atomic.Pointer[piko.Client]
	metrics  *metrics
	console  *console.Console
	current  atomic.Pointer[shape]
	bound    atomic.Bool
	draining atomic.Bool

	running sync.WaitGroup // forwards

	mu   sync.Mutex // guards the following
	life *lifetime  // nil while nothing runs
}

// shape is what the forwarder is under some settings.
type shape struct {
	settings config.Forward
	forwards []*forward // in the order of the settings
}

// lifetime is what forwards run in.
type lifetime struct {
	ctx context.Context // ends when the drain begins
	cut context.Context // ends when it is over
}

// New prepares a forwarder: files are read and everything is checked, but no socket is opened. Problems with the settings
// are of type [config.Problem], all of them joined.
func New(c config.Forward, o Options) (*Forwarder, error) {
	if o.Listen == nil {
		o.Listen = func(_, address string, _ bool) (net.Listener, error) {
			return net.Listen(config.Address(address).Split())
		}
	}
	f := &Forwarder{options: o}
	var errs [2]error
	client, problem := newClient(c.Connect, o.Log)
	f.client.Store(client)
	errs[0] = problem
	registry := console.NewRegistry(o.Version)
	if o.Collector != nil {
		registry.MustRegister(o.Collector)
	}
	f.metrics = newMetrics(registry)
	first := &shape{settings: c}
	for i, entry := range c.Forwards {
		first.forwards = append(first.forwards, f.newForward(i, entry))
	}
	f.current.Store(first)
	f.console, errs[1] = console.New(c.Admin, admin.Options{
		Gatherer: registry,
		Ready:    f.Ready,
		Status:   map[string]admin.StatusFunc{"": func(*http.Request) (any, error) { return f.status(), nil }},
		Reload:   o.Reload,
	}, console.Options{
		Log: o.Log, ErrorLog: o.ErrorLog, Version: o.Version, Listen: o.Listen, Explicit: c.IsSet("admin.listen"),
	})
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	return f, nil
}

func (f *Forwarder) newForward(index int, entry config.ForwardEntry) *forward {
	one := &forward{client: f.client.Load}
	one.target.Store(f.newTarget(index, entry))
	return one
}

func (f *Forwarder) newTarget(index int, entry config.ForwardEntry) *target {
	return &target{
		settings: entry,
		log:      f.options.Log.WithFields(logrus.Fields{"listen": string(entry.Listen), "endpoint": entry.Endpoint}),
		lines:    rate.NewLimiter(rate.Every(100*time.Millisecond), 10),
		metrics:  f.metrics.forward(entry.Endpoint, index),
	}
}

// newClient makes the SDK's client of the settings.
func newClient(c config.ForwardConnect, log *logrus.Logger) (*piko.Client, error) {
	tls, err := tlsconf.Client("connect.tls", c.TLS)
	if err != nil {
		return nil, err
	}
	client := &piko.Client{ProxyURL: c.URL, Token: c.Token.Reveal(), TLSConfig: tls, Logger: daemon.Slog(log)}
	if c.TokenFile != "" {
		client.TokenSource = piko.TokenFile(string(c.TokenFile))
	}
	return client, nil
}

// Run opens all listeners and forwards until ctx ends. Then it takes nothing new and returns when the open connections have
// ended, at the latest after the drain timeout. It returns an error only if a listener can't be opened, and then leaves
// none open, or if the admin listener can't be served.
func (f *Forwarder) Run(ctx context.Context) error {
	if err := f.bind(); err != nil {
		return err
	}
	f.bound.Store(true)
	// The console goes on until the drain is over, so that probes and operators can follow it.
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	group, life := errgroup.WithContext(life)
	group.Go(func() error { return f.console.Run(life) })
	group.Go(func() error {
		daemon.Tell(life, f.options.Status, f.summary)
		return nil
	})
	failed, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(life, cancel)()
	f.forward(failed)
	stop()
	return group.Wait()
}

// forward takes connections until ctx ends and those that are open have ended.
func (f *Forwarder) forward(ctx context.Context) {
	cut, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	f.mu.Lock()
	f.life = &lifetime{ctx, cut}
	for _, one := range f.current.Load().forwards {
		f.startLocked(one) //nolint:contextcheck // what is started belongs to Run, and not to the caller
	}
	f.mu.Unlock()
	if f.options.Ready != nil {
		f.options.Ready()
	}
	<-ctx.Done()
	f.draining.Store(true)
	f.mu.Lock()
	f.life = nil // nothing more is started
	f.mu.Unlock()
	timeout := time.Duration(f.current.Load().settings.DrainTimeout)
	f.options.Log.WithField("timeout", timeout.String()).Info("draining")
	timer := time.AfterFunc(timeout, stop)
	defer timer.Stop()
	f.running.Wait()
	if cut.Err() != nil {
		f.options.Log.Warn("connections cut at the end of the drain timeout")
	}
}

// bind opens all listeners, or none.
func (f *Forwarder) bind() error {
	if err := f.console.Listen(); err != nil {
		return err
	}
	if err := f.open(f.current.Load().forwards); err != nil {
		f.console.Close()
		return err
	}
	return nil
}

// open opens the listeners of forwards, or none.
func (f *Forwarder) open(forwards []*forward) error {
	for i, one := range forwards {
		entry := one.target.Load().settings
		ln, err := f.options.Listen(entry.Endpoint, string(entry.Listen), true)
		if err != nil {
			shut(forwards[:i])
			return fmt.Errorf("open the listener of the forward to %q: %w", entry.Endpoint, err)
		}
		one.ln = ln
	}
	return nil
}

// shut closes the listeners of forwards that will not run.
func shut(forwards []*forward) {
	for _, one := range forwards {
		_ = one.ln.Close() // nothing was accepted
	}
}

// Ready returns nil when connections are taken, and otherwise why not.
func (f *Forwarder) Ready() error {
	switch {
	case f.draining.Load():
		return errors.New("draining")
	case !f.bound.Load():
		return errors.New("starting")
	}
	return nil
}

// status is the answer to GET /status.
type status struct {
	Draining bool            `json:"draining"`
	Forwards []forwardStatus `json:"forwards"`
	Reload   any             `json:"reload,omitempty"`
}

type forwardStatus struct {
	Listen   string `json:"listen"`
	Endpoint string `json:"endpoint"`
	Open     int64  `json:"open"`
}

func (f *Forwarder) status() status {
	s := status{Draining: f.draining.Load(), Forwards: []forwardStatus{}}
	if f.options.Reloaded != nil {
		s.Reload = f.options.Reloaded()
	}
	for _, one := range f.current.Load().forwards {
		entry := one.target.Load().settings
		s.Forwards = append(s.Forwards,
			forwardStatus{Listen: string(entry.Listen), Endpoint: entry.Endpoint, Open: one.open.Load()})
	}
	return s
}

// summary is the status in one line, for systemd.
func (f *Forwarder) summary() string {
	var open int64
	forwards := f.current.Load().forwards
	for _, one := range forwards {
		open += one.open.Load()
	}
	if f.draining.Load() {
		return fmt.Sprintf("draining, %d connections open", open)
	}
	return fmt.Sprintf("%d forwards, %d connections open", len(forwards), open)
}

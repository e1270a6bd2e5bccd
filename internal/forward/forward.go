// Package forward assembles piko-forward: it takes connections at local addresses and brings each to an endpoint, through
// the SDK.
//
//	local client ──► forward ── one WebSocket for each connection ──► node ──► agent ──► service
//
// Half-closes pass through in both directions. When the endpoint can't be reached, the local connection is aborted, so that
// its client sees an error and not an empty answer, and the log says why. Each forward is independent of the others.
// Settings are taken as they are given and never change.
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

	// Listen opens a socket: "admin", or that of a forward, which is named by its endpoint. Explicit says that the
	// settings name the address. Nil: net.Listen.
	Listen func(name, address string, explicit bool) (net.Listener, error)
}

// Forwarder brings connections to endpoints. All methods may be called at any time from any goroutine, except Run, which
// may be called once.
type Forwarder struct {
	settings config.Forward
	options  Options
	client   *piko.Client
	forwards []*forward
	console  *console.Console
	bound    atomic.Bool
	draining atomic.Bool
}

// New prepares a forwarder: files are read and everything is checked, but no socket is opened. Problems with the settings
// are of type [config.Problem], all of them joined.
func New(c config.Forward, o Options) (*Forwarder, error) {
	if o.Listen == nil {
		o.Listen = func(_, address string, _ bool) (net.Listener, error) {
			return net.Listen(config.Address(address).Split())
		}
	}
	f := &Forwarder{settings: c, options: o}
	var errs [2]error
	f.client, errs[0] = newClient(c.Connect, o.Log)
	registry := console.NewRegistry(o.Version)
	m := newMetrics(registry)
	for i, entry := range c.Forwards {
		f.forwards = append(f.forwards, &forward{
			settings: entry,
			client:   f.client,
			log:      o.Log.WithFields(logrus.Fields{"listen": string(entry.Listen), "endpoint": entry.Endpoint}),
			lines:    rate.NewLimiter(rate.Every(100*time.Millisecond), 10),
			metrics:  m.forward(entry.Endpoint, i),
		})
	}
	f.console, errs[1] = console.New(c.Admin, admin.Options{
		Gatherer: registry,
		Ready:    f.Ready,
		Status:   map[string]admin.StatusFunc{"": func(*http.Request) (any, error) { return f.status(), nil }},
	}, console.Options{
		Log: o.Log, ErrorLog: o.ErrorLog, Version: o.Version, Listen: o.Listen, Explicit: c.IsSet("admin.listen"),
	})
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	return f, nil
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
		f.tell(life)
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
	var running sync.WaitGroup
	for _, one := range f.forwards {
		running.Go(func() { one.run(ctx, cut) })
	}
	if f.options.Ready != nil {
		f.options.Ready()
	}
	<-ctx.Done()
	f.draining.Store(true)
	timeout := time.Duration(f.settings.DrainTimeout)
	f.options.Log.WithField("timeout", timeout.String()).Info("draining")
	timer := time.AfterFunc(timeout, stop)
	defer timer.Stop()
	running.Wait()
	if cut.Err() != nil {
		f.options.Log.Warn("connections cut at the end of the drain timeout")
	}
}

// bind opens all listeners, or none.
func (f *Forwarder) bind() error {
	if err := f.console.Listen(); err != nil {
		return err
	}
	for i, one := range f.forwards {
		ln, err := f.options.Listen(one.settings.Endpoint, string(one.settings.Listen), true)
		if err != nil {
			for _, open := range f.forwards[:i] {
				_ = open.ln.Close() // nothing was accepted
			}
			f.console.Close()
			return fmt.Errorf("open the listener of the forward to %q: %w", one.settings.Endpoint, err)
		}
		one.ln = ln
	}
	return nil
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

// statusEvery is how often the state is told.
const statusEvery = 2 * time.Second

// tell passes on how the forwarder fares until ctx ends.
func (f *Forwarder) tell(ctx context.Context) {
	if f.options.Status == nil {
		return
	}
	ticker := time.NewTicker(statusEvery)
	defer ticker.Stop()
	for {
		f.options.Status(f.summary())
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// status is the answer to GET /status.
type status struct {
	Draining bool            `json:"draining"`
	Forwards []forwardStatus `json:"forwards"`
}

type forwardStatus struct {
	Listen   string `json:"listen"`
	Endpoint string `json:"endpoint"`
	Open     int64  `json:"open"`
}

func (f *Forwarder) status() status {
	s := status{Draining: f.draining.Load(), Forwards: []forwardStatus{}}
	for _, one := range f.forwards {
		s.Forwards = append(s.Forwards,
			forwardStatus{Listen: string(one.settings.Listen), Endpoint: one.settings.Endpoint, Open: one.open.Load()})
	}
	return s
}

// summary is the status in one line, for systemd.
func (f *Forwarder) summary() string {
	var open int64
	for _, one := range f.forwards {
		open += one.open.Load()
	}
	if f.draining.Load() {
		return fmt.Sprintf("draining, %d connections open", open)
	}
	return fmt.Sprintf("%d forwards, %d connections open", len(f.forwards), open)
}

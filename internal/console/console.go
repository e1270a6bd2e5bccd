// Package console serves the admin listener of a process whose work is another: piko-agent and piko-forward. It adds to the
// handler of package admin what every such listener needs, in one place: a socket, TLS, tokens, and an end.
//
// Run is to be called once, after Listen; the handler may be used by any number of operators at a time. Settings change by
// Prepare while it runs, one change at a time, which must be over when Run's context ends.
package console

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/sirupsen/logrus"
	"golang.org/x/time/rate"

	"github.com/pikoproxy/piko/internal/admin"
	"github.com/pikoproxy/piko/internal/auth"
	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/fault"
	"github.com/pikoproxy/piko/internal/limit"
	"github.com/pikoproxy/piko/internal/tlsconf"
)

// grace is how long the end waits for answers that are being written.
const grace = 2 * time.Second

// Options are what a console needs beside what it shows.
type Options struct {
	Log      logrus.FieldLogger // required
	ErrorLog *log.Logger        // for what net/http says; may be nil
	Version  string             // of the program, for requests of key sets

	// Listen opens the socket "admin"; explicit says that the settings name the address. Required by Listen.
	Listen func(name, address string, explicit bool) (net.Listener, error)
	// Explicit says that the settings name the address of the listener.
	Explicit bool
}

// Console is the admin listener of a process.
type Console struct {
	show     admin.Options
	o        Options
	refusals *rate.Limiter // lines of the log about operators who were refused
	report   *limit.Reporter
	turns    *limit.Turns
	gate     *limit.Gate
	guests   *tlsconf.Guests
	server   *http.Server
	face     atomic.Pointer[face]
	work     sync.WaitGroup // goroutines of Run
	failed   chan error     // holds the first failure of a listener

	mu  sync.Mutex      // guards the following
	ctx context.Context // of Run; nil before
	ln  net.Listener    // nil: there is none
}

// face is how the console shows itself under some settings.
type face struct {
	settings config.Admin
	tls      *tls.Config
	operator *auth.Verifier
	handler  http.Handler
	stop     context.CancelFunc // ends the refreshing of the operator's keys; set by begin
}

// New prepares a console: certificates and keys are read, but no socket is opened. When the settings name no address, it has
// nothing to do until [Console.Prepare] gives it one.
func New(c config.Admin, show admin.Options, o Options) (*Console, error) {
	x := &Console{show: show, o: o, refusals: rate.NewLimiter(10, 10), failed: make(chan error, 1)}
	x.show.Log = o.Log
	f, err := x.newFace(c)
	if err != nil {
		return nil, err
	}
	x.face.Store(f)
	x.report, x.turns = limit.NewReporter(o.Log, nil), limit.NewTurns(0)
	x.gate = limit.NewGate(limit.Admin, gateSettings(c), x.report, nil)
	x.guests = tlsconf.NewGuests(x.tls, func(why error, remote string) {
		if x.refusals.Allow() {
			x.o.Log.WithFields(logrus.Fields{"remote": remote, "err": why}).Warn("operator's connection ends")
		}
	})
	x.server = admin.Server(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		x.face.Load().handler.ServeHTTP(w, r)
	}), o.ErrorLog)
	x.behindGuard()
	return x, nil
}

// tls is what the listener speaks at the moment; nil: plain text.
func (x *Console) tls() *tls.Config { return x.face.Load().tls }

func gateSettings(c config.Admin) limit.GateSettings {
	return limit.GateSettings{
		Access:      limit.Access{Allow: limit.Networks(c.Allow), Deny: limit.Networks(c.Deny)},
		Connections: c.MaxConnections,
	}
}

func (x *Console) newFace(c config.Admin) (*face, error) {
	f := &face{settings: c, stop: func() {}}
	var errs [2]error
	f.tls, errs[0] = tlsconf.Server("admin.tls", c.TLS, "h2", "http/1.1")
	f.tls = tlsconf.Remembering(f.tls)
	var previous *auth.Verifier
	if old := x.face.Load(); old != nil {
		previous = old.operator
	}
	f.operator, errs[1] = auth.New(c.Auth, auth.Options{
		Section: "admin.auth", Role: auth.Operator, Version: x.o.Version, Previous: previous,
	})
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	show := x.show
	show.Config = c
	if f.operator != nil {
		show.Guard = x.guard
	}
	f.handler = admin.New(show)
	return f, nil
}

// guard lets those in who show a token of an operator.
func (x *Console) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, err := x.face.Load().operator.Authenticate(r.Context(), r.Header)
		if err == nil {
			next.ServeHTTP(w, r)
			return
		}
		f := refusal(err)
		if x.refusals.Allow() {
			x.o.Log.WithFields(logrus.Fields{"reason": f.Code, "remote": r.RemoteAddr, "err": err}).Warn("operator refused")
		}
		fault.Write(w, r, f, "")
	})
}

func refusal(err error) fault.Fault {
	switch {
	case errors.Is(err, auth.ErrUnavailable):
		return fault.AuthUnavailable
	case errors.Is(err, auth.ErrMissing):
		return fault.MissingAuthorization
	case errors.Is(err, auth.ErrExpired):
		return fault.ExpiredToken
	}
	return fault.InvalidToken
}

// NewRegistry returns a registry with what every process shows of itself: its version, the Go runtime, and the operating
// system's view.
func NewRegistry(version string) *prometheus.Registry {
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "piko_build_info", Help: "1, with the version of the program as a label.",
		ConstLabels: prometheus.Labels{"version": version},
	})
	build.Set(1)
	registry := prometheus.NewRegistry()
	registry.MustRegister(build, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return registry
}

// Listen opens the socket, if the settings name an address.
func (x *Console) Listen() error {
	ln, err := x.open(x.face.Load().settings, x.o.Explicit)
	if err != nil {
		return err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.ln = ln
	return nil
}

func (x *Console) open(c config.Admin, explicit bool) (net.Listener, error) {
	if c.Listen == "" {
		return nil, nil //nolint:nilnil // off is the usual case, and no error
	}
	ln, err := x.o.Listen("admin", string(c.Listen), explicit)
	if err != nil {
		return nil, fmt.Errorf("open the admin listener: %w", err)
	}
	return x.guarded(x.guests.Listen(x.gate.Listen(ln))), nil
}

// Addr returns the address of the socket after Listen; nil when there is none.
func (x *Console) Addr() net.Addr {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.ln == nil {
		return nil
	}
	return x.ln.Addr()
}

// Close closes the socket of a console that will not run.
func (x *Console) Close() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.ln != nil {
		_ = x.ln.Close() // nothing was accepted
	}
}

// Prepare builds what other settings ask for, and opens their socket if it has another address. Commit puts it into use;
// retire closes the old socket, and leaves the connections that came through it alone.
func (x *Console) Prepare(c config.Admin, explicit bool) (commit, retire func(), err error) {
	next, err := x.newFace(c)
	if err != nil {
		return nil, nil, err
	}
	old := x.face.Load()
	moves := old.settings.Listen != c.Listen
	var ln net.Listener
	if moves {
		if ln, err = x.open(c, explicit); err != nil {
			return nil, nil, err
		}
	}
	var gone net.Listener
	commit = func() {
		x.mu.Lock()
		defer x.mu.Unlock()
		x.face.Store(next)
		x.gate.Apply(gateSettings(c))
		if moves {
			gone, x.ln = x.ln, ln
		}
		if x.ctx == nil {
			return // Run begins with what is there
		}
		x.beginLocked(next)
		if moves {
			x.serveLocked()
		}
	}
	retire = func() {
		old.stop()
		x.guests.Sweep(time.Now())
		if gone != nil {
			_ = gone.Close() // its connections are the server's
		}
	}
	return commit, retire, nil
}

// beginLocked keeps the keys of operators fresh.
func (x *Console) beginLocked(f *face) {
	var ctx context.Context
	ctx, f.stop = context.WithCancel(x.ctx)
	if f.operator == nil {
		return
	}
	x.work.Go(func() {
		if err := f.operator.Run(ctx); err != nil && ctx.Err() == nil {
			x.fail(fmt.Errorf("keys of operators: %w", err))
		}
	})
}

// serveLocked serves the socket until it is closed.
func (x *Console) serveLocked() {
	ln := x.ln
	if ln == nil {
		return
	}
	x.work.Go(func() {
		err := x.server.Serve(ln)
		if !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			x.fail(fmt.Errorf("serve the admin listener at %s: %w", ln.Addr(), err))
		}
	})
}

func (x *Console) fail(err error) {
	select {
	case x.failed <- err:
	default: // one is enough
	}
}

// Run serves until ctx ends. It returns an error only when that is not possible any more.
func (x *Console) Run(ctx context.Context) error {
	x.mu.Lock()
	x.ctx = ctx
	x.beginLocked(x.face.Load()) //nolint:contextcheck // it takes the context of Run, which this is
	x.serveLocked()
	x.mu.Unlock()
	watching, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	x.work.Go(func() { _ = x.guests.Run(watching) }) // always nil
	var err error
	select {
	case <-ctx.Done():
	case err = <-x.failed:
	}
	x.mu.Lock()
	x.face.Load().stop()
	x.mu.Unlock()
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	if x.server.Shutdown(last) != nil {
		_ = x.server.Close() // a scrape or profile that would not end
	}
	stop()
	x.work.Wait()
	return err
}

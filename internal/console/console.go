// Package console serves the admin listener of a process whose work is another: piko-agent and piko-forward. It adds to the
// handler of package admin what every such listener needs, in one place: a socket, TLS, tokens, and an end.
//
// Run is to be called once, after Listen; the handler may be used by any number of operators at a time.
package console

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/sirupsen/logrus"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/pikoproxy/piko/internal/admin"
	"github.com/pikoproxy/piko/internal/auth"
	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/fault"
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
	settings config.Admin
	o        Options
	tls      *tls.Config
	operator *auth.Verifier
	refusals *rate.Limiter // lines of the log about operators who were refused
	server   *http.Server
	ln       net.Listener
}

// New prepares a console: certificates and keys are read, but no socket is opened. It returns nil when the settings name no
// address; the methods of a nil Console do nothing.
func New(c config.Admin, show admin.Options, o Options) (*Console, error) {
	if c.Listen == "" {
		return nil, nil //nolint:nilnil // off is the usual case, and no error
	}
	x := &Console{settings: c, o: o, refusals: rate.NewLimiter(10, 10)}
	var errs [2]error
	x.tls, errs[0] = tlsconf.Server("admin.tls", c.TLS, "h2", "http/1.1")
	x.operator, errs[1] = auth.New(c.Auth, auth.Options{Role: auth.Operator, Version: o.Version})
	if errs[1] != nil {
		errs[1] = fmt.Errorf("admin.auth: %w", errs[1])
	}
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	show.Config, show.Log = c, o.Log
	if x.operator != nil {
		show.Guard = x.guard
	}
	x.server = admin.Server(admin.New(show), o.ErrorLog)
	return x, nil
}

// guard lets those in who show a token of an operator.
func (x *Console) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, err := x.operator.Authenticate(r.Context(), r.Header)
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

// Listen opens the socket.
func (x *Console) Listen() error {
	if x == nil {
		return nil
	}
	ln, err := x.o.Listen("admin", string(x.settings.Listen), x.o.Explicit)
	if err != nil {
		return fmt.Errorf("open the admin listener: %w", err)
	}
	if x.tls != nil {
		ln = tls.NewListener(ln, x.tls)
	}
	x.ln = ln
	return nil
}

// Addr returns the address of the socket after Listen; nil when there is none.
func (x *Console) Addr() net.Addr {
	if x == nil || x.ln == nil {
		return nil
	}
	return x.ln.Addr()
}

// Close closes the socket of a console that will not run.
func (x *Console) Close() {
	if x != nil && x.ln != nil {
		_ = x.ln.Close() // nothing was accepted
	}
}

// Run serves until ctx ends. It returns an error only when that is not possible any more.
func (x *Console) Run(ctx context.Context) error {
	if x == nil {
		return nil
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		if err := x.operator.Run(ctx); err != nil && ctx.Err() == nil {
			return fmt.Errorf("keys of operators: %w", err)
		}
		return nil
	})
	group.Go(func() error {
		if err := x.server.Serve(x.ln); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve the admin listener at %s: %w", x.ln.Addr(), err)
		}
		return nil
	})
	group.Go(func() error {
		<-ctx.Done()
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
		defer cancel()
		if x.server.Shutdown(last) != nil {
			_ = x.server.Close() // a scrape or profile that would not end
		}
		return nil
	})
	return group.Wait()
}

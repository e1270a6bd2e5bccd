// Package admin serves what operators, probes and scrapers ask of a process: health, readiness, metrics, status, a
// reload on demand, and profiles when they are switched on. It knows nothing of what it shows: the assembly hands in
// functions.
//
//	GET  /health             200 while the process works                      open to everybody
//	GET  /ready              200 when it takes traffic, else 503 and why      open to everybody
//	GET  /metrics            Prometheus
//	GET  /status, /status/…  JSON, see [Options.Status]
//	POST /reload             200 when the settings were reloaded, else 422 and why; absent without [Options.Reload]
//	GET  /debug/pprof/…      Go profiles; absent unless switched on, and never the command line
//
// Two things protect a listener without tokens from web pages that an operator has open in a browser. A request must
// name a host that a stranger's DNS can't point here (see [hostAllowed]), and one that changes something must not come
// from another origin. No answer carries a CORS header.
//
// The handler may be used by many goroutines, and so must be the functions handed in.
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net/http"
	"net/http/pprof"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/sirupsen/logrus"

	"github.com/pikoproxy/piko/internal/config"
)

const (
	answerTimeout  = 30 * time.Second // for writing any answer but a profile
	profileTimeout = 5 * time.Minute
	scrapeTimeout  = 20 * time.Second
	scrapesMax     = 4 // at once; a scrape walks the whole table
)

// ErrNotFound makes a status function's request end with 404.
var ErrNotFound = errors.New("not found")

// StatusFunc answers one status request with something that encodes as JSON. What it returns must be sorted, so that
// two answers can be compared. Path values of its pattern are in the request.
type StatusFunc func(r *http.Request) (any, error)

// Options are what [New] needs.
type Options struct {
	Config   config.Admin
	Gatherer prometheus.Gatherer // nil: no /metrics
	Ready    func() error        // nil: always ready. The text of its error is shown
	// Status maps patterns below /status, as http.ServeMux knows them, to their functions: "sessions" or
	// "routes/{endpoint...}". The empty pattern is /status itself.
	Status map[string]StatusFunc
	// Reload reloads the settings and waits for the outcome; nil: there is no /reload.
	Reload func(ctx context.Context) error
	// Guard wraps everything but /health and /ready and answers those who have no right to be there; nil: open to all.
	Guard func(http.Handler) http.Handler
	Log   logrus.FieldLogger
}

// New returns the handler for the admin listener.
func New(o Options) http.Handler {
	a := &handler{Options: o}
	a.hostname, _ = os.Hostname() // a host without a name is reached by its other ones
	inner := http.NewServeMux()
	if o.Gatherer != nil {
		inner.Handle("GET /metrics", promhttp.HandlerFor(o.Gatherer, promhttp.HandlerOpts{
			ErrorLog: promLog{o.Log}, ErrorHandling: promhttp.ContinueOnError,
			MaxRequestsInFlight: scrapesMax, Timeout: scrapeTimeout,
		}))
	}
	for pattern, f := range o.Status {
		path := "GET /status"
		if pattern != "" {
			path += "/" + pattern
		}
		inner.HandleFunc(path, a.status(f))
	}
	if o.Reload != nil {
		inner.HandleFunc("POST /reload", a.reload)
	}
	if o.Config.Pprof {
		// Index also serves the named profiles, such as /debug/pprof/heap. The command line is none of them and left
		// out.
		inner.HandleFunc("GET /debug/pprof/", pprof.Index)
		inner.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		inner.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
		inner.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	var guarded http.Handler = inner
	if o.Guard != nil {
		guarded = o.Guard(guarded)
	}
	origin := http.NewCrossOriginProtection()
	origin.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		refuse(w, http.StatusForbidden, "cross-origin request")
	}))

	outer := http.NewServeMux()
	outer.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, map[string]string{"status": "ok"})
	})
	outer.HandleFunc("GET /ready", a.ready)
	outer.Handle("/", a.ownHost(origin.Handler(guarded)))
	return limited(outer)
}

// Server returns an HTTP server for the handler that no slow or greedy client can keep busy.
func Server(h http.Handler, errorLog *log.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          errorLog,
	}
}

type handler struct {
	Options
	hostname string
}

func (a *handler) ready(w http.ResponseWriter, _ *http.Request) {
	if a.Ready != nil {
		if err := a.Ready(); err != nil {
			answer(w, http.StatusServiceUnavailable, map[string]string{"status": "not ready", "error": err.Error()})
			return
		}
	}
	answer(w, http.StatusOK, map[string]string{"status": "ready"})
}

func (a *handler) status(f StatusFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v, err := f(r)
		switch {
		case errors.Is(err, ErrNotFound):
			refuse(w, http.StatusNotFound, "not found")
		case err != nil:
			a.Log.WithError(err).WithField("path", r.Pattern).Warn("status unavailable")
			refuse(w, http.StatusServiceUnavailable, "status unavailable")
		default:
			answer(w, http.StatusOK, v)
		}
	}
}

// reload answers with the whole error: it names files and keys to the operator, and the settings hold back secrets.
func (a *handler) reload(w http.ResponseWriter, r *http.Request) {
	if err := a.Reload(r.Context()); err != nil {
		answer(w, http.StatusUnprocessableEntity, map[string]string{"status": "refused", "error": err.Error()})
		return
	}
	answer(w, http.StatusOK, map[string]string{"status": "reloaded"})
}

// answer writes v as JSON. Maps come out sorted by key, structs in the order of their fields.
func answer(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		refuse(w, http.StatusInternalServerError, "internal error")
		return
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // the one who asked is gone; there is nobody to tell
}

func refuse(w http.ResponseWriter, status int, reason string) {
	answer(w, status, map[string]string{"error": reason})
}

// limited bounds what a request may send and how long its answer may take, and forbids browsers to make anything of it.
func limited(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		r.Body = http.MaxBytesReader(w, r.Body, 0)
		limit := answerTimeout
		if isProfile(r) {
			limit = profileTimeout
		}
		// Not every connection knows deadlines (those of a test do not); the request goes on without.
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(limit))
		next.ServeHTTP(w, r)
	})
}

// promLog passes the complaints of the scraper to the log.
type promLog struct{ log logrus.FieldLogger }

// Println logs a complaint.
func (l promLog) Println(v ...any) {
	if len(v) > 0 {
		l.log.WithField("detail", fmt.Sprint(v...)).Warn("metrics incomplete")
	}
}

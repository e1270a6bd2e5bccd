package admin_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"

	"github.com/pikoproxy/piko/internal/admin"
	"github.com/pikoproxy/piko/internal/config"
)

func quiet() logrus.FieldLogger {
	l, _ := test.NewNullLogger()
	return l
}

func full() admin.Options {
	reg := prometheus.NewRegistry()
	reg.MustRegister(prometheus.NewCounter(prometheus.CounterOpts{Name: "piko_test_total", Help: "Test."}))
	return admin.Options{
		Config: config.Admin{Pprof: true}, Gatherer: reg, Log: quiet(),
		Reload: func(context.Context) error { return nil },
		Status: map[string]admin.StatusFunc{
			"":         func(*http.Request) (any, error) { return map[string]int{"b": 2, "a": 1}, nil },
			"sessions": func(*http.Request) (any, error) { return []string{}, nil },
			"broken":   func(*http.Request) (any, error) { return nil, errors.New("secret detail") },
			"routes/{endpoint...}": func(r *http.Request) (any, error) {
				if r.PathValue("endpoint") != "t/e" {
					return nil, admin.ErrNotFound
				}
				return "found", nil
			},
		},
	}
}

type want struct {
	status int
	body   string // exact when it starts with '{', '[' or '"'; else part of the body
}

func check(t *testing.T, h http.Handler, r *http.Request, w want) http.Header {
	t.Helper()
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	got := strings.TrimSuffix(rec.Body.String(), "\n")
	same := got == w.body
	if w.body == "" || !strings.ContainsAny(w.body[:1], `{["`) {
		same = strings.Contains(got, w.body)
	}
	if rec.Code != w.status || !same {
		t.Errorf("%s %s: %d %q, want %d %q", r.Method, r.URL, rec.Code, got, w.status, w.body)
	}
	return rec.Header()
}

func request(method, path string) *http.Request {
	r := httptest.NewRequest(method, path, http.NoBody)
	r.Host = "127.0.0.1:8002"
	return r
}

func TestPaths(t *testing.T) {
	starting := full()
	starting.Ready = func() error { return errors.New("starting") }
	refusing := full()
	refusing.Reload = func(context.Context) error { return errors.New("pikod.toml:3: bad") }
	bare := admin.Options{Log: quiet()}
	for name, tc := range map[string]struct {
		o            admin.Options
		method, path string
		want         want
	}{
		"health":            {full(), "GET", "/health", want{200, `{"status":"ok"}`}},
		"ready":             {full(), "GET", "/ready", want{200, `{"status":"ready"}`}},
		"not ready":         {starting, "GET", "/ready", want{503, `{"error":"starting","status":"not ready"}`}},
		"health, not ready": {starting, "GET", "/health", want{200, `{"status":"ok"}`}},
		"metrics":           {full(), "GET", "/metrics", want{200, "piko_test_total 0"}},
		"no metrics":        {bare, "GET", "/metrics", want{404, ""}},
		"status":            {full(), "GET", "/status", want{200, `{"a":1,"b":2}`}},
		"status below":      {full(), "GET", "/status/sessions", want{200, `[]`}},
		"path value":        {full(), "GET", "/status/routes/t/e", want{200, `"found"`}},
		"unknown value":     {full(), "GET", "/status/routes/x", want{404, `{"error":"not found"}`}},
		"broken status":     {full(), "GET", "/status/broken", want{503, `{"error":"status unavailable"}`}},
		"unknown status":    {full(), "GET", "/status/nothing", want{404, ""}},
		"traversal":         {full(), "GET", "/status/..%2f..%2fetc", want{404, ""}},
		"reload":            {full(), "POST", "/reload", want{200, `{"status":"reloaded"}`}},
		"reload refused":    {refusing, "POST", "/reload", want{422, `{"error":"pikod.toml:3: bad","status":"refused"}`}},
		"reload by GET":     {full(), "GET", "/reload", want{405, ""}},
		"no reload":         {bare, "POST", "/reload", want{404, ""}},
		"write to status":   {full(), "POST", "/status", want{405, ""}},
		"profile":           {full(), "GET", "/debug/pprof/goroutine?debug=1", want{200, "goroutine profile"}},
		"command line":      {full(), "GET", "/debug/pprof/cmdline", want{404, ""}},
		"profiles off":      {bare, "GET", "/debug/pprof/", want{404, ""}},
	} {
		t.Run(name, func(t *testing.T) {
			header := check(t, admin.New(tc.o), request(tc.method, tc.path), tc.want)
			if header.Get("Access-Control-Allow-Origin") != "" {
				t.Error("the answer has a CORS header")
			}
			if got := header.Get("X-Content-Type-Options"); got != "nosniff" {
				t.Errorf("X-Content-Type-Options = %q", got)
			}
		})
	}
}

func TestAStrangersNameIsRefused(t *testing.T) {
	h := admin.New(full())
	for host, ok := range map[string]bool{
		"127.0.0.1:8002": true, "127.0.0.1": true, "[::1]:8002": true, "10.1.2.3": true, "localhost:8002": true, "LocalHost": true,
		"pikod": true, "pikod:8002": true, "pikod-0.pikod.piko.svc": true, "x.cluster.local": true, "pikod.service.consul": true,
		"": true, "localhost.": true,
		"evil.example": false, "evil.example:8002": false, "127.0.0.1.evil.example": false, "localhost.evil.example": false,
		"evil.example.": false, "local.example.com": false,
	} {
		r := request("GET", "/status")
		r.Host = host
		w := want{200, `{"a":1,"b":2}`}
		if !ok {
			w = want{421, `{"error":"bad host"}`}
		}
		check(t, h, r, w)
		r = request("GET", "/health")
		r.Host = host
		check(t, h, r, want{200, `{"status":"ok"}`})
	}
}

func TestAPageOfAnotherOriginChangesNothing(t *testing.T) {
	h := admin.New(full())
	for name, set := range map[string]func(http.Header){
		"fetch metadata": func(h http.Header) { h.Set("Sec-Fetch-Site", "cross-site") },
		"origin":         func(h http.Header) { h.Set("Origin", "https://evil.example") },
	} {
		t.Run(name, func(t *testing.T) {
			r := request("POST", "/reload")
			set(r.Header)
			check(t, h, r, want{403, `{"error":"cross-origin request"}`})
		})
	}
}

func TestTheGuardLeavesProbesAlone(t *testing.T) {
	o := full()
	o.Guard = func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) })
	}
	o.Config.Auth.HMACSecretKey = config.NewSecret(strings.Repeat("k", 32))
	h := admin.New(o)
	for path, status := range map[string]int{
		"/health": 200, "/ready": 200, "/metrics": 401, "/status": 401, "/status/sessions": 401, "/debug/pprof/": 401, "/nothing": 401,
	} {
		check(t, h, request("GET", path), want{status, ""})
	}
	check(t, h, request("POST", "/reload"), want{401, ""})
	named := request("GET", "/status")
	named.Host = "ops.example.com"
	check(t, h, named, want{401, ""})
}

func TestABodyIsNotRead(t *testing.T) {
	o := full()
	o.Guard = func(http.Handler) http.Handler {
		return http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			if n, err := io.Copy(io.Discard, r.Body); err == nil || n != 0 {
				t.Errorf("%d bytes of body were read, error %v", n, err)
			}
		})
	}
	r := httptest.NewRequest("POST", "/reload", strings.NewReader("body"))
	admin.New(o).ServeHTTP(httptest.NewRecorder(), r)
}

func TestTheServerIsBounded(t *testing.T) {
	s := admin.Server(http.NotFoundHandler(), nil)
	for name, d := range map[string]time.Duration{"header": s.ReadHeaderTimeout, "read": s.ReadTimeout, "idle": s.IdleTimeout} {
		if d <= 0 || d > 5*time.Minute {
			t.Errorf("%s timeout = %s", name, d)
		}
	}
	if s.MaxHeaderBytes <= 0 {
		t.Error("no limit for headers")
	}
}

package consul

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/pikotest/consultest"
)

func TestConsulGoneAndBackCostsNoRoute(t *testing.T) {
	t.Parallel()
	c := consultest.Start(t, consultest.Options{})
	w := newTown(t, c)
	w.pace.retryMax = 500 * time.Millisecond
	a, b := w.pair()
	session := sessionOf(a)
	b.keeps(func() {
		c.Stop()
		a.local.Add("during", 1)
		for i := range 100 {
			a.local.Add(fmt.Sprint("e", i), 1)
		}
		a.local.Add("brief", 1)
		until(t, "the outage is noticed", func() bool { return a.metric("piko_consul_degraded") == 1 })
		a.local.Add("brief", -1)
		if up := a.metric("piko_consul_up"); up != 0 {
			t.Errorf("piko_consul_up is %v while Consul is gone", up)
		}
		before := a.metric("piko_consul_transactions_total")
		c.Restart()
		b.sees("during", map[string]int{"a": 1})
		b.sees("e99", map[string]int{"a": 1})
		b.remembers("brief", map[string]int{})
		t.Logf("%v transactions tried around the return", a.metric("piko_consul_transactions_total")-before)
	})
	if s := sessionOf(a); s != session {
		t.Error("the outage cost the session")
	}
	if n := b.metric("piko_consul_gap_reloads_total"); n > 1 {
		t.Errorf("%v lists after the outage, want at most one", n)
	}
	goesOn(b, a)
}

func TestLeaderKilled(t *testing.T) {
	t.Parallel()
	servers := consultest.Cluster(t, 3)
	var leader *consultest.Consul
	until(t, "one server leads", func() bool {
		for _, c := range servers {
			if c.Leads() {
				leader = c
			}
		}
		return leader != nil
	})
	w := newTown(t, leader)
	w.change = func(o *Options) {
		o.Settings.Address = config.List{leader.HTTP} // first, so that it is the one that is lost
		for _, c := range servers {
			if c != leader {
				o.Settings.Address = append(o.Settings.Address, c.HTTP)
			}
		}
	}
	a, b := w.pair()
	session := sessionOf(a)
	b.keeps(func() {
		leader.Kill()
		began := time.Now()
		goesOn(a, b)
		goesOn(b, a)
		took := time.Since(began)
		if failed := b.metric("piko_consul_watch_errors_total"); failed > 20+10*took.Seconds() {
			t.Errorf("%v failed reads in %v, want them spaced", failed, took)
		}
	})
	if sessionOf(a) != session {
		t.Error("the election cost the session")
	}
}

// rules are the four that the manual names.
const rules = `
key_prefix     "pikod/CLUSTER/" { policy = "write" }
session_prefix "pikod-"         { policy = "write" }
node_prefix    "pikod-"         { policy = "write" }
service        "pikod"          { policy = "write" }
`

func TestFourRulesAreEnough(t *testing.T) {
	t.Parallel()
	c := consultest.Start(t, consultest.Options{ACL: true})
	w := newTown(t, c)
	w.pace.sweep, w.pace.sweepAge, w.pace.sweepSpread = 100*time.Millisecond, 200*time.Millisecond, 0
	w.pace.probe, w.pace.retryMax = 50*time.Millisecond, 200*time.Millisecond
	_, _, err := w.client.ACL().PolicyCreate(
		&api.ACLPolicy{Name: "pikod", Rules: strings.ReplaceAll(rules, "CLUSTER", w.cluster)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	token, _, err := w.client.ACL().TokenCreate(&api.ACLToken{Policies: []*api.ACLLink{{Name: "pikod"}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("66666666-0000-0000-0000-000000000000\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.change = func(o *Options) { o.Settings.Token, o.Settings.TokenFile = config.Secret{}, config.File(file) }
	a := w.join("a")
	until(t, "a wrong token is refused", func() bool { return a.metric("piko_consul_watch_errors_total") > 0 })
	// The file is read again because of the refusal.
	if err := os.WriteFile(file, []byte(token.SecretID+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	a.local.Add("kept", 1)
	b := w.join("b")
	b.sees("kept", map[string]int{"a": 1})
	goesOn(b, a)
	entries, _, err := w.client.Health().Service(serviceName, "", true, nil)
	if err != nil || len(entries) != 2 {
		t.Errorf("%d passing services, %v; want 2", len(entries), err)
	}
	session := sessionOf(a)
	if err := a.stop(); err != nil {
		t.Error(err)
	}
	if _, err := w.client.Session().Destroy(session, nil); err != nil {
		t.Fatal(err)
	}
	until(t, "the dead node is swept up", func() bool {
		node, _, err := w.client.Catalog().Node(a.catalog, nil)
		return err == nil && node == nil
	})
	b.leave()
}

// liar stands between nodes and Consul and can do to requests what it is told.
type liar struct {
	*httptest.Server
	lie atomic.Pointer[func(http.ResponseWriter, *http.Request) bool]

	through func(http.ResponseWriter, *http.Request) // asks Consul

	mu   sync.Mutex
	seen map[string]int // requests by method
}

// newLiar makes a liar; with secure it speaks TLS.
func newLiar(t *testing.T, c *consultest.Consul, secure bool) *liar {
	t.Helper()
	target, err := url.Parse("http://" + c.HTTP)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 100}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }, Transport: transport,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
	}
	l := &liar{seen: map[string]int{}, through: proxy.ServeHTTP}
	l.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		l.mu.Lock()
		l.seen[r.Method]++
		l.mu.Unlock()
		if lie := l.lie.Load(); lie != nil && (*lie)(w, r) {
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	l.Config.ErrorLog = log.New(io.Discard, "", 0)
	if secure {
		l.EnableHTTP2 = true
		l.StartTLS()
	} else {
		l.Start()
	}
	t.Cleanup(func() { l.CloseClientConnections(); l.Close(); transport.CloseIdleConnections() })
	return l
}

func (l *liar) tell(lie func(http.ResponseWriter, *http.Request) bool) { l.lie.Store(&lie) }

func (l *liar) honest() { l.lie.Store(nil) }

// address is what nodes take for Consul.
func (l *liar) address() string { return strings.TrimPrefix(l.URL, "http://") }

func TestReaderSurvivesLies(t *testing.T) {
	t.Parallel()
	c := consultest.Start(t, consultest.Options{})
	answer := func(code int) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodGet {
				return false
			}
			w.WriteHeader(code)
			return true
		}
	}
	for name, lie := range map[string]func(http.ResponseWriter, *http.Request) bool{
		"404": answer(http.StatusNotFound), "429": answer(http.StatusTooManyRequests), "500": answer(http.StatusInternalServerError),
		"503": answer(http.StatusServiceUnavailable), "403": answer(http.StatusForbidden),
		"index goes back": func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/kv/") || r.Method != http.MethodGet || r.URL.Query().Get("index") == "" {
				return false
			}
			for name, value := range map[string]string{
				"X-Consul-Index": "1", "X-Consul-LastContact": "0", "X-Consul-KnownLeader": "true",
			} {
				w.Header().Set(name, value)
			}
			w.WriteHeader(http.StatusNotFound)
			return true
		},
		"no JSON": func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodGet {
				fmt.Fprint(w, `[{"Key":"x","Value":"!`)
			}
			return r.Method == http.MethodGet
		},
		"hang up": func(_ http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodGet {
				panic(http.ErrAbortHandler)
			}
			return false
		},
		"empty list": func(w http.ResponseWriter, r *http.Request) bool {
			if !r.URL.Query().Has("recurse") || !strings.Contains(r.URL.Path, "/n/") {
				return false
			}
			w.Header().Set("X-Consul-LastContact", "0")
			w.WriteHeader(http.StatusNotFound)
			return true
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			started := time.Now()
			l := newLiar(t, c, false)
			w := newTown(t, c)
			w.pace.retryMin, w.pace.retryMax, w.pace.current = 10*time.Millisecond, 100*time.Millisecond, 100*time.Millisecond
			a := w.join("a")
			a.local.Add("kept", 1)
			a.publish("kept")
			w.change = func(o *Options) { o.Settings.Address = config.List{l.address()} }
			b := w.join("b")
			b.sees("kept", map[string]int{"a": 1})
			b.keeps(func() {
				l.tell(lie)
				l.CloseClientConnections()
				a.local.Add("during", 1)
				a.publish("during")
				began := time.Now()
				tick := time.NewTicker(10 * time.Millisecond)
				defer tick.Stop()
				for time.Since(began) < 500*time.Millisecond {
					<-tick.C
				}
				l.honest()
				b.sees("during", map[string]int{"a": 1})
			})
			goesOn(b, a)
			l.mu.Lock()
			defer l.mu.Unlock()
			took := time.Since(started)
			if n := l.seen[http.MethodGet]; float64(n) > 400+100*took.Seconds() {
				t.Errorf("%d reads in %v, want them spaced", n, took)
			}
		})
	}
}

// As a leader does that has just been elected.
func TestSessionIsNotGivenUpForAnAnswerThatDoesNotKnowIt(t *testing.T) {
	t.Parallel()
	c := consultest.Start(t, consultest.Options{})
	l := newLiar(t, c, false)
	w := newTown(t, c)
	w.pace.renew, w.pace.retryMin = 50*time.Millisecond, 10*time.Millisecond
	w.change = func(o *Options) { o.Settings.Address = config.List{l.address()} }
	a := w.join("a")
	a.local.Add("kept", 1)
	a.publish("kept")
	session := sessionOf(a)
	var lies atomic.Int64
	l.tell(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/session/renew/") {
			return false
		}
		lies.Add(1)
		w.WriteHeader(http.StatusNotFound)
		return true
	})
	until(t, "Consul has denied the session some times", func() bool { return lies.Load() > 5 })
	l.honest()
	a.local.Add("after", 1)
	a.publish("after")
	if now := sessionOf(a); now != session || a.metric("piko_consul_sessions_created_total") != 1 {
		t.Errorf("session %s was replaced by %s, though it was there", session, now)
	}
}

func TestAddressThatHangsIsLeft(t *testing.T) {
	t.Parallel()
	c := consultest.Start(t, consultest.Options{})
	l, secure := newLiar(t, c, false), newLiar(t, c, true)
	authority := filepath.Join(t.TempDir(), "ca.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw})
	if err := os.WriteFile(authority, block, 0o600); err != nil {
		t.Fatal(err)
	}
	l.tell(func(_ http.ResponseWriter, r *http.Request) bool {
		<-r.Context().Done()
		return true
	})
	w := newTown(t, c)
	w.pace.renewTimeout = time.Second
	w.change = func(o *Options) {
		o.Settings.Address = config.List{l.address(), secure.URL}
		o.Settings.TLS.CA = config.File(authority)
	}
	a, b := w.pair()
	goesOn(a, b)
	secure.tell(func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusInternalServerError)
		return true
	})
	secure.CloseClientConnections()
	l.honest()
	goesOn(b, a)

	roots := x509.NewCertPool()
	roots.AddCert(secure.Certificate())
	conf, err := secured(config.ClientTLS{CA: config.File(authority)}, environment{})
	if err != nil || conf.MinVersion != tls.VersionTLS12 || !conf.RootCAs.Equal(roots) || conf.InsecureSkipVerify {
		t.Errorf("TLS = %+v, %v; want the authority and nothing less", conf, err)
	}
}

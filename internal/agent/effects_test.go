package agent

import (
	"context"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/daemon/daemontest"
	"github.com/pikoproxy/piko/internal/tunnel"
)

// effect is a change of settings in a running agent and what is different then: seen holds some time after the change, and
// does not hold before it. The agent offers "web", whose service tells the host that it sees, and "tcp", whose service
// answers in upper case.
type effect struct {
	keys   string // separated by spaces
	change func(*config.Agent, *tap)
	seen   func(*harness, *tap) bool
}

var effects = []effect{
	{
		"connect.url", func(c *config.Agent, f *tap) { c.Connect.URL = f.URL + "/base" },
		func(_ *harness, f *tap) bool {
			return f.seen(func(r *http.Request) bool { return strings.HasPrefix(r.URL.Path, "/base/") })
		},
	},
	{
		"connect.connections", func(c *config.Agent, _ *tap) { c.Connect.Connections = 2 },
		func(_ *harness, f *tap) bool { return f.count() > 1 },
	},
	{
		"connect.token", func(c *config.Agent, _ *tap) { c.Connect.Token = config.NewSecret("inline") },
		presents("inline"),
	},
	{
		"connect.token_file", func(c *config.Agent, f *tap) {
			c.Connect.Token, c.Connect.TokenFile = config.NewSecret("from-file"), config.File(f.tokenFile)
		},
		presents("from-file"),
	},
	{
		"connect.tenant_id", func(c *config.Agent, _ *tap) { c.Connect.TenantID = "acme" },
		func(_ *harness, f *tap) bool {
			return f.seen(func(r *http.Request) bool { return r.Header.Get(tunnel.HeaderTenant) == "acme" })
		},
	},
	{
		"connect.proxy_url", func(c *config.Agent, f *tap) {
			c.Connect.ProxyURL, _ = config.ParseProxyURL(f.URL) // without an effect if it is none
		},
		func(_ *harness, f *tap) bool {
			return f.seen(func(r *http.Request) bool { return r.Method == http.MethodConnect })
		},
	},
	{
		"listeners[].host_header", func(c *config.Agent, _ *tap) { c.Listeners[0].HostHeader = "service.test" },
		func(h *harness, _ *tap) bool {
			_, host := h.get(h.client("web", tunnel.ProtocolHTTP), "http://x/")
			return host == "service.test"
		},
	},
	{
		"listeners[].weight", func(c *config.Agent, _ *tap) { c.Listeners[0].Weight = 5 },
		func(h *harness, _ *tap) bool {
			l, ok := h.node.Listens("web")
			return ok && l.Weight == 5
		},
	},
	{
		"listeners[].access_log", func(c *config.Agent, _ *tap) { c.Listeners[0].AccessLog = true },
		func(h *harness, _ *tap) bool {
			h.get(h.client("web", tunnel.ProtocolHTTP), "http://x/")
			return strings.Contains(h.log.String(), "msg=request")
		},
	},
	{
		"listeners[].proxy_protocol", func(c *config.Agent, _ *tap) { c.Listeners[1].ProxyProtocol = "v1" },
		func(h *harness, _ *tap) bool {
			st := h.open(tunnel.Header{Endpoint: "tcp", Protocol: tunnel.ProtocolTCP, Client: "192.0.2.1:1"})
			return answer(h.T, st, "hello") == "PROXY"
		},
	},
}

// presents reports whether a node has been shown a token, at the handshake or on the open session.
func presents(token string) func(*harness, *tap) bool {
	return func(h *harness, _ *tap) bool { return slices.Contains(h.node.Tokens(), token) }
}

// tap is a way to the node that remembers what was asked. As a proxy it refuses.
type tap struct {
	*httptest.Server
	tokenFile string
	pass      *httputil.ReverseProxy

	mu   sync.Mutex
	asks []*http.Request
}

// newTap puts a tap before the node that the settings name.
func newTap(t *testing.T, c *config.Agent) *tap {
	t.Helper()
	f := &tap{tokenFile: filepath.Join(t.TempDir(), "token")}
	if err := os.WriteFile(f.tokenFile, []byte("from-file"), 0o600); err != nil {
		t.Fatal(err)
	}
	node, err := url.Parse(c.Connect.URL)
	if err != nil {
		t.Fatal(err)
	}
	f.pass = httputil.NewSingleHostReverseProxy(node)
	f.pass.Transport = &http.Transport{DisableKeepAlives: true}
	f.pass.ErrorLog = log.New(io.Discard, "", 0)
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	c.Connect.URL = f.URL
	return f
}

// ServeHTTP implements http.Handler.
func (f *tap) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.asks = append(f.asks, r.Clone(context.WithoutCancel(r.Context())))
	f.mu.Unlock()
	if r.Method == http.MethodConnect {
		http.Error(w, "not through here", http.StatusForbidden)
		return
	}
	f.pass.ServeHTTP(w, r)
}

func (f *tap) seen(match func(*http.Request) bool) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.ContainsFunc(f.asks, match)
}

func (f *tap) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.asks)
}

func TestReloadHasItsEffect(t *testing.T) {
	for _, e := range effects {
		t.Run(e.keys, func(t *testing.T) {
			web := httpService(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Host) })
			var f *tap
			h := start(t, func(c *config.Agent) { f = newTap(t, c) },
				listenerFor("http", "web", web.URL), listenerFor("tcp", "tcp", tcpService(t, louder)))
			if e.seen(h, f) {
				t.Fatal("seen before the change")
			}
			h.reload(func(c *config.Agent) { e.change(c, f) })
			eventually(t, "the effect", func() bool { return e.seen(h, f) })
		})
	}
}

func TestReloadShortensTheDrain(t *testing.T) {
	h := start(t, func(c *config.Agent) { c.DrainTimeout = config.Duration(time.Hour) }, listenerFor("tcp", "e", tcpService(t, louder)))
	st := h.open(tunnel.Header{Endpoint: "e", Protocol: tunnel.ProtocolTCP})
	if got := answer(t, st, "runs"); got != "RUNS" {
		t.Fatalf("answer is %q", got)
	}
	h.reload(func(c *config.Agent) { c.DrainTimeout = config.Duration(50 * time.Millisecond) })
	h.stop()
	select {
	case err := <-h.ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Error("the drain takes as long as the settings before said")
		_ = st.Reset()
	}
}

// TestEveryLiveKeyHasItsEffectSeen: another setting of a listener makes another listener, in the same way as the first one was
// made, which TestReloadAddsRemovesAndChangesListeners sees; so what a setting of a listener does is seen by the test of that.
func TestEveryLiveKeyHasItsEffectSeen(t *testing.T) {
	var seen []string
	for _, e := range effects {
		seen = append(seen, strings.Fields(e.keys)...)
	}
	daemontest.EveryEffect(t, config.Keys(config.DefaultAgent()), seen, map[string]string{
		"drain_timeout": "TestReloadShortensTheDrain",
		"log.":          "TestLevelAndFormatChangeLive",
		"connect.":      "TestReconfigureMovesToTheNewURLFirst", // all the rest makes new sessions with new settings
		"admin.":        "TestConsoleTakesOtherSettings",

		"listeners[].endpoint":      "TestReloadAddsRemovesAndChangesListeners",
		"listeners[].addr":          "TestReloadAddsRemovesAndChangesListeners",
		"listeners[].protocol":      "TestRawBytesNeedAListenerThatWasDeclaredForThem",
		"listeners[].max_in_flight": "TestFullHTTPListenerRefusesStreamsAndAnswersRequests",
		"listeners[].health.":       "TestReloadOfACheckedListenerWaitsForItsFirstCheck",
		"listeners[].tls.":          "TestServiceOverTLSSpeaksWhatTheStreamCarries",
	})
}

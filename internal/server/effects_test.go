package server_test

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/daemon/daemontest"
	"github.com/pikoproxy/piko/internal/tunnel"
)

// effect is a change of settings in a running node and what is different then: seen holds after the change, and does not
// hold before it.
type effect struct {
	keys   string // separated by spaces
	change func(*config.Pikod)
	seen   func(t *testing.T, n *running) bool
}

const halfHead = "GET / HTTP/1.1\r\nHost: e.piko.test\r\n"

// closedWithin reports whether a connection to the proxy is closed after these bytes while somebody waits this long.
func closedWithin(t *testing.T, n *running, text string, within time.Duration) bool {
	t.Helper()
	c, err := net.Dial("tcp", n.server.Addr("proxy").String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(within))
	_, _ = io.WriteString(c, text) // it may have been closed already
	_, err = io.Copy(io.Discard, bufio.NewReader(c))
	timeout, ok := err.(net.Error) //nolint:errorlint // of the socket itself
	return !ok || !timeout.Timeout()
}

func status(want int, headers ...string) func(*testing.T, *running) bool {
	return func(t *testing.T, n *running) bool {
		t.Helper()
		n.client.CloseIdleConnections() // some limits hold for connections to come
		return n.ask("e", headers...).status == want
	}
}

func admin(path string, want int) func(*testing.T, *running) bool {
	return func(t *testing.T, n *running) bool {
		t.Helper()
		return n.get(n.url("admin", path)).status == want
	}
}

func dials(want bool) func(*testing.T, *running) bool {
	return func(t *testing.T, n *running) bool {
		t.Helper()
		a, err := n.dial("another", "", "")
		if err == nil {
			_ = a.CloseNow(nil)
			a.Wait()
		}
		return (err == nil) == want
	}
}

// holds reports whether a request for an endpoint is held, and not answered at once.
func (n *running) holds(t *testing.T, endpoint string) bool {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	answered := make(chan struct{})
	defer func() { cancel(); <-answered }()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, n.url("proxy", "/"), http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Piko-Endpoint", endpoint)
	go func() {
		defer close(answered)
		if _, err := n.do(req); err != nil && ctx.Err() == nil {
			t.Errorf("%s: %v", req.URL, err)
		}
	}()
	for {
		select {
		case <-answered:
			return false
		default:
		}
		if strings.Contains(n.get(n.url("admin", "/metrics")).body, "\npiko_router_requests_waiting 1\n") {
			return true
		}
	}
}

var effects = []effect{
	{"proxy.domains", func(c *config.Pikod) { c.Proxy.Domains = []string{"x.example"} }, func(t *testing.T, n *running) bool {
		t.Helper()
		return strings.HasPrefix(n.say("proxy", strings.Replace(plain, "web", "e", 1)), "404")
	}},
	{"proxy.max_header_bytes", func(c *config.Pikod) { c.Proxy.MaxHeaderBytes = 1 << 10 }, status(431, "x", strings.Repeat("x", 2<<10))},
	{"proxy.max_header_fields", func(c *config.Pikod) { c.Proxy.MaxHeaderFields = 3 }, status(431, "a", "1", "b", "2", "c", "3")},
	{"proxy.read_header_timeout", func(c *config.Pikod) { c.Proxy.ReadHeaderTimeout = config.Duration(50 * time.Millisecond) },
		func(t *testing.T, n *running) bool { return closedWithin(t, n, halfHead, 300*time.Millisecond) }},
	{"proxy.idle_timeout", func(c *config.Pikod) { c.Proxy.IdleTimeout = config.Duration(50 * time.Millisecond) },
		func(t *testing.T, n *running) bool {
			return closedWithin(t, n, halfHead+"x-piko-endpoint: e\r\n\r\n", 300*time.Millisecond)
		}},
	{"proxy.allow", func(c *config.Pikod) { c.Proxy.Allow = cidrs("192.0.2.0/24") },
		func(t *testing.T, n *running) bool { return closedWithin(t, n, "", 300*time.Millisecond) }},
	{"proxy.deny", func(c *config.Pikod) { c.Proxy.Deny = cidrs("127.0.0.0/8") },
		func(t *testing.T, n *running) bool { return closedWithin(t, n, "", 300*time.Millisecond) }},
	{"proxy.limits.max_target_bytes", func(c *config.Pikod) { c.Proxy.Limits.MaxTargetBytes = 256 }, func(t *testing.T, n *running) bool {
		t.Helper()
		return strings.HasPrefix(n.say("proxy", strings.Replace(plain, "GET /", "GET /"+strings.Repeat("x", 300), 1)), "414")
	}},
	{"proxy.auth.hmac_secret_key", func(c *config.Pikod) { c.Proxy.Auth = keyed(secret) }, status(401)},
	{"proxy.access_log", func(c *config.Pikod) { c.Proxy.AccessLog = true }, func(t *testing.T, n *running) bool {
		t.Helper()
		n.log.Reset()
		n.ask("e")
		for _, e := range n.log.AllEntries() {
			if e.Message == "request" {
				return true
			}
		}
		return false
	}},
	{"proxy.endpoint_wait", func(c *config.Pikod) { c.Proxy.EndpointWait = config.Duration(2 * time.Second) },
		func(t *testing.T, n *running) bool { return n.holds(t, "nobody") }}, // the node has just started, so it may come
	{"upstream.max_sessions", func(c *config.Pikod) { c.Upstream.MaxSessions = 1 }, dials(false)},
	{"upstream.auth.hmac_secret_key", func(c *config.Pikod) { c.Upstream.Auth = keyed(secret) }, dials(false)},
	{"upstream.deny", func(c *config.Pikod) { c.Upstream.Deny = cidrs("127.0.0.0/8") }, dials(false)},
	{"upstream.allow", func(c *config.Pikod) { c.Upstream.Allow = cidrs("192.0.2.0/24") }, dials(false)},
	{"balance.policy", func(c *config.Pikod) { c.Balance.Policy = "round-robin" }, func(t *testing.T, n *running) bool {
		t.Helper()
		return strings.Contains(n.get(n.url("admin", "/status/routes/e")).body, "round-robin")
	}},
	{"admin.pprof", func(c *config.Pikod) { c.Admin.Pprof = true }, admin("/debug/pprof/", http.StatusOK)},
	{"admin.auth.hmac_secret_key", func(c *config.Pikod) { c.Admin.Auth = keyed(secret) }, admin("/metrics", http.StatusUnauthorized)},
}

// elsewhere names, for the keys that are not above, the test that sees what a change of them does in a running process, or,
// where such a test would only see time pass, the one of the part that the value is given to at each reload. The longest
// beginning counts.
var elsewhere = map[string]string{
	"drain_timeout": "TestADrainEndsAtItsDeadline", // read when the drain begins
	"drain_notice":  "TestTheNoticeChangesReadinessOnly",
	"memory_limit":  "TestWhatIsNewIsRefusedWhenMemoryIsShort", "max_tls_handshakes": "TestHandshakesOnAllListenersWaitForTheSameTurns",
	"log.": "TestLevelAndFormatChangeLive",

	"proxy.listen": "TestReloadMovesListenersAndLetsConnectionsLive", "upstream.listen": "TestReloadMovesListenersAndLetsConnectionsLive",
	"admin.listen": "TestReloadMovesListenersAndLetsConnectionsLive",
	"proxy.tls.":   "TestReloadRotatesCertificates", "upstream.tls.": "TestReloadRotatesCertificates", "admin.tls.": "TestReloadRotatesCertificates",
	"proxy.auth.": "TestReloadChangesWhoMayCome", "upstream.auth.": "TestReloadChangesWhoMayCome", "admin.auth.": "TestReloadChangesWhoMayCome",
	"upstream.tenants[]": "TestReloadChangesWhoMayCome",

	"proxy.response_header_timeout": "TestReloadOfThePatienceWithServices", "proxy.trusted_proxies": "TestReloadOfTrustedProxies",
	"proxy.underscores": "TestTwinsWithUnderscores",
	"proxy.limits.":     "TestRequestsOverALimitAreTurnedAway", "proxy.rates.": "TestRequestsOverALimitAreTurnedAway",
	"proxy.endpoints[]": "TestRequestsOverALimitAreTurnedAway", "proxy.http2.": "TestConnectionsOfHTTP2HaveAnEnd",

	"upstream.allow_unauthenticated": "TestOpenListenersAreCountedAndLogged", "upstream.limits.": "TestSessionsOverALimitAreRefused",
	"upstream.limits.max_unread_bytes":   "TestRequestsAreRefusedWhenTooMuchIsUnread",
	"upstream.max_endpoints_per_session": "TestWhyAnEndpointIsRefused", "upstream.max_streams_per_session": "TestSessionsOverALimitAreRefused",
	"upstream.rebalance.": "TestSurplus",

	"admin.allow": "TestEveryListenerIsGuarded", "admin.deny": "TestEveryListenerIsGuarded", "admin.max_connections": "TestConnectionsOverALimitAreClosed",
	"cluster.allow": "TestEveryListenerIsGuarded", "cluster.deny": "TestEveryListenerIsGuarded",
	"cluster.tls.": "TestReloadRotatesTheCertificatesOfACluster",
	"consul.token": "TestReloadHealsAConsulToken", "consul.write_budget": "TestSettingsApplyLive", "consul.tls.": "TestSettingsApplyLive",
	"balance.retry_budget": "TestTheRetryBudgetFollowsTheRequests", "balance.eject_after": "TestFaultsInARowEject",
	"acme.": "TestPrepareSaysWhatIsWrong",
}

// TestEffectsOfReload changes one setting after the other in a running node and sees what is different.
func TestEffectsOfReload(t *testing.T) {
	n := start(t, func(c *config.Pikod) { c.Proxy.AccessLog = false })
	n.agent("a", "e")
	base := n.settings
	for _, e := range effects {
		t.Run(e.keys, func(t *testing.T) {
			if e.seen(t, n) {
				t.Fatal("seen before the change")
			}
			n.mustReload(t, e.change)
			eventually(t, "the effect", func() bool { return e.seen(t, n) })
			n.mustReload(t, func(c *config.Pikod) { *c = base })
			eventually(t, "the way back", func() bool { return !e.seen(t, n) })
			if strings.HasPrefix(e.keys, "upstream.auth") { // it ends sessions without a token
				n.agent("a", "e")
			}
		})
	}
}

// TestEveryLiveKeyHasItsEffectSeen finds keys that neither list has, and tests that are not there.
func TestEveryLiveKeyHasItsEffectSeen(t *testing.T) {
	var seen []string
	for _, e := range effects {
		seen = append(seen, strings.Fields(e.keys)...)
	}
	daemontest.EveryEffect(t, config.Keys(config.DefaultPikod()), seen, elsewhere)
}

func TestReloadOfTrustedProxies(t *testing.T) {
	n := start(t, nil)
	r := n.recorder("rec", "")
	n.ask("rec", "X-Forwarded-For", "192.0.2.9").want(t, http.StatusOK, "")
	if strings.Contains(r.text(), "192.0.2.9") {
		t.Error("a stranger is believed")
	}
	n.mustReload(t, func(c *config.Pikod) { c.Proxy.TrustedProxies = cidrs("127.0.0.0/8") })
	n.ask("rec", "X-Forwarded-For", "192.0.2.9").want(t, http.StatusOK, "")
	if !strings.Contains(r.text(), "192.0.2.9") {
		t.Error("a trusted proxy is not believed")
	}
}

func TestReloadOfThePatienceWithServices(t *testing.T) {
	n := start(t, nil)
	a, err := tunnel.Dial(t.Context(), tunnel.DialOptions{URL: n.url("upstream", ""), Hello: tunnel.Hello{AgentID: "mute"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Listen(t.Context(), tunnel.Listen{Endpoint: "mute", Protocol: tunnel.ProtocolHTTP}); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			in, err := a.Accept(t.Context())
			if err != nil {
				return
			}
			if _, err := in.Accept(); err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		_ = a.CloseNow(nil)
		<-done
		a.Wait()
	})
	n.mustReload(t, func(c *config.Pikod) { c.Proxy.ResponseHeaderTimeout = config.Duration(100 * time.Millisecond) })
	n.ask("mute").want(t, http.StatusGatewayTimeout, "")
}

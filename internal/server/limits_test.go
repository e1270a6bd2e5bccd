package server_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/sirupsen/logrus"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/tunnel"
)

// rejected is piko_rejected_total for a listener and a reason.
func (n *running) rejected(listener, reason string) string {
	n.t.Helper()
	prefix := fmt.Sprintf("piko_rejected_total{listener=%q,reason=%q} ", listener, reason)
	for line := range strings.Lines(n.get(n.url("admin", "/metrics")).body) {
		if value, ok := strings.CutPrefix(line, prefix); ok {
			return strings.TrimSpace(value)
		}
	}
	return "0"
}

func (n *running) wantRejected(t *testing.T, listener, reason, want string) {
	t.Helper()
	got := ""
	defer func() {
		if got != want {
			t.Logf("%s rejected %s times for %s, want %s", listener, got, reason, want)
		}
	}()
	eventually(t, listener+" rejects for "+reason, func() bool { got = n.rejected(listener, reason); return got == want })
}

func cidrs(all ...string) (c config.CIDRs) {
	for _, s := range all {
		c = append(c, netip.MustParsePrefix(s))
	}
	return c
}

// say sends bytes to a listener and returns what it answers before it closes, or before it has been silent for a while.
func (n *running) say(listener, text string) string {
	n.t.Helper()
	c, err := net.Dial("tcp", n.server.Addr(listener).String())
	if err != nil {
		n.t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(patience))
	_, _ = io.WriteString(c, text) // it may have been closed already
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return ""
	}
	defer func() { _ = resp.Body.Close() }()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	if resp.Close {
		return resp.Status + " and close: " + string(body)
	}
	return resp.Status + ": " + string(body)
}

const plain = "GET / HTTP/1.1\r\nHost: web.piko.test\r\nConnection: close\r\n\r\n"

func TestRequestsOverALimitAreTurnedAway(t *testing.T) {
	for _, c := range []struct {
		name, reason, want string
		change             func(*config.Proxy)
		requests           []string // the last one is to be turned away, the others are not
	}{
		{"rate of a client", "address_rate", "429", func(p *config.Proxy) {
			p.Rates.RequestsPerAddress, p.Rates.RequestsPerAddressBurst = 0.001, 2
		}, []string{plain, plain, plain}},
		{"rate of a client behind a proxy", "address_rate", "429", func(p *config.Proxy) {
			p.TrustedProxies = cidrs("127.0.0.0/8")
			p.Rates.RequestsPerAddress, p.Rates.RequestsPerAddressBurst = 0.001, 1
		}, []string{
			"GET / HTTP/1.1\r\nHost: web.piko.test\r\nX-Forwarded-For: 192.0.2.1\r\nConnection: close\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: web.piko.test\r\nX-Forwarded-For: 192.0.2.2\r\nConnection: close\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: web.piko.test\r\nX-Forwarded-For: 192.0.2.1\r\nConnection: close\r\n\r\n",
		}},
		{"rate of an endpoint", "endpoint_rate", "429", func(p *config.Proxy) {
			p.Endpoints = []config.ProxyEndpoint{{Endpoint: "web", Requests: 0.001, Burst: 1}}
		}, []string{plain, plain}},
		{"network denied to an endpoint", "address_denied", "403", func(p *config.Proxy) {
			p.Endpoints = []config.ProxyEndpoint{{Endpoint: "web", Deny: cidrs("127.0.0.0/8")}}
		}, []string{plain}},
		{"network denied behind a proxy", "address_denied", "403", func(p *config.Proxy) {
			p.TrustedProxies, p.Deny = cidrs("127.0.0.0/8"), cidrs("192.0.2.0/24")
		}, []string{plain, "GET / HTTP/1.1\r\nHost: web.piko.test\r\nX-Forwarded-For: 192.0.2.1\r\nConnection: close\r\n\r\n"}},
		{"bad tokens", "auth_rate", "429", func(p *config.Proxy) {
			p.Auth = keyed(secret)
			p.Rates.FailedAuthPerAddress, p.Rates.FailedAuthPerAddressBurst = 0.001, 1
		}, []string{
			plain + "", // 401, which is no 429
			"GET / HTTP/1.1\r\nHost: web.piko.test\r\nAuthorization: Bearer x\r\nConnection: close\r\n\r\n",
		}},
		{"size of a body", "body_bytes", "413", func(p *config.Proxy) { p.Limits.MaxBodyBytes = 10 }, []string{
			"POST / HTTP/1.1\r\nHost: web.piko.test\r\nContent-Length: 10\r\nConnection: close\r\n\r\n0123456789",
			"POST / HTTP/1.1\r\nHost: web.piko.test\r\nContent-Length: 11\r\nConnection: close\r\n\r\n01234567890",
		}},
		{"size of a chunked body", "body_bytes", "413", func(p *config.Proxy) { p.Limits.MaxBodyBytes = 10 }, []string{
			"POST / HTTP/1.1\r\nHost: web.piko.test\r\nTransfer-Encoding: chunked\r\n\r\n6\r\n012345\r\n6\r\n012345\r\n0\r\n\r\n",
		}},
		{"size of a header", "header_bytes", "431", func(p *config.Proxy) { p.MaxHeaderBytes = 1024 }, []string{
			"GET / HTTP/1.1\r\nHost: web.piko.test\r\nX: " + strings.Repeat("x", 1024) + "\r\n\r\n",
		}},
		{"fields of a header", "header_fields", "431", func(p *config.Proxy) { p.MaxHeaderFields = 3 }, []string{
			"GET / HTTP/1.1\r\nHost: web.piko.test\r\n" + strings.Repeat("X: x\r\n", 4) + "\r\n",
		}},
		{"size of a target", "target_bytes", "414", func(p *config.Proxy) { p.Limits.MaxTargetBytes = 256 }, []string{
			"GET /" + strings.Repeat("x", 256) + " HTTP/1.1\r\nHost: web.piko.test\r\n\r\n",
		}},
		{"underscores", "underscores", "400", func(p *config.Proxy) { p.Underscores = "reject" }, []string{
			"GET / HTTP/1.1\r\nHost: web.piko.test\r\napi_key: x\r\nConnection: close\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: web.piko.test\r\nX_Forwarded_For: 1.2.3.4\r\nConnection: close\r\n\r\n",
		}},
		{"time for a header", "slow_header", "408", func(p *config.Proxy) {
			p.ReadHeaderTimeout = config.Duration(50 * time.Millisecond)
		}, []string{"GET / HTTP/1.1\r\nHost: web.piko.test\r\n"}},
		{"time for a body", "slow_body", "408", func(p *config.Proxy) {
			p.Limits.BodyTimeout = config.Duration(50 * time.Millisecond)
		}, []string{"POST / HTTP/1.1\r\nHost: web.piko.test\r\nContent-Length: 100000\r\n\r\n0123456789"}},
		{"time for a small body", "slow_body", "408", func(p *config.Proxy) {
			p.Limits.BodyTimeout = config.Duration(50 * time.Millisecond)
		}, []string{"POST / HTTP/1.1\r\nHost: web.piko.test\r\nContent-Length: 11\r\n\r\n0123456789"}},
		{"framing", "bad_framing", "400", nil, []string{
			"GET / HTTP/1.1\r\nHost: web.piko.test\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := start(t, nil)
			n.agent("a", "web")
			if c.change != nil { // live
				n.mustReload(t, func(p *config.Pikod) { c.change(&p.Proxy) })
			}
			for i, request := range c.requests {
				got := n.say("proxy", request)
				if last := i == len(c.requests)-1; strings.HasPrefix(got, c.want) != last {
					t.Errorf("request %d: %q, want %s only at the last", i+1, got, c.want)
				}
			}
			n.wantRejected(t, "proxy", c.reason, "1")
		})
	}
}

func TestConnectionsOverALimitAreClosed(t *testing.T) {
	for _, listener := range []string{"proxy", "upstream", "admin"} {
		t.Run(listener, func(t *testing.T) {
			n := start(t, nil)
			dial := func() net.Conn {
				c, err := net.Dial("tcp", n.server.Addr(listener).String())
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = c.Close() })
				_ = c.SetDeadline(time.Now().Add(patience))
				return c
			}
			closed := func(c net.Conn) {
				t.Helper()
				if _, err := c.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
					t.Errorf("one too many lives on: %v", err)
				}
			}
			n.mustReload(t, func(p *config.Pikod) {
				p.Proxy.Limits.MaxConnections, p.Upstream.Limits.MaxConnections = 2, 2
				p.Admin.MaxConnections = 3 // one is that of the client of the metrics
			})
			n.get(n.url("admin", "/health"))
			first := dial()
			dial()
			closed(dial())
			_ = first.Close()
			if listener == "admin" {
				n.mustReload(t, func(p *config.Pikod) { p.Admin.MaxConnections = 0 })
			}
			n.wantRejected(t, listener, "connections", "1")
			n.mustReload(t, func(p *config.Pikod) {
				p.Proxy.Deny, p.Upstream.Deny, p.Admin.Deny = cidrs("127.0.0.0/8"), cidrs("127.0.0.0/8"), cidrs("127.0.0.0/8")
			})
			closed(dial())
			n.wantRejected(t, listener, "address_denied", "1") // by a connection that was there before
		})
	}
}

// What is ambiguous is refused everywhere, and the way of agents to a WebSocket stays open.
func TestEveryListenerIsGuarded(t *testing.T) {
	n := start(t, nil)
	for _, listener := range []string{"upstream", "admin"} {
		for _, bad := range []string{
			"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
			"GET /health HTTP/1.1\nHost: localhost\n\n",
			"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
			"GET /health HTTP/1.1\r\nHost : localhost\r\n\r\n",
		} {
			if got := n.say(listener, bad); !strings.HasPrefix(got, "400 ") || !strings.Contains(got, "and close") {
				t.Errorf("%s answers %q to %q", listener, got, bad)
			}
		}
		n.wantRejected(t, listener, "bad_framing", "2")
		n.wantRejected(t, listener, "bad_request", "2")
	}
	n.agent("a", "web")
	n.ask("web").want(t, http.StatusOK, "a")
	// An upgrade that is refused leaves the connection as it was.
	got := n.say("admin", "GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"+
		"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n")
	if !strings.HasPrefix(got, "200") {
		t.Errorf("a request with Upgrade: %q", got)
	}
}

func signed(t *testing.T, key, subject string) string {
	t.Helper()
	text, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{"sub": subject, "exp": inAnHour().Unix()}).
		SignedString([]byte(key))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestSessionsOverALimitAreRefused(t *testing.T) {
	n := start(t, func(c *config.Pikod) {
		c.Upstream.Auth = keyed(secret)
		for _, id := range []string{"t", "u"} {
			tenant := config.DefaultTenant()
			tenant.ID, tenant.Auth = id, keyed(secret+id)
			c.Upstream.Tenants = append(c.Upstream.Tenants, tenant)
		}
		c.Upstream.Limits.MaxSessionsPerTenant = 2
		c.Upstream.Limits.MaxSessionsPerSubject = 1
		c.Upstream.Limits.MaxEndpointsPerTenant = 2
		c.Upstream.Limits.MaxSessionsPerEndpoint = 1
		c.Upstream.Limits.FailedAuthPerAddress, c.Upstream.Limits.FailedAuthPerAddressBurst = 0.001, 1
	})
	dial := func(subject, tenant, want string) *agent {
		t.Helper()
		a, err := n.dial("a", signed(t, secret+tenant, subject), tenant)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Fatalf("session of %s of tenant %q: %v, want %q", subject, tenant, err, want)
		}
		return a
	}
	offer := func(a *agent, name string, ok bool) {
		t.Helper()
		if err := a.tryListen(tunnel.Listen{Endpoint: name, Protocol: tunnel.ProtocolHTTP}); (err == nil) != ok {
			t.Errorf("offer of %s: %v", name, err)
		}
	}
	first := dial("s1", "t", "")
	dial("s1", "t", "429")
	n.wantRejected(t, "upstream", "subject_sessions", "1")
	second := dial("s2", "t", "")
	dial("s3", "t", "429")
	n.wantRejected(t, "upstream", "tenant_sessions", "1")
	if !slices.ContainsFunc(n.log.AllEntries(), func(e *logrus.Entry) bool {
		return e.Message == "agent refused" && e.Data["setting"] == "upstream.limits.max_sessions_per_tenant"
	}) {
		t.Error("the log does not say which setting to raise")
	}
	other := dial("s1", "u", "") // another tenant's s1
	own := dial("s1", "", "")

	offer(first, "e1", true)
	offer(first, "e1", true) // again is not once more
	offer(second, "e1", false)
	n.wantRejected(t, "upstream", "endpoint_sessions", "1")
	offer(second, "e2", true)
	offer(second, "e3", false)
	n.wantRejected(t, "upstream", "tenant_endpoints", "1")
	offer(other, "e1", true)
	offer(own, "e1", true)

	// What ends makes room.
	_ = first.Shutdown(t.Context())
	eventually(t, "room for another session", func() bool {
		a, err := n.dial("a", signed(t, secret+"t", "s1"), "t")
		if err == nil {
			offer(a, "e1", true)
		}
		return err == nil
	})

	bad := func(want string) {
		t.Helper()
		if _, err := n.dial("a", signed(t, "wrong", "s"), ""); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("bad token: %v, want %s", err, want)
		}
	}
	bad("401")
	bad("429")
	n.wantRejected(t, "upstream", "auth_rate", "1")
	dial("s9", "", "") // a good one is taken all the same
}

// What a session asks for while it breaks is asked by nobody: it takes no room.
func TestASessionThatBreaksWhileItOffersLeavesNothingBehind(t *testing.T) {
	const most = 3
	n := start(t, func(c *config.Pikod) { c.Upstream.Limits.MaxSessionsPerEndpoint = most })
	names := make([]string, 64)
	for i := range names {
		names[i] = fmt.Sprint("e", i)
	}
	for range 10 * most {
		a, err := n.dial("a", "", "")
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			_ = a.Send("listen", tunnel.Listen{Endpoint: name, Protocol: tunnel.ProtocolHTTP})
		}
		_ = a.CloseNow(nil)
	}
	n.wantSessions(0)
	last, err := n.dial("a", "", "")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		eventually(t, "room for one more session that offers "+name, func() bool {
			return last.tryListen(tunnel.Listen{Endpoint: name, Protocol: tunnel.ProtocolHTTP}) == nil
		})
	}
}

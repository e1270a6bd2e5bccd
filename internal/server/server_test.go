package server_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus/hooks/test"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/server"
	"github.com/pikoproxy/piko/internal/tunnel"
	"github.com/pikoproxy/piko/internal/websocket"
)

func TestANativeAgentIsRoutableOnceItsListenReturns(t *testing.T) {
	n := start(t, nil)
	n.ask("web").want(t, http.StatusBadGateway, "no available upstreams")
	a := n.agent("a1", "web", "Other.Name")
	n.ask("web").want(t, http.StatusOK, "a1")
	n.ask("other.name").want(t, http.StatusOK, "a1")
	n.ask("OTHER.name").want(t, http.StatusOK, "a1")
	if err := a.Unlisten("web"); err != nil {
		t.Fatal(err)
	}
	n.wantEndpoints(map[string]int{"other.name": 1})
	n.ask("web").want(t, http.StatusBadGateway, "no available upstreams")
	a.listen("web")
	n.ask("web").want(t, http.StatusOK, "a1")
	_ = a.CloseNow(errors.New("gone"))
	n.wantEndpoints(map[string]int{})
	eventually(t, "no sessions", func() bool {
		var s []any
		n.status("/status/sessions", &s)
		return len(s) == 0
	})
}

func TestAClassicAgentIsServed(t *testing.T) {
	n := start(t, nil)
	n.classic("Web", "old")
	n.wantEndpoints(map[string]int{"web": 1})
	n.ask("web").want(t, http.StatusOK, "old")
	n.agent("new", "web")
	n.wantEndpoints(map[string]int{"web": 2})
	got := map[string]int{}
	for range 50 {
		got[n.ask("web").body]++
	}
	if got["old"] == 0 || got["new"] == 0 || len(got) != 2 {
		t.Errorf("answers = %v, want both agents", got)
	}
}

func TestAnAgentThatLeavesGetsNothingNew(t *testing.T) {
	n := start(t, nil)
	leaving := n.agent("leaving", "web")
	old := n.classic("web", "old")
	n.agent("staying", "web")
	n.wantEndpoints(map[string]int{"web": 3})
	if err := leaving.SendDrain("restart", time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if err := old.GoAway(); err != nil {
		t.Fatal(err)
	}
	n.wantEndpoints(map[string]int{"web": 1})
	for range 20 {
		n.ask("web").want(t, http.StatusOK, "staying")
	}
}

func TestWhoGetsNoSession(t *testing.T) {
	const path = tunnel.PathTunnel
	auth := func(c *config.Pikod) { c.Upstream.Auth = keyed(secret) }
	tenants := func(c *config.Pikod) {
		auth(c)
		c.Upstream.Tenants = []config.Tenant{{ID: "t1", Auth: keyed(strings.Repeat("t", 32))}}
	}
	bearer := func(token string) []string { return []string{"Authorization", "Bearer " + token} }
	good := token(t, secret, inAnHour())
	for name, tc := range map[string]struct {
		change  func(*config.Pikod)
		path    string
		headers []string
		status  int
		error   string
	}{
		"no path of ours":    {nil, "/", nil, 404, ""},
		"no endpoint":        {nil, tunnel.PathClassic + "/", nil, 404, ""},
		"bad endpoint":       {nil, tunnel.PathClassic + "/a%20b", nil, 400, `"error":"invalid endpoint id"`},
		"no WebSocket":       {nil, path, nil, 426, `"error"`},
		"no token":           {auth, path, nil, 401, `"error":"missing authorization"`},
		"not a bearer":       {auth, path, []string{"Authorization", "Basic eA=="}, 401, `"error":"unsupported auth type"`},
		"bad token":          {auth, path, bearer("x.y.z"), 401, `"error":"invalid token"`},
		"other key":          {auth, path, bearer(token(t, strings.Repeat("o", 32), inAnHour())), 401, `"error":"invalid token"`},
		"expired":            {auth, path, bearer(token(t, secret, time.Now().Add(-time.Minute))), 401, `"error":"expired token"`},
		"unknown tenant":     {tenants, path, append(bearer(good), "x-piko-tenant-id", "t2"), 401, `"error":"unknown tenant"`},
		"token of no tenant": {tenants, path, append(bearer(good), "x-piko-tenant-id", "t1"), 401, `"error":"invalid token"`},
		"other endpoint": {
			auth, tunnel.PathClassic + "/web", bearer(token(t, secret, inAnHour(), "other")), 401, `"error":"endpoint not permitted"`,
		},
		"good, no WebSocket": {auth, path, bearer(good), 426, `"error"`},
	} {
		t.Run(name, func(t *testing.T) {
			n := start(t, tc.change)
			a := n.get(n.url("upstream", tc.path), tc.headers...)
			a.want(t, tc.status, tc.error)
			if got := a.header.Get("X-Piko-Node"); got != "n1" {
				t.Errorf("X-Piko-Node = %q, want n1", got)
			}
			for _, e := range n.log.AllEntries() {
				if line, err := e.String(); err != nil || strings.Contains(line, good) {
					t.Errorf("the log shows a token, or nothing (%v): %s", err, line)
				}
			}
		})
	}
}

func TestTheNumberOfSessionsIsLimited(t *testing.T) {
	n := start(t, func(c *config.Pikod) { c.Upstream.MaxSessions = 2 })
	for range 5 { // handshakes that fail give their room back
		n.get(n.url("upstream", tunnel.PathTunnel))
		n.get(n.url("upstream", tunnel.PathClassic+"/web"))
		n.get(n.url("upstream", tunnel.PathClassic+"/a%20b"))
	}
	first := n.agent("a1", "web")
	n.classic("web", "old")
	_, err := n.dial("a2", "", "")
	var status *websocket.StatusError
	if !errors.As(err, &status) || status.Status != http.StatusServiceUnavailable || status.Header.Get("Retry-After") == "" {
		t.Fatalf("the third session: %v, want 503 with Retry-After", err)
	}
	_ = first.CloseNow(errors.New("gone"))
	eventually(t, "room for another session", func() bool {
		_, err := n.dial("a3", "", "")
		return err == nil
	})
}

func TestWhyAnEndpointIsRefused(t *testing.T) {
	n := start(t, func(c *config.Pikod) {
		c.Upstream.Auth = keyed(secret)
		c.Upstream.MaxEndpointsPerSession = 2
	})
	a, err := n.dial("a1", token(t, secret, inAnHour(), "web", "b", "c", "team-*"), "")
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		listen tunnel.Listen
		code   string
	}{
		"no name":   {tunnel.Listen{Endpoint: "a b"}, tunnel.CodeInvalid},
		"long name": {tunnel.Listen{Endpoint: strings.Repeat("a", 64)}, tunnel.CodeInvalid},
		"tenant":    {tunnel.Listen{Endpoint: "t1/web"}, tunnel.CodeInvalid},
		"protocol":  {tunnel.Listen{Endpoint: "web", Protocol: "udp"}, tunnel.CodeInvalid},
		"permit":    {tunnel.Listen{Endpoint: "other"}, tunnel.CodeNotPermitted},
	} {
		var refused *tunnel.RefusedError
		if err := a.tryListen(tc.listen); !errors.As(err, &refused) || refused.Code != tc.code {
			t.Errorf("%s: %v, want %s", name, err, tc.code)
		}
	}
	a.listen("web")
	a.listen("team-a")
	var refused *tunnel.RefusedError
	if err := a.tryListen(tunnel.Listen{Endpoint: "b"}); !errors.As(err, &refused) || refused.Code != tunnel.CodeOverloaded {
		t.Errorf("the third endpoint: %v, want %s", err, tunnel.CodeOverloaded)
	}
	a.listen("web") // again is no other endpoint
	if err := a.Unlisten("team-a"); err != nil {
		t.Fatal(err)
	}
	a.listen("b")
	n.ask("web").want(t, http.StatusOK, "a1")
}

func TestTenantsDoNotMeet(t *testing.T) {
	keys := map[string]string{"": secret, "t1": strings.Repeat("1", 32), "t2": strings.Repeat("2", 32)}
	n := start(t, func(c *config.Pikod) {
		c.Upstream.Auth = keyed(secret)
		c.Upstream.Tenants = []config.Tenant{{ID: "t1", Auth: keyed(keys["t1"])}, {ID: "t2", Auth: keyed(keys["t2"])}}
	})
	for tenant, key := range keys {
		a, err := n.dial("agent of "+tenant, token(t, key, inAnHour()), tenant)
		if err != nil {
			t.Fatal(err)
		}
		a.listen("web")
	}
	n.wantEndpoints(map[string]int{"web": 1, "t1/web": 1, "t2/web": 1})
	for range 5 {
		n.ask("web").want(t, http.StatusOK, "agent of ")
		for _, tenant := range []string{"t1", "t2"} {
			a := n.ask("web", "x-piko-tenant-id", tenant, "Authorization", "Bearer "+token(t, keys[tenant], inAnHour()))
			a.want(t, http.StatusOK, "agent of "+tenant)
		}
	}
	if a := n.ask("web"); a.body != "agent of " {
		t.Errorf("without a tenant %q answers", a.body)
	}
	n.ask("t1/web").want(t, http.StatusBadRequest, "invalid endpoint id")
	n.ask("web", "x-piko-tenant-id", "t1").want(t, http.StatusUnauthorized, "missing authorization")
	wrong := token(t, keys["t2"], inAnHour())
	n.ask("web", "x-piko-tenant-id", "t1", "Authorization", "Bearer "+wrong).want(t, http.StatusUnauthorized, "invalid token")
}

func TestARenewedTokenDecidesWhatStays(t *testing.T) {
	n := start(t, func(c *config.Pikod) { c.Upstream.Auth = keyed(secret) })
	a, err := n.dial("a1", token(t, secret, inAnHour(), "web", "api"), "")
	if err != nil {
		t.Fatal(err)
	}
	a.listen("web")
	a.listen("api")
	if err := a.SendToken("x.y.z"); err != nil { // changes nothing
		t.Fatal(err)
	}
	eventually(t, "the bad token was looked at", func() bool {
		for _, e := range n.log.AllEntries() {
			if e.Message == "token not renewed" {
				return true
			}
		}
		return false
	})
	n.wantEndpoints(map[string]int{"web": 1, "api": 1})
	if err := a.SendToken(token(t, secret, inAnHour(), "api", "new")); err != nil {
		t.Fatal(err)
	}
	n.wantEndpoints(map[string]int{"api": 1})
	a.listen("new")
	eventually(t, "the agent hears of it", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.refused["web"] == tunnel.CodeNotPermitted
	})
}

func TestASessionEndsWithItsToken(t *testing.T) {
	t.Parallel()
	for name, ends := range map[string]bool{"where asked": true, "and nowhere else": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testExpiry(t, ends)
		})
	}
}

func testExpiry(t *testing.T, ends bool) {
	t.Helper()
	n := start(t, func(c *config.Pikod) {
		c.Upstream.Auth = keyed(secret)
		c.Upstream.Auth.DisconnectOnExpiry = ends
	})
	// Clocks may differ by ten seconds: the token is good for that long after its end. An agent can come and listen before.
	a, err := n.dial("a1", token(t, secret, time.Now().Add(10*time.Second)), "")
	if err != nil {
		t.Fatal(err)
	}
	a.listen("web")
	if ends {
		await(t, "the session ends", a.Done())
		n.wantEndpoints(map[string]int{})
	} else {
		n.ask("web").want(t, http.StatusOK, "a1")
	}
}

func TestSettingsThatCanNotBeServed(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*config.Pikod)
		want   string
	}{
		"consul":         {func(c *config.Pikod) { c.Consul.Address = config.List{"ftp://127.0.0.1:8500"} }, "127.0.0.1:8500"},
		"agents' key":    {func(c *config.Pikod) { c.Upstream.Auth.RSAPublicKey = "no key" }, "upstream.auth"},
		"clients' key":   {func(c *config.Pikod) { c.Proxy.Auth.RSAPublicKey = "no key" }, "proxy.auth"},
		"operators' key": {func(c *config.Pikod) { c.Admin.Auth.RSAPublicKey = "no key" }, "admin.auth"},
		"tenant's key": {func(c *config.Pikod) {
			c.Upstream.Tenants = []config.Tenant{{ID: "t1", Auth: config.Auth{RSAPublicKey: "no key"}}}
		}, "upstream.tenants[0].auth.rsa_public_key: want an RSA public key"},
		"certificate": {func(c *config.Pikod) { c.Upstream.TLS.Cert, c.Upstream.TLS.Key = "/nowhere", "/nowhere" }, "upstream.tls"},
	} {
		t.Run(name, func(t *testing.T) {
			c := config.DefaultPikod()
			tc.change(&c)
			log, _ := test.NewNullLogger()
			if _, err := server.New(c, server.Options{Log: log}); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error = %v, want %q in it", err, tc.want)
			}
		})
	}
}

func TestListenOpensAllOrNothing(t *testing.T) {
	taken := start(t, nil)
	c := config.DefaultPikod()
	c.Proxy.Listen, c.Upstream.Listen = "127.0.0.1:0", "127.0.0.1:0"
	c.Admin.Listen = config.Address(taken.server.Addr("admin").String())
	log, _ := test.NewNullLogger()
	s, err := server.New(c, server.Options{Log: log})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(context.WithoutCancel(t.Context())); err == nil || !strings.Contains(err.Error(), "admin listener") {
		t.Errorf("run = %v, want the admin listener blamed", err)
	}
	if s.Addr("proxy") != nil {
		t.Error("the proxy listener stayed open")
	}
}

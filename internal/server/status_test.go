package server_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/pikoproxy/piko/internal/config"
)

func TestStatusPages(t *testing.T) {
	n := start(t, nil)
	n.agent("a1", "web", "api")
	n.classic("old", "old agent")
	n.wantEndpoints(map[string]int{"web": 1, "api": 1, "old": 1})
	for path, want := range map[string]string{
		"/status/upstream/endpoints":  `{"api":1,"old":1,"web":1}`,
		"/status/cluster/nodes":       `[{"id":"n1","status":"up","proxy_addr":"PROXY","admin_addr":"ADMIN","endpoints":3,"upstreams":3}]`,
		"/status/cluster/nodes/local": `"endpoints":{"api":1,"old":1,"web":1},"upstreams":3}`,
		"/status/cluster/nodes/n1":    `{"id":"n1","status":"up",`,
		"/status/sessions":            `"kind":"native","agent":"a1"`,
		"/status/routes/web":          `"verdict":"one of 1 healthy upstreams takes the request"`,
		"/status/routes/WEB":          `{"endpoint":"web"`,
		"/status/routes/t1/web":       `"verdict":"nobody offers this endpoint here"`,
		"/status":                     `{"node":"n1","version":"test","status":"up"`,
		"/metrics":                    `piko_server_sessions{kind="classic"} 1`,
	} {
		want = strings.NewReplacer("PROXY", n.server.Addr("proxy").String(), "ADMIN", n.server.Addr("admin").String()).Replace(want)
		n.get(n.url("admin", path)).want(t, http.StatusOK, want)
	}
	for _, path := range []string{"/status/cluster/nodes/other", "/status/routes/a%20b", "/debug/pprof/"} {
		n.get(n.url("admin", path)).want(t, http.StatusNotFound, "")
	}
}

func TestMetricsAreOfTheRightParts(t *testing.T) {
	n := start(t, nil)
	n.agent("a1", "web")
	n.ask("web").want(t, http.StatusOK, "a1")
	n.get(n.url("upstream", "/piko/v1/upstream/a%20b"))
	body := n.get(n.url("admin", "/metrics")).body
	for _, want := range []string{
		`piko_server_sessions{kind="native"} 1`, `piko_server_sessions_opened_total{kind="native"} 1`,
		`piko_server_refused_agents_total{code="PIKO-E1002"} 1`, `piko_server_ready 1`, `piko_build_info{version="test"} 1`,
		`piko_router_endpoints 1`, `piko_router_streams_total{source="session"} 1`, "piko_proxy_", "go_goroutines", "process_open_fds",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
}

func TestOperatorsNeedATokenWhereAsked(t *testing.T) {
	n := start(t, func(c *config.Pikod) { c.Admin.Auth = keyed(secret) })
	n.get(n.url("admin", "/health")).want(t, http.StatusOK, "ok")
	n.get(n.url("admin", "/ready")).want(t, http.StatusOK, "ready")
	for _, path := range []string{"/metrics", "/status", "/status/sessions"} {
		a := n.get(n.url("admin", path))
		a.want(t, http.StatusUnauthorized, "missing authorization")
		if a.header.Get("WWW-Authenticate") == "" {
			t.Errorf("%s: no challenge", path)
		}
		n.get(n.url("admin", path), "Authorization", "Bearer "+token(t, secret, inAnHour())).want(t, http.StatusOK, "")
	}
}

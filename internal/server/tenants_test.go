package server_test

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/pikotest/consultest"
	"github.com/pikoproxy/piko/internal/tunnel"
	"github.com/pikoproxy/piko/internal/websocket"
)

// tenancy is a node with two tenants and endpoints that belong to neither. All offer an endpoint "web"; "only-x" is offered
// by one of them alone.
type tenancy struct {
	*running
	keys map[string]string // by tenant; "" for the node's own
}

func startTenancy(t *testing.T, clientsNeedTokens bool) *tenancy {
	t.Helper()
	x := newTenancy()
	x.running = start(t, x.settings(clientsNeedTokens))
	x.offer(t, x.running)
	return x
}

// startTenancyAcross has all agents at another node of a cluster than the one that clients come to.
func startTenancyAcross(t *testing.T, clientsNeedTokens bool) *tenancy {
	t.Helper()
	x, c := newTenancy(), consultest.Start(t, consultest.Options{})
	settings := x.settings(clientsNeedTokens)
	x.running = member(t, c, "front", settings)
	x.offer(t, member(t, c, "back", settings))
	for _, id := range []string{"a", "b"} {
		fields := []string{"Host", "web." + id + ".test", "Authorization", "Bearer " + token(t, x.keys[id], inAnHour())}
		eventually(t, "the endpoints of "+id+" at the other node", func() bool { return x.askAs(t, fields).status == http.StatusOK })
	}
	return x
}

func newTenancy() *tenancy {
	return &tenancy{keys: map[string]string{
		"": strings.Repeat("n", 32), "a": strings.Repeat("a", 32), "b": strings.Repeat("b", 32),
	}}
}

func (x *tenancy) settings(clientsNeedTokens bool) func(*config.Pikod) {
	return func(c *config.Pikod) {
		c.Proxy.Rates.FailedAuthPerAddress = 0 // many attempts are what this is about
		c.Proxy.EndpointWait = 0
		c.Upstream.Auth, c.Admin.Auth = keyed(x.keys[""]), keyed(strings.Repeat("o", 32))
		if clientsNeedTokens {
			c.Proxy.Auth = keyed(x.keys[""])
		}
		for _, id := range []string{"a", "b"} {
			tenant := config.DefaultTenant()
			tenant.ID, tenant.Auth, tenant.Domains = id, keyed(x.keys[id]), []string{id + ".test"}
			c.Upstream.Tenants = append(c.Upstream.Tenants, tenant)
		}
	}
}

// offer connects the agents to a node.
func (x *tenancy) offer(t *testing.T, n *running) {
	t.Helper()
	for _, id := range []string{"", "a", "b"} {
		agent, err := n.dial("service of <"+id+">", token(t, x.keys[id], inAnHour()), id)
		if err != nil {
			t.Fatal(err)
		}
		agent.listen("web")
		agent.listen("only-" + id + "x")
		if err := agent.tryListen(tunnel.Listen{Endpoint: "tcp-" + id + "x", Protocol: tunnel.ProtocolTCP}); err != nil {
			t.Fatal(err)
		}
	}
}

// The ways in which tenant a tries to get at what is b's. Each is combined with each endpoint and each token.
func (x *tenancy) attempts(t *testing.T, hosts ...string) map[string][]string {
	own, nodes := "Bearer "+token(t, x.keys["a"], inAnHour()), "Bearer "+token(t, x.keys[""], inAnHour())
	ways := map[string][]string{}
	for how, fields := range map[string][]string{
		"no token":                 {},
		"own token":                {"Authorization", own},
		"own token, other field":   {"X-Piko-Authorization", own},
		"own token as b":           {"Authorization", own, "X-Piko-Tenant-Id", "b"},
		"own token as B":           {"Authorization", own, "X-Piko-Tenant-Id", "B"},
		"own token as a, b":        {"Authorization", own, "X-Piko-Tenant-Id", "a, b"},
		"own token as a":           {"Authorization", own, "X-Piko-Tenant-Id", "a"},
		"own token as a/../b":      {"Authorization", own, "X-Piko-Tenant-Id", "a/../b"},
		"node's token":             {"Authorization", nodes},
		"node's token as b":        {"Authorization", nodes, "X-Piko-Tenant-Id", "b"},
		"own token under b's name": {"Authorization", own, "X_Piko_Tenant_Id", "b", "X-Forwarded-Host", "web.b.test"},
	} {
		for _, host := range hosts {
			ways[how+" at "+host] = append([]string{"Host", host}, fields...)
		}
	}
	return ways
}

// Whatever a does, no byte of b's service reaches it, and it can't tell an endpoint of b's from one that is not there: not
// through the node that has b's agents, nor through another.
func TestTenantsDoNotReachEachOther(t *testing.T) {
	tried := 0
	for where, begin := range map[string]func(*testing.T, bool) *tenancy{"one node": startTenancy, "another node": startTenancyAcross} {
		for _, tokens := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, tokens %v", where, tokens), func(t *testing.T) {
				x := begin(t, tokens)
				hosts := []string{"web.a.test", "web.test", "127.0.0.1"}
				if tokens {
					hosts = append(hosts, "b.test", "web.b.test") // else whoever comes there is meant to reach b
				}
				for how, fields := range x.attempts(t, hosts...) {
					for _, name := range []string{"web", "only-bx", "b/only-bx", "b%2fonly-bx", "only-bx.b.test", "ONLY-BX"} {
						tried++
						x.tryToReach(t, how, name, fields)
					}
					for _, name := range []string{"tcp-bx", "b%2ftcp-bx", "TCP-BX"} {
						tried++
						if got := x.tcp(t, name, fields); strings.Contains(got, "service of <b>") {
							t.Errorf("%s, endpoint %q by TCP: reached b: %s", how, name, got)
						}
					}
				}
			})
		}
	}
	if tried < 100 {
		t.Errorf("only %d attempts", tried)
	}
	t.Logf("%d attempts", tried)
}

func (x *tenancy) tryToReach(t *testing.T, how, name string, fields []string) {
	t.Helper()
	fields = append([]string{"X-Piko-Endpoint", name}, fields...)
	got := x.askAs(t, fields)
	if strings.Contains(got.body, "service of <b>") {
		t.Errorf("%s, endpoint %q: reached b: %d %s", how, name, got.status, got.body)
	}
	if !strings.Contains(strings.ToLower(name), "only-bx") {
		return
	}
	fields[1] = strings.NewReplacer("only-bx", "only-zx", "ONLY-BX", "ONLY-ZX").Replace(name)
	if other := x.askAs(t, fields); other.status != got.status || other.body != got.body {
		t.Errorf("%s: %q answers %d %s, and %q, which nobody has, %d %s",
			how, name, got.status, got.body, fields[1], other.status, other.body)
	}
}

// tcp opens a TCP connection to an endpoint, asks its service who it is, and returns what it says; nothing if it is refused.
func (x *tenancy) tcp(t *testing.T, name string, fields []string) string {
	t.Helper()
	header := http.Header{}
	for i := 0; i < len(fields); i += 2 {
		header.Add(fields[i], fields[i+1])
	}
	conn, _, err := websocket.Dial(t.Context(), x.url("proxy", "/_piko/v1/tcp/"+name), websocket.DialOptions{Header: header})
	if err != nil {
		return ""
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	answer := make([]byte, 256)
	n, _ := conn.Read(answer)
	return string(answer[:n])
}

func (x *tenancy) askAs(t *testing.T, fields []string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, x.url("proxy", "/"), http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(fields); i += 2 {
		if fields[i] == "Host" {
			req.Host = fields[i+1]
		} else {
			req.Header[fields[i]] = append(req.Header[fields[i]], fields[i+1])
		}
	}
	return x.send(req)
}

func TestTenantsReachTheirOwn(t *testing.T) {
	for _, tokens := range []bool{true, false} {
		x := startTenancy(t, tokens)
		for _, id := range []string{"a", "b"} {
			bearer := "Bearer " + token(t, x.keys[id], inAnHour())
			for how, fields := range map[string][]string{
				"by domain and token":         {"Host", "web." + id + ".test", "Authorization", bearer},
				"by domain, tenant and token": {"Host", "web." + strings.ToUpper(id) + ".test:8000", "Authorization", bearer, "X-Piko-Tenant-Id", id},
				"by tenant and token":         {"Host", "web.test", "Authorization", bearer, "X-Piko-Tenant-Id", id},
				"by name under the domain":    {"Host", "x." + id + ".test", "X-Piko-Endpoint", "web", "Authorization", bearer},
			} {
				if got := x.askAs(t, fields); got.status != http.StatusOK || got.body != "service of <"+id+">" {
					t.Errorf("tokens %v, %s of %s: %d %s", tokens, how, id, got.status, got.body)
				}
			}
			fields := []string{"Host", "web." + id + ".test", "Authorization", bearer}
			if got := x.tcp(t, "tcp-"+id+"x", fields); !strings.Contains(got, "service of <"+id+">") {
				t.Errorf("tokens %v, %s by TCP: %q", tokens, id, got)
			}
			anonymous := x.askAs(t, []string{"Host", "web." + id + ".test"})
			if want := map[bool]int{true: 401, false: 200}[tokens]; anonymous.status != want {
				t.Errorf("tokens %v, nobody at %s's domain: %d, want %d", tokens, id, anonymous.status, want)
			}
		}
	}
}

// What a offers under b's name, or as if it were b's, never becomes b's.
func TestTenantsDoNotTakeEachOthersEndpoints(t *testing.T) {
	x := startTenancy(t, true)
	own := token(t, x.keys["a"], inAnHour())
	for _, tenant := range []string{"b", "B", "b ", "a/../b", "a,b", "b/"} {
		if a, err := x.dial("thief", own, tenant); err == nil {
			t.Errorf("an agent with a's token is let in as tenant %q: %v", tenant, a.NodeID())
		}
		if _, err := x.dial("thief", token(t, x.keys[""], inAnHour()), tenant); err == nil {
			t.Errorf("an agent with the node's token is let in as tenant %q", tenant)
		}
		header := http.Header{"Authorization": {"Bearer " + own}, "X-Piko-Tenant-Id": {tenant}}
		if _, _, err := websocket.Dial(t.Context(), x.url("upstream", tunnel.PathClassic+"/web"), websocket.DialOptions{Header: header}); err == nil {
			t.Errorf("a classic agent with a's token is let in as tenant %q", tenant)
		}
	}
	thief, err := x.dial("thief", own, "a")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"only-bx", "b/web", "b/only-bx", "../b/web", "b%2Fweb", "web\x00", "b.test"} {
		_ = thief.tryListen(tunnel.Listen{Endpoint: name, Protocol: tunnel.ProtocolHTTP}) // some are names like any other
	}
	if err := thief.SendToken(token(t, x.keys["b"], inAnHour())); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		for _, name := range []string{"web", "only-bx"} {
			fields := []string{"Host", name + ".b.test", "Authorization", "Bearer " + token(t, x.keys["b"], inAnHour())}
			if got := x.askAs(t, fields); got.body != "service of <b>" {
				t.Fatalf("request %d of b's client to %s: %d %s", i, name, got.status, got.body)
			}
		}
	}
}

// Lists are for operators: no token of a tenant opens them, and no listener for tenants has them.
func TestTenantsSeeNoLists(t *testing.T) {
	x := startTenancy(t, true)
	for _, path := range []string{
		"/status", "/status/upstream/endpoints", "/status/sessions", "/status/routes/web", "/status/cluster/nodes", "/metrics",
	} {
		for id, key := range maps.All(x.keys) {
			bearer := []string{"Authorization", "Bearer " + token(t, key, inAnHour()), "X-Piko-Tenant-Id", id}
			if got := x.get(x.url("admin", path), bearer...); got.status != http.StatusUnauthorized {
				t.Errorf("%s opens to tenant %q: %d", path, id, got.status)
			}
			for _, listener := range []string{"proxy", "upstream"} {
				if got := x.get(x.url(listener, path), bearer...); strings.Contains(got.body, "only-") || got.status == http.StatusOK {
					t.Errorf("%s on the %s listener answers tenant %q: %d %s", path, listener, id, got.status, got.body)
				}
			}
		}
	}
	if got := x.get(x.url("admin", "/status/sessions"), "Authorization", fmt.Sprint("Bearer ", token(t, strings.Repeat("o", 32), inAnHour()))); got.status != http.StatusOK {
		t.Errorf("an operator gets %d", got.status)
	}
}

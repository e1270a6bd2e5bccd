package server_test

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/router"
	"github.com/pikoproxy/piko/internal/tunnel"
)

// The faults of others in asking who comes: on the admin listener, and of agents.

// barred is a node whose admin listener asks for tokens.
func barred(t *testing.T) *running {
	t.Helper()
	return start(t, func(c *config.Pikod) { c.Admin.Auth = keyed(secret) })
}

// lockedOut wants a request to the admin listener to be refused whatever it adds.
func (n *running) lockedOut(t *testing.T, path string, fields ...string) {
	t.Helper()
	if got := n.get(n.url("admin", path), fields...); got.status != http.StatusUnauthorized && got.status != http.StatusNotFound {
		t.Errorf("%s with %q opens: %d", path, fields, got.status)
	}
}

func TestCVE_2026_34457_HealthCheckersAreNotLetIn(t *testing.T) {
	n := barred(t)
	for _, agent := range []string{"GoogleHC/1.0", "kube-probe/1.30", "ELB-HealthChecker/2.0", "Prometheus/3.0"} {
		n.lockedOut(t, "/status", "User-Agent", agent)
		n.lockedOut(t, "/metrics", "User-Agent", agent)
	}
}

func TestCVE_2025_54576_QueryDoesNotOpenAPath(t *testing.T) {
	n := barred(t)
	for _, path := range []string{"/status?x=/health", "/status?/ready", "/metrics?path=/health", "/status;/health", "/health/../status"} {
		n.lockedOut(t, path)
	}
}

func TestCVE_2026_41059_FragmentDoesNotOpenAPath(t *testing.T) {
	n := barred(t)
	for _, path := range []string{"/status%23/health", "/status%23", "/health%23/../status", "/health%2f..%2fstatus", "/status?%23/health"} {
		n.lockedOut(t, path)
	}
	for _, path := range []string{"/status#/health", "/status/#/../health"} { // no client of a library sends these
		got := n.say("admin", "GET "+path+" HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
		if !strings.HasPrefix(got, "400 ") {
			t.Errorf("%s: %q", path, got)
		}
	}
}

func TestCVE_2026_40575_ForwardedURIDoesNotOpenAPath(t *testing.T) {
	n := barred(t)
	for _, name := range []string{"X-Forwarded-Uri", "X-Original-Url", "X-Rewrite-Url", "X-Forwarded-Prefix"} {
		n.lockedOut(t, "/status", name, "/health")
	}
}

// post sends an empty POST to the admin listener, as a page of a browser could make it.
func (n *running) post(t *testing.T, path string, change func(*http.Request)) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, n.url("admin", path), http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	change(req)
	return n.send(req).status
}

func TestCVE_2026_27589_PagesOfOthersDoNotReload(t *testing.T) {
	n := start(t, nil)
	for name, change := range map[string]func(*http.Request){
		"another origin": func(r *http.Request) { r.Header.Set("Origin", "https://evil.example") },
		"no origin":      func(r *http.Request) { r.Header.Set("Origin", "null") },
		"by its site":    func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") },
	} {
		if status := n.post(t, "/reload", change); status != http.StatusForbidden {
			t.Errorf("%s: %d", name, status)
		}
	}
}

// A path that a mux would redirect is no way around: what is behind it is not asked for by another page either.
func TestCVE_2025_47910_NoSpellingOfAPathIsLetThrough(t *testing.T) {
	n := start(t, nil)
	evil := func(r *http.Request) { r.Header.Set("Origin", "https://evil.example") }
	for _, path := range []string{"/reload/", "//reload", "/./reload", "/x/../reload", "/health/../reload", "/%72eload", "/reload?x=/health"} {
		if status := n.post(t, path, evil); status != http.StatusForbidden {
			t.Errorf("%s: %d", path, status)
		}
	}
}

func TestCVE_2022_41924_NamesThatLeadHereAreNotOurs(t *testing.T) {
	n := start(t, nil)
	for _, host := range []string{"evil.example", "evil.example:8002", "127.0.0.1.evil.example", "localhost.evil.example"} {
		if status := n.post(t, "/reload", func(r *http.Request) { r.Host = host }); status != http.StatusMisdirectedRequest {
			t.Errorf("Host %s: %d", host, status)
		}
	}
}

// What the process was started with is its own: no page shows its environment, and none shows anything to a stranger's name.
func TestCVE_2022_41925_NoPageShowsTheEnvironment(t *testing.T) {
	const canary = "canary-of-the-environment"
	t.Setenv("PIKO_TEST_CANARY", canary)
	n := start(t, func(c *config.Pikod) { c.Admin.Pprof = true })
	for _, path := range []string{
		"/", "/status", "/status/sessions", "/metrics", "/debug/pprof/", "/debug/pprof/cmdline", "/debug/vars", "/env",
	} {
		if got := n.get(n.url("admin", path)); strings.Contains(got.body, canary) || strings.Contains(got.body, ".test\x00-test.") {
			t.Errorf("%s shows how the process was started: %.200s", path, got.body)
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, n.url("admin", path), http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = "evil.example"
		if got := n.send(req); got.status != http.StatusMisdirectedRequest {
			t.Errorf("%s opens to a page of another name: %d", path, got.status)
		}
	}
}

// Who may offer an endpoint may withdraw it, and nobody else.
func TestCVE_2026_40304_NobodyWithdrawsWhatIsAnothers(t *testing.T) {
	n := start(t, func(c *config.Pikod) { c.Upstream.Auth = keyed(secret) })
	owner, err := n.dial("owner", token(t, secret, inAnHour(), "mine"), "")
	if err != nil {
		t.Fatal(err)
	}
	owner.listen("mine")
	thief, err := n.dial("thief", token(t, secret, inAnHour(), "e"), "")
	if err != nil {
		t.Fatal(err)
	}
	thief.listen("e")
	for _, name := range []string{"mine", "MINE", "mine."} {
		_ = thief.Unlisten(name) // it may know by itself that it does not offer that
	}
	if err := thief.Unlisten("e"); err != nil {
		t.Fatal(err)
	}
	n.wantEndpoints(map[string]int{"mine": 1})
}

func TestCVE_2026_48113_WhatComesAfterTheHandshakeIsChecked(t *testing.T) {
	n := start(t, func(c *config.Pikod) { c.Upstream.Auth = keyed(secret) })
	a, err := n.dial("a", token(t, secret, inAnHour(), "e"), "")
	if err != nil {
		t.Fatal(err)
	}
	a.listen("e")
	for _, name := range []string{"other", "E2", "e.", "e/../other", "*"} {
		var refused *tunnel.RefusedError
		if err := a.tryListen(tunnel.Listen{Endpoint: name, Protocol: tunnel.ProtocolHTTP}); !errors.As(err, &refused) {
			t.Errorf("listens on %q with a token for \"e\": %v", name, err)
		}
	}
	n.wantEndpoints(map[string]int{"e": 1})
}

func TestCVE_2022_23469_NoTokenInTheLog(t *testing.T) {
	n := start(t, func(c *config.Pikod) { c.Proxy.Auth = keyed(secret) }) // it logs at level debug
	n.agent("a", "e")
	good := token(t, secret, inAnHour())
	for _, text := range []string{good, good + "x", good[:len(good)-3]} {
		n.ask("e", "authorization", "Bearer "+text)
		n.ask("none", "authorization", "Bearer "+text)
	}
	for _, e := range n.log.AllEntries() {
		if line, err := e.String(); err != nil || strings.Contains(line, good[len(good)-30:len(good)-5]) {
			t.Errorf("a line shows a token: %s, %v", line, err)
		}
	}
}

func TestCVE_2026_71326_NoTwoNamesMakeOneKey(t *testing.T) {
	seen := map[router.Key][2]string{}
	for _, tenant := range []string{"", "a", "a-b", "a.b"} {
		for _, name := range []string{"c", "b-c", "b.c", "a", "a.c"} {
			key := router.KeyOf(tenant, name)
			if other, taken := seen[key]; taken {
				t.Errorf("%q of %q and %q of %q are both %q", name, tenant, other[1], other[0], key)
			}
			seen[key] = [2]string{tenant, name}
		}
	}
}

func TestCVE_2024_43798_TokensAreReallyAskedFor(t *testing.T) {
	n := start(t, func(c *config.Pikod) {
		c.Proxy.Auth, c.Upstream.Auth, c.Admin.Auth = keyed(secret), keyed(secret), keyed(secret)
	})
	if a, err := n.dial("a", "", ""); err == nil {
		t.Errorf("an agent without token is let in to %s", a.NodeID())
	}
	n.ask("e").want(t, http.StatusUnauthorized, "missing authorization")
	n.lockedOut(t, "/status")
}

// mutual is a node whose clients have to show a certificate, by whatever name they come.
func mutual(t *testing.T) *running {
	t.Helper()
	cert, key, _ := certify(t)
	other, otherKey, _ := certify(t)
	return start(t, func(c *config.Pikod) {
		c.Proxy.TLS.Cert, c.Proxy.TLS.Key, c.Proxy.TLS.ClientCA = cert, key, cert
		c.Proxy.TLS.Certificates = []config.Certificate{{Cert: other, Key: otherKey}}
	})
}

func TestCVE_2026_48491_NoNameLeadsAroundClientCertificates(t *testing.T) {
	n := mutual(t)
	for _, name := range []string{"", "localhost", "LOCALHOST", "e.piko.test", "other.test", "xn--zz.test"} {
		for _, protocols := range [][]string{nil, {"h2"}, {"http/1.1"}, {"acme-tls/1"}} {
			if err := handshake(t, n.server.Addr("proxy").String(), name, protocols, 0); err == nil {
				t.Errorf("without a certificate, as %q by %v, a client is let in", name, protocols)
			}
		}
	}
}

// A first message in many records may hide the name in it from who looks at one only.
func TestCVE_2026_32305_NoFragmentLeadsAroundClientCertificates(t *testing.T) {
	n := mutual(t)
	for _, size := range []int{1, 7, 40} {
		err := handshake(t, n.server.Addr("proxy").String(), "e.piko.test", nil, size)
		if err == nil {
			t.Errorf("without a certificate, in records of %d bytes, a client is let in", size)
		} else if !strings.Contains(err.Error(), "certificate required") {
			t.Errorf("in records of %d bytes: %v, want it refused for its certificate only", size, err)
		}
	}
}

// fragmenter cuts the first record into records of a few bytes.
type fragmenter struct {
	net.Conn
	size int
	done bool
}

// Write cuts only the first time; a size of 0 cuts nothing.
func (f *fragmenter) Write(p []byte) (int, error) {
	if f.done || f.size == 0 {
		return f.Conn.Write(p)
	}
	f.done = true
	var out []byte
	for part := range slices.Chunk(p[5:], f.size) {
		out = append(append(out, p[0], p[1], p[2], 0, byte(len(part))), part...)
	}
	if _, err := f.Conn.Write(out); err != nil {
		return 0, err
	}
	return len(p), nil
}

// handshake opens a connection without a certificate, and waits for a byte, with which a refusal comes in TLS 1.3.
func handshake(t *testing.T, addr, name string, protocols []string, fragments int) error {
	t.Helper()
	raw, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	_ = raw.SetDeadline(time.Now().Add(patience))
	conn := tls.Client(&fragmenter{Conn: raw, size: fragments}, &tls.Config{
		ServerName: name, InsecureSkipVerify: true, NextProtos: protocols,
	})
	if _, err := io.WriteString(conn, getWith("Connection: close")); err != nil {
		return err
	}
	_, err = io.ReadFull(conn, make([]byte, 1))
	return err
}

// The name of a handshake chooses a certificate and nothing else: what a request may reach is decided by the name in the request,
// whatever connection it comes by. So there is nothing to gain by naming another host there, and balancers, which often do,
// need not be answered with 421.
func TestCVE_2026_53622_NameOfTheHandshakeOpensNothing(t *testing.T) {
	cert, key, _ := certify(t)
	n := start(t, func(c *config.Pikod) {
		c.Proxy.TLS.Cert, c.Proxy.TLS.Key, c.Proxy.Auth = cert, key, keyed(secret)
		for _, id := range []string{"a", "b"} {
			tenant := config.DefaultTenant()
			tenant.ID, tenant.Auth, tenant.Domains = id, keyed(strings.Repeat(id, 32)), []string{id + ".test"}
			c.Upstream.Tenants = append(c.Upstream.Tenants, tenant)
		}
	})
	for _, sni := range []string{"", "web.a.test", "web.b.test"} {
		for host, want := range map[string]int{"web.a.test": http.StatusBadGateway, "web.b.test": http.StatusUnauthorized} {
			tr := &http.Transport{TLSClientConfig: &tls.Config{ServerName: sni, InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
			n.client.Transport = tr
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+n.server.Addr("proxy").String(), http.NoBody)
			if err != nil {
				t.Fatal(err)
			}
			req.Host = host
			req.Header.Set("Authorization", "Bearer "+token(t, strings.Repeat("a", 32), inAnHour()))
			if a := n.send(req); a.status != want {
				t.Errorf("as %q, for %s with a token of a: %d, want %d", sni, host, a.status, want)
			}
			tr.CloseIdleConnections()
		}
	}
}

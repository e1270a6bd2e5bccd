package server_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/golang-jwt/jwt/v5"

	"github.com/pikoproxy/piko/internal/config"
)

// keySet makes a key set with one key, "k", and a function that signs tokens with it, under any name.
func keySet(t *testing.T) (set []byte, sign func(kid string, claims jwt.MapClaims) string) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	set, err = json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: public, KeyID: "k", Use: "sig", Algorithm: "EdDSA"}}})
	if err != nil {
		t.Fatal(err)
	}
	return set, func(kid string, claims jwt.MapClaims) string {
		t.Helper()
		text := jwt.NewWithClaims(jwt.SigningMethodEdDSA, claims)
		text.Header["kid"] = kid
		bearer, err := text.SignedString(private)
		if err != nil {
			t.Fatal(err)
		}
		return bearer
	}
}

// A key server that does not answer is nobody's fault who comes with a token: 503, and never 401, which a classic agent
// takes for the end. Once keys have been fetched, it may be away, and settings may change meanwhile.
func TestAKeyServerThatIsDown(t *testing.T) {
	set, sign := keySet(t)
	var up atomic.Bool
	keys := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if !up.Load() {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		_, _ = w.Write(set)
	}))
	defer keys.Close()
	bearer := sign("k", jwt.MapClaims{"sub": "me", "exp": inAnHour().Unix()})
	asks := config.DefaultTenant().Auth
	asks.JWKS.URL = config.PrivateURL(keys.URL)
	n := start(t, func(c *config.Pikod) { c.Proxy.Auth, c.Upstream.Auth = asks, asks })

	ready := func(want int) func() bool {
		return func() bool { return n.get(n.url("admin", "/ready")).status == want }
	}
	eventually(t, "not ready", ready(http.StatusServiceUnavailable))
	for _, got := range []answer{
		n.ask("e", "authorization", "Bearer "+bearer),
		n.get(n.url("upstream", "/piko/v1/upstream/e"), "authorization", "Bearer "+bearer),
	} {
		got.want(t, http.StatusServiceUnavailable, "PIKO-E2")
		if got.header.Get("Retry-After") == "" {
			t.Error("no Retry-After")
		}
	}
	n.ask("e").want(t, http.StatusUnauthorized, "missing authorization") // whoever has none is told so

	up.Store(true)
	eventually(t, "ready", ready(http.StatusOK))
	a, err := n.dial("a", bearer, "")
	if err != nil {
		t.Fatal(err)
	}
	a.listen("e")
	up.Store(false)
	for range 3 {
		n.ask("e", "authorization", "Bearer "+bearer).want(t, http.StatusOK, "a")
		n.mustReload(t, func(c *config.Pikod) { c.Proxy.IdleTimeout += config.Duration(time.Second) })
	}
	n.wantSessions(1)
	if text := n.get(n.url("admin", "/metrics")).body; !strings.Contains(text, `piko_jwks_age_seconds{listener="proxy"} `) {
		t.Error("the age of the keys is not shown")
	}
}

// Whichever way a request takes, the token that lets it in stays here, and what is meant for the service arrives.
func TestOurTokensReachNoService(t *testing.T) {
	n := start(t, func(c *config.Pikod) { c.Proxy.Auth = keyed(secret) })
	r := n.recorder("e", "")
	ours := token(t, secret, inAnHour())
	for _, fields := range [][]string{
		{"Authorization: Bearer " + ours},
		{"X-Piko-Authorization: Bearer " + ours, "Authorization: Basic for-the-service"},
		{"x-piko-authorization: Bearer " + ours},
		{"Authorization: Bearer " + ours, "Connection: Upgrade", "Upgrade: websocket"},
		{"Authorization: Bearer " + ours, "Connection: Upgrade", "Upgrade: h2c", "Http2-Settings: AAMAAABkAAQAAP__"},
		{"X-Piko-Authorization: Bearer " + ours, "Connection: Upgrade", "Upgrade: websocket", "Authorization: Basic for-the-service"},
	} {
		if got := statuses(n.exchange(getWith(append(fields, "X-End: 1")...))); got != "200" {
			t.Errorf("%q: %s", fields, got)
		}
	}
	overH2 := &http.Client{Transport: &http.Transport{Protocols: new(http.Protocols)}}
	overH2.Transport.(*http.Transport).Protocols.SetUnencryptedHTTP2(true)
	defer overH2.CloseIdleConnections()
	n.client = overH2
	n.ask("e", "authorization", "Bearer "+ours).want(t, http.StatusOK, "seen")
	if strings.Contains(r.text(), ours[len(ours)-20:]) || strings.Contains(strings.ToLower(r.text()), "x-piko") {
		t.Errorf("the service was sent\n%s", r.text())
	}
	if got := strings.Count(r.text(), "Authorization: Basic for-the-service\r\n"); got != 2 {
		t.Errorf("the service's own authorization arrived %d times, want 2:\n%s", got, r.text())
	}
}

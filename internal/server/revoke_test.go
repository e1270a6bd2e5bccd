package server_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/tunnel"
	"github.com/pikoproxy/piko/internal/websocket"
)

// named signs a token with an id and a subject.
func named(t *testing.T, key, id, subject string, expires time.Time) string {
	t.Helper()
	text, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{"jti": id, "sub": subject, "exp": expires.Unix()}).
		SignedString([]byte(key))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// holding is what one client has running with its token.
type holding struct {
	tcp     *websocket.Conn
	endless *http.Response
	silent  chan answer // the answer to a request that the service lets wait
}

// hold begins three things with a token: a TCP connection, an answer that does not end, and a request without answer.
func (n *running) hold(token string) *holding {
	n.t.Helper()
	h := &holding{silent: make(chan answer, 1)}
	var err error
	h.tcp, _, err = websocket.Dial(n.t.Context(), n.url("proxy", "/_piko/v1/tcp/tcp"), websocket.DialOptions{
		Header: http.Header{"Authorization": {"Bearer " + token}},
	})
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { _ = h.tcp.Reset() })
	ctx, cancel := context.WithTimeout(n.t.Context(), 3*patience) // it ends long before, or the test fails
	n.t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, n.url("proxy", "/endless"), http.NoBody)
	if err != nil {
		n.t.Fatal(err)
	}
	req.Header.Set("X-Piko-Endpoint", "e")
	req.Header.Set("Authorization", "Bearer "+token)
	if h.endless, err = n.client.Do(req); err != nil || h.endless.StatusCode != http.StatusOK {
		n.t.Fatalf("the endless answer begins with %v, %v", h.endless, err)
	}
	n.t.Cleanup(func() { _ = h.endless.Body.Close() })
	go func() {
		a, _ := n.try(n.url("proxy", "/silent"), "X-Piko-Endpoint", "e", "X-Piko-Authorization", "Bearer "+token)
		h.silent <- a
	}()
	return h
}

// wantEnd waits until all three have ended, none of them as if it were complete.
func (h *holding) wantEnd(t *testing.T, text string) {
	t.Helper()
	limit := time.Now().Add(patience)
	_ = h.tcp.SetReadDeadline(limit)
	if _, err := h.tcp.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) || time.Now().After(limit) {
		t.Errorf("the TCP connection ends with %v, want it broken off", err)
	}
	if b, err := io.ReadAll(h.endless.Body); !errors.Is(err, io.ErrUnexpectedEOF) || string(b) != "beginning" {
		t.Errorf("the endless answer ends with %q and %v, want it broken off", b, err)
	}
	await(t, "the end of the silent request", h.silent).want(t, http.StatusUnauthorized, text)
}

// wantNothing waits until no request of a client runs, and no connection.
func (n *running) wantNothing() {
	n.t.Helper()
	eventually(n.t, "that nothing runs", func() bool {
		text := n.get(n.url("admin", "/metrics")).body
		return strings.Contains(text, "\npiko_proxy_requests_in_flight 0\n") &&
			strings.Contains(text, "\npiko_proxy_spliced_connections 0\n")
	})
}

// wantAlive tells that it is not over for those who hold another token.
func (h *holding) wantAlive(t *testing.T) {
	t.Helper()
	if _, err := h.tcp.Write([]byte("x")); err != nil {
		t.Errorf("the TCP connection of another was cut off: %v", err)
	}
	select {
	case a := <-h.silent:
		t.Errorf("the request of another was answered: %v", a)
	default:
	}
}

func guarded(t *testing.T, tokenOfAgent string) *running {
	t.Helper()
	n := start(t, func(c *config.Pikod) { c.Proxy.Auth, c.Upstream.Auth = keyed(secret), keyed(secret) })
	a, err := n.dial("a", tokenOfAgent, "")
	if err != nil {
		t.Fatal(err)
	}
	a.listen("e")
	if err := a.tryListen(tunnel.Listen{Endpoint: "tcp", Protocol: tunnel.ProtocolTCP}); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestWhatARevokedTokenHasBegunEnds(t *testing.T) {
	n := guarded(t, named(t, secret, "a1", "agent", inAnHour()))
	stolen, other := named(t, secret, "c1", "mallory", inAnHour()), named(t, secret, "c2", "alice", inAnHour())
	thief, honest := n.hold(stolen), n.hold(other)
	n.mustReload(t, func(c *config.Pikod) { c.Proxy.Auth.Denylist = []string{"c1"} })
	thief.wantEnd(t, "invalid token")
	honest.wantAlive(t)
	n.ask("e", "authorization", "Bearer "+stolen).want(t, http.StatusUnauthorized, "invalid token")
	n.ask("e", "authorization", "Bearer "+other).want(t, http.StatusOK, "a")
	n.mustReload(t, func(c *config.Pikod) { c.Proxy.Auth.Denylist = []string{"alice"} })
	honest.wantEnd(t, "invalid token")
	n.wantNothing()

	n.wantSessions(1)
	n.mustReload(t, func(c *config.Pikod) { c.Upstream.Auth.Denylist = []string{"agent"} })
	n.wantSessions(0)
	if _, err := n.dial("a", named(t, secret, "a1", "agent", inAnHour()), ""); err == nil {
		t.Error("a revoked agent is let in")
	}
}

func TestWhatAnExpiredTokenHasBegunEnds(t *testing.T) {
	t.Parallel()
	n := guarded(t, named(t, secret, "a1", "agent", inAnHour()))
	soon := time.Now().Add(10 * time.Second) // and the leeway is as long again, in which all three can begin
	n.hold(named(t, secret, "c1", "alice", soon)).wantEnd(t, "expired token")
}

func TestWhatARemovedKeyHasVerifiedEnds(t *testing.T) {
	n := guarded(t, named(t, secret, "a1", "agent", inAnHour()))
	h := n.hold(named(t, secret, "c1", "alice", inAnHour()))
	other := strings.Repeat("o", 32)
	n.mustReload(t, func(c *config.Pikod) { c.Proxy.Auth, c.Upstream.Auth = keyed(other), keyed(other) })
	h.wantEnd(t, "invalid token")
	n.wantSessions(0)
}

func TestSwitchingTokensOnEndsSessionsWithoutOne(t *testing.T) {
	n := start(t, nil)
	n.agent("a", "e")
	n.mustReload(t, func(c *config.Pikod) { c.Upstream.Auth = keyed(secret) })
	n.wantSessions(0)
}

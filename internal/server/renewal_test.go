package server_test

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"

	"github.com/golang-jwt/jwt/v5"
	"github.com/sirupsen/logrus"

	"github.com/pikoproxy/piko/internal/config"
)

// A renewal may have to wait for a key server. The tokens that come meanwhile must not be lost: the agent sends its next
// one only when that is about to expire.
func TestATokenThatComesDuringARenewalCounts(t *testing.T) {
	set, signed := keySet(t)
	asked, answer := make(chan struct{}, 9), make(chan struct{}, 9)
	answer <- struct{}{} // at the start; after that, when the test says so
	keys := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		select {
		case <-answer:
			_, _ = w.Write(set)
		case <-r.Context().Done():
		}
	}))
	defer keys.Close()
	sign := func(kid string, endpoints ...string) string {
		return signed(kid, jwt.MapClaims{"sub": "me", "exp": inAnHour().Unix(), "piko": map[string]any{"endpoints": endpoints}})
	}
	n := start(t, func(c *config.Pikod) { c.Upstream.Auth.JWKS.URL = config.PrivateURL(keys.URL) })
	await(t, "the keys are fetched", asked)
	eventually(t, "ready", func() bool { return n.get(n.url("admin", "/ready")).status == http.StatusOK })
	a, err := n.dial("a", sign("k", "web", "api", "other"), "")
	if err != nil {
		t.Fatal(err)
	}
	a.listen("web")
	a.listen("api")
	if err := a.SendToken(sign("unknown", "api")); err != nil {
		t.Fatal(err)
	}
	await(t, "the key of the first new token is asked for", asked)
	for _, bearer := range []string{"x.y.z", sign("k", "api")} {
		if err := a.SendToken(bearer); err != nil {
			t.Fatal(err)
		}
	}
	a.listen("other") // told behind the tokens, so they have been read
	answer <- struct{}{}
	n.wantEndpoints(map[string]int{"api": 1})
	eventually(t, "a word of the renewal in the log", func() bool {
		return slices.ContainsFunc(n.log.AllEntries(), func(e *logrus.Entry) bool { return e.Message == "token renewed" })
	})
}

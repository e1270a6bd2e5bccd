package auth

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/pikoproxy/piko/internal/config"
)

// A reload may come while the verifier before it is about to put a fetched set into use. With the entity tag of that set, but
// without its keys, the next one would be told "not modified" and refuse every token until the set changes.
func TestAnEntityTagIsNotInheritedWithoutItsKeys(t *testing.T) {
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: public, KeyID: "k", Use: "sig"}}})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"1"`)
		if r.Header.Get("If-None-Match") == `"1"` {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		_, _ = w.Write(text)
	}))
	defer server.Close()
	fresh := func() *keySet {
		s, err := newKeySet(config.JWKS{
			URL: config.PrivateURL(server.URL), CacheTTL: config.Duration(time.Hour), Timeout: config.Duration(time.Minute),
		}, Options{Now: time.Now})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	old, next, retry := fresh(), fresh(), minRetry
	if _, _, err := old.source.fetch(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	next.inherit(old)
	for range 2 { // the second time it is not modified
		next.fetch(t.Context(), &retry)
		if f, err := next.current(); err != nil || len(f.keys) != 1 || f.etag != `"1"` {
			t.Fatalf("keys after a fetch: %+v, %v", f, err)
		}
	}
}

// A cache in between may answer so; to believe it would be to have no keys, and to end all sessions for the lack of them.
func TestNotModifiedUnaskedIsNoKeySet(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusNotModified)
	}))
	defer server.Close()
	s, err := newKeySet(config.JWKS{URL: config.PrivateURL(server.URL), CacheTTL: config.Duration(time.Hour), Timeout: config.Duration(time.Minute)},
		Options{Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	retry := minRetry
	s.fetch(t.Context(), &retry)
	if f, err := s.current(); err == nil {
		t.Errorf("%d keys count as the set", len(f.keys))
	}
}

// A key server may want a secret in the address. It must not get into the log when the server does not answer.
func TestAddressOfAKeySetIsShownWithoutItsSecrets(t *testing.T) {
	v, err := New(config.Auth{JWKS: config.JWKS{
		URL: config.PrivateURL("http://127.0.0.1:9/keys?key=canary"), CacheTTL: config.Duration(time.Hour), Timeout: config.Duration(time.Minute),
	}}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	retry := time.Second
	v.set.fetch(t.Context(), &retry)
	for name, err := range map[string]error{"trouble": v.Trouble(), "not ready": v.Ready()} {
		if err == nil || strings.Contains(err.Error(), "canary") || !strings.Contains(err.Error(), "/keys?[redacted]") {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err = New(config.Auth{JWKS: config.JWKS{URL: "http://user:canary@keys.example/set?canary"}}, Options{})
	if err == nil || strings.Contains(err.Error(), "canary") {
		t.Errorf("refused by %v", err)
	}
}

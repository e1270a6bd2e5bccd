package auth_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/golang-jwt/jwt/v5"
	"go.uber.org/goleak"

	"github.com/pikoproxy/piko/internal/auth"
	"github.com/pikoproxy/piko/internal/config"
)

// keyServer serves a key set that a test changes.
type keyServer struct {
	*httptest.Server
	answer  atomic.Pointer[http.HandlerFunc]
	fetches atomic.Int64
	seen    chan struct{} // one for each fetch; a test that waits reads it
}

func newKeyServer(t *testing.T) *keyServer {
	s := &keyServer{seen: make(chan struct{}, 1000)}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.fetches.Add(1)
		(*s.answer.Load())(w, r)
		s.seen <- struct{}{}
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *keyServer) serve(keys ...jose.JSONWebKey) {
	f := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := json.Marshal(jose.JSONWebKeySet{Keys: keys})
		etag := fmt.Sprintf("%q", fmt.Sprint(len(keys), keys[0].KeyID))
		w.Header().Set("ETag", etag)
		if r.Header.Get("If-None-Match") == etag {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		_, _ = w.Write(body)
	})
	s.answer.Store(&f)
}

func (s *keyServer) fail(status int, body string) {
	f := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body))
	})
	s.answer.Store(&f)
}

func keyPair(t *testing.T, kid string) (jose.JSONWebKey, ed25519.PrivateKey) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return jose.JSONWebKey{Key: public, KeyID: kid, Use: "sig", Algorithm: "EdDSA"}, private
}

// run runs the verifier for the length of the test.
func run(t *testing.T, v *auth.Verifier) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- v.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func setOf(s *keyServer, ttl time.Duration) config.Auth {
	return config.Auth{JWKS: config.JWKS{URL: config.PrivateURL(s.URL + "/keys"), CacheTTL: config.Duration(ttl), Timeout: config.Duration(time.Minute)}}
}

func TestKeySetRotates(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	s := newKeyServer(t)
	defer s.Close()
	public1, private1 := keyPair(t, "k1")
	public2, private2 := keyPair(t, "k2")
	s.serve(public1)
	v := verifier(t, setOf(s, time.Hour), auth.Options{})
	if err := v.Ready(); !errors.Is(err, auth.ErrUnavailable) {
		t.Errorf("before the first fetch: Ready = %v, want ErrUnavailable", err)
	}
	token1 := sign(t, jwt.SigningMethodEdDSA, private1, good(), "kid", "k1")
	if _, err := v.Verify(t.Context(), token1); !errors.Is(err, auth.ErrUnavailable) {
		t.Errorf("before the first fetch: %v, want ErrUnavailable: the bearer is not to blame", err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- v.Run(ctx) }()
	<-s.seen
	waitReady(t, v)
	if _, err := v.Verify(t.Context(), token1); err != nil {
		t.Fatalf("first key: %v", err)
	}
	s.serve(public2, public1)
	token2 := sign(t, jwt.SigningMethodEdDSA, private2, good(), "kid", "k2")
	if _, err := v.Verify(t.Context(), token2); err != nil {
		t.Errorf("a new kid did not cause a fetch: %v", err)
	}
	before := s.fetches.Load()
	for i := range 1000 {
		token := sign(t, jwt.SigningMethodEdDSA, private2, good(), "kid", fmt.Sprint("made-up-", i))
		if _, err := v.Verify(t.Context(), token); !errors.Is(err, auth.ErrInvalid) {
			t.Fatalf("made-up kid: %v", err)
		}
	}
	if n := s.fetches.Load() - before; n > 1 {
		t.Errorf("1000 made-up kids caused %d fetches, want at most 1", n)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func waitReady(t *testing.T, v *auth.Verifier) {
	t.Helper()
	for v.Ready() != nil {
		select {
		case <-t.Context().Done():
			t.Fatal("not ready")
		case <-time.After(time.Millisecond):
		}
	}
}

func TestRemovedKeyStopsWorking(t *testing.T) {
	s := newKeyServer(t)
	public1, private1 := keyPair(t, "k1")
	public2, _ := keyPair(t, "k2")
	s.serve(public1)
	v := verifier(t, setOf(s, time.Second), auth.Options{})
	run(t, v)
	<-s.seen
	waitReady(t, v)
	token := sign(t, jwt.SigningMethodEdDSA, private1, good(), "kid", "k1")
	if _, err := v.Verify(t.Context(), token); err != nil {
		t.Fatal(err)
	}
	s.serve(public2)
	for {
		if _, err := v.Verify(t.Context(), token); errors.Is(err, auth.ErrInvalid) {
			return // though the verdict under the old set was remembered
		}
		<-s.seen
	}
}

func TestKeySetOutage(t *testing.T) {
	s := newKeyServer(t)
	public, private := keyPair(t, "k1")
	s.serve(public)
	var skew atomic.Int64
	now := func() time.Time { return time.Now().Add(time.Duration(skew.Load())) }
	v := verifier(t, setOf(s, time.Second), auth.Options{Now: now})
	run(t, v)
	<-s.seen
	waitReady(t, v)
	s.fail(http.StatusInternalServerError, "")
	for v.Trouble() == nil {
		<-s.seen
	}
	token := func() string {
		return sign(t, jwt.SigningMethodEdDSA, private, good("exp", now().Add(time.Hour).Unix()), "kid", "k1")
	}
	if _, err := v.Verify(t.Context(), token()); err != nil {
		t.Errorf("keys must outlive the key server: %v", err)
	}
	long := sign(t, jwt.SigningMethodEdDSA, private, good("exp", now().Add(48*time.Hour).Unix()), "kid", "k1")
	if _, err := v.Verify(t.Context(), long); err != nil {
		t.Errorf("a token for two days: %v", err)
	}
	skew.Store(int64(25 * time.Hour))
	if _, err := v.Verify(t.Context(), token()); !errors.Is(err, auth.ErrUnavailable) {
		t.Errorf("after a day without the key server: %v, want ErrUnavailable", err)
	}
	if _, err := v.Verify(t.Context(), long); !errors.Is(err, auth.ErrUnavailable) {
		t.Errorf("a token that is known, after a day without the key server: %v, want ErrUnavailable", err)
	}
	if err := v.Ready(); err == nil || !strings.Contains(err.Error(), "status 500") {
		t.Errorf("Ready = %v, want it to say what the key server answered", err)
	}
}

func TestHostileKeySets(t *testing.T) {
	public, private := keyPair(t, "k1")
	symmetric := `{"keys":[{"kty":"oct","k":"YSBzZWNyZXQgb2YgdGhpcnR5LXR3byBieXRlcywgb2s","kid":"k1","alg":"HS256"}]}`
	key, err := json.Marshal(public)
	if err != nil {
		t.Fatal(err)
	}
	for name, body := range map[string]string{
		"not JSON":      "<html>",
		"no keys":       `{}`,
		"symmetric key": symmetric,
		"too many keys": `{"keys":[` + strings.Repeat(string(key)+",", 100) + string(key) + `]}`,
		"too large":     `{"keys":[` + string(key) + `],"x":"` + strings.Repeat("x", 1<<20) + `"}`,
	} {
		t.Run(name, func(t *testing.T) {
			s := newKeyServer(t)
			s.fail(http.StatusOK, body)
			v := verifier(t, setOf(s, time.Hour), auth.Options{})
			run(t, v)
			<-s.seen
			<-s.seen // the second fetch begins after the first was judged
			for _, token := range []string{
				sign(t, jwt.SigningMethodEdDSA, private, good(), "kid", "k1"),
				sign(t, jwt.SigningMethodHS256, []byte(secret), good(), "kid", "k1"),
			} {
				if _, err := v.Verify(t.Context(), token); err == nil {
					t.Error("a token was verified with a hostile key set")
				}
			}
		})
	}
}

func TestKeySetFollowsNoRedirect(t *testing.T) {
	public, _ := keyPair(t, "k1")
	other := newKeyServer(t)
	other.serve(public)
	s := newKeyServer(t)
	f := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, other.URL, http.StatusFound) })
	s.answer.Store(&f)
	v := verifier(t, setOf(s, time.Hour), auth.Options{})
	run(t, v)
	<-s.seen
	<-s.seen
	if n := other.fetches.Load(); n > 0 {
		t.Errorf("the redirect was followed %d times", n)
	}
}

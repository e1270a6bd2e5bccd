package auth_test

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/pikoproxy/piko/internal/auth"
	"github.com/pikoproxy/piko/internal/config"
)

// The faults of others in reading tokens and fetching keys.

func TestCVE_2025_30204_DotsWithoutEnd(t *testing.T) {
	v := verifier(t, config.Auth{HMACSecretKey: config.NewSecret(secret)}, auth.Options{})
	text := "Bearer " + strings.Repeat(".", 1<<20)
	used := testing.AllocsPerRun(10, func() {
		if _, err := v.Authenticate(t.Context(), header("Authorization", text)); err == nil {
			t.Error("dots are a token")
		}
	})
	if used > 50 {
		t.Errorf("a megabyte of dots costs %v allocations", used)
	}
}

func TestCVE_2024_51744_ExpiredIsNoExcuseForABadSignature(t *testing.T) {
	v := verifier(t, config.Auth{HMACSecretKey: config.NewSecret(secret)}, auth.Options{})
	forged := sign(t, jwt.SigningMethodHS256, []byte("another secret of thirty-two byte"), good("exp", time.Now().Add(-time.Hour).Unix()))
	if _, err := v.Verify(t.Context(), forged); !errors.Is(err, auth.ErrInvalid) || errors.Is(err, auth.ErrExpired) {
		t.Errorf("an expired token that nobody signed: %v, want it called invalid", err)
	}
}

func TestCVE_2015_9235_AlgorithmOfTheAttackersChoice(t *testing.T) {
	v := verifier(t, config.Auth{HMACSecretKey: config.NewSecret(secret)}, auth.Options{})
	e := base64.RawURLEncoding.EncodeToString
	for _, alg := range []string{"none", "None", "NONE", "nOnE", "", "HS257"} {
		token := e(fmt.Appendf(nil, `{"alg":%q}`, alg)) + "." + e([]byte(`{"exp":99999999999}`)) + "."
		for _, signature := range []string{"", "AA"} {
			if _, err := v.Verify(t.Context(), token+signature); !errors.Is(err, auth.ErrInvalid) {
				t.Errorf("alg %q: %v", alg, err)
			}
		}
	}
}

// A token's header leads to no key: not by jku or x5u, which would be fetched, nor by jwk, x5c or a kid that is a path.
func TestCVE_2018_0114_KeysInsideATokenAreIgnored(t *testing.T) {
	s := newKeyServer(t)
	public, _ := keyPair(t, "k1")
	s.serve(public)
	foreign, private := keyPair(t, "evil")
	other := newKeyServer(t)
	other.serve(foreign)
	v := verifier(t, setOf(s, time.Hour), auth.Options{})
	run(t, v)
	<-s.seen
	waitReady(t, v)
	for name, extra := range map[string][]any{
		"jku": {"jku", other.URL}, "x5u": {"x5u", other.URL}, "jwk": {"jwk", foreign}, "x5c": {"x5c", []string{"MII"}},
		"path": {"kid", "../../../../dev/null"}, "query": {"kid", "x' UNION SELECT 'key"}, "long": {"kid", strings.Repeat("k", 4000)},
		"number": {"kid", 1},
	} {
		if _, err := v.Verify(t.Context(), sign(t, jwt.SigningMethodEdDSA, private, good(), extra...)); !errors.Is(err, auth.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := other.fetches.Load(); n > 0 {
		t.Errorf("%d requests to where a token led", n)
	}
}

// Verdicts are remembered by the whole token. However many are asked about at once, nobody is taken for another.
func TestCVE_2026_71326_NobodyIsTakenForAnother(t *testing.T) {
	v := verifier(t, config.Auth{HMACSecretKey: config.NewSecret(secret)}, auth.Options{})
	var work sync.WaitGroup
	for i := range 8 {
		name := fmt.Sprint("user-", i)
		token := sign(t, jwt.SigningMethodHS256, []byte(secret), good("sub", name))
		work.Go(func() {
			for range 200 {
				if id, err := v.Verify(t.Context(), token); err != nil || id.Subject != name {
					t.Errorf("%s is taken for %+v, %v", name, id, err)
					return
				}
			}
		})
	}
	work.Wait()
}

func TestCVE_2026_26998_AnswerOfAKeyServerWithoutEnd(t *testing.T) {
	s := newKeyServer(t)
	sent := make(chan int, 10)
	f := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		n := 0
		for ; n < 64<<20; n += 4096 {
			if _, err := w.Write(make([]byte, 4096)); err != nil {
				break
			}
		}
		sent <- n
	})
	s.answer.Store(&f)
	v := verifier(t, setOf(s, time.Hour), auth.Options{})
	run(t, v)
	if n := <-sent; n > 16<<20 {
		t.Errorf("%d bytes of a key set were taken", n)
	}
	if v.Ready() == nil {
		t.Error("zeros are a key set")
	}
}

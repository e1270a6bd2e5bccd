package auth_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/pikoproxy/piko/internal/auth"
	"github.com/pikoproxy/piko/internal/config"
)

const secret = "a secret of thirty-two bytes, ok"

// good returns claims that hold for an hour, with changes applied; a nil value removes a claim.
func good(changes ...any) jwt.MapClaims {
	c := jwt.MapClaims{"sub": "me", "jti": "t1", "exp": time.Now().Add(time.Hour).Unix()}
	for i := 0; i < len(changes); i += 2 {
		name := changes[i].(string)
		if c[name] = changes[i+1]; changes[i+1] == nil {
			delete(c, name)
		}
	}
	return c
}

func sign(t *testing.T, m jwt.SigningMethod, key any, c jwt.Claims, header ...any) string {
	t.Helper()
	token := jwt.NewWithClaims(m, c)
	for i := 0; i < len(header); i += 2 {
		token.Header[header[i].(string)] = header[i+1]
	}
	s, err := token.SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func publicPEM(t *testing.T, key any) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

func verifier(t *testing.T, settings config.Auth, o auth.Options) *auth.Verifier {
	t.Helper()
	v, err := auth.New(settings, o)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func header(lines ...string) http.Header {
	h := http.Header{}
	for i := 0; i < len(lines); i += 2 {
		h.Add(lines[i], lines[i+1])
	}
	return h
}

func TestHeader(t *testing.T) {
	v := verifier(t, config.Auth{HMACSecretKey: config.NewSecret(secret)}, auth.Options{Role: auth.Client})
	token := sign(t, jwt.SigningMethodHS256, []byte(secret), good())
	other := sign(t, jwt.SigningMethodHS256, []byte("another secret of thirty-two byte"), good())
	for name, tc := range map[string]struct {
		h    http.Header
		want error
	}{
		"authorization":        {header("Authorization", "Bearer "+token), nil},
		"scheme in any case":   {header("Authorization", "bearer "+token), nil},
		"piko's own wins":      {header("Authorization", "Basic eDp5", "X-Piko-Authorization", "Bearer "+token), nil},
		"piko's own, bad":      {header("Authorization", "Bearer "+token, "X-Piko-Authorization", "Bearer "+other), auth.ErrInvalid},
		"none":                 {header(), auth.ErrMissing},
		"empty":                {header("Authorization", ""), auth.ErrMissing},
		"twice":                {header("Authorization", "Bearer "+token, "Authorization", "Bearer "+token), auth.ErrMalformed},
		"scheme only":          {header("Authorization", "Bearer"), auth.ErrMalformed},
		"two tokens":           {header("Authorization", "Bearer "+token+" "+token), auth.ErrMalformed},
		"list":                 {header("Authorization", "Bearer "+token+","+token), auth.ErrMalformed},
		"basic":                {header("Authorization", "Basic eDp5"), auth.ErrScheme},
		"not a token":          {header("Authorization", "Bearer x"), auth.ErrInvalid},
		"too large":            {header("Authorization", "Bearer "+strings.Repeat("a", auth.MaxToken+1)), auth.ErrInvalid},
		"dots and nothing":     {header("Authorization", "Bearer "+strings.Repeat(".", auth.MaxToken)), auth.ErrInvalid},
		"signed by a stranger": {header("Authorization", "Bearer "+other), auth.ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			id, err := v.Authenticate(t.Context(), tc.h)
			if !errors.Is(err, tc.want) || (err == nil) != (id != nil) {
				t.Fatalf("Authenticate = %v, %v; want error %v", id, err, tc.want)
			}
			if err != nil && strings.Contains(err.Error(), token) {
				t.Errorf("the error repeats the token: %v", err)
			}
		})
	}
}

func TestAlgorithms(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	edPublic, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaPEM, ecPEM, edPEM := publicPEM(t, rsaKey.Public()), publicPEM(t, ecKey.Public()), publicPEM(t, edPublic)
	hmacOnly := config.Auth{HMACSecretKey: config.NewSecret(secret)}
	rsaOnly := config.Auth{RSAPublicKey: rsaPEM}
	for name, tc := range map[string]struct {
		settings config.Auth
		method   jwt.SigningMethod
		key      any
		ok       bool
	}{
		"HS256":                    {hmacOnly, jwt.SigningMethodHS256, []byte(secret), true},
		"HS512":                    {hmacOnly, jwt.SigningMethodHS512, []byte(secret), true},
		"RS256":                    {rsaOnly, jwt.SigningMethodRS256, rsaKey, true},
		"PS512":                    {rsaOnly, jwt.SigningMethodPS512, rsaKey, true},
		"ES256":                    {config.Auth{ECDSAPublicKey: ecPEM}, jwt.SigningMethodES256, ecKey, true},
		"EdDSA":                    {config.Auth{Ed25519PublicKey: edPEM}, jwt.SigningMethodEdDSA, edKey, true},
		"none":                     {rsaOnly, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, false},
		"public key as a secret":   {rsaOnly, jwt.SigningMethodHS256, []byte(rsaPEM), false},
		"HS with both kinds set":   {config.Auth{RSAPublicKey: rsaPEM, HMACSecretKey: config.NewSecret(secret)}, jwt.SigningMethodHS256, []byte(rsaPEM), false},
		"EC token, RSA key only":   {rsaOnly, jwt.SigningMethodES256, ecKey, false},
		"HMAC token, RSA key only": {rsaOnly, jwt.SigningMethodHS256, []byte(secret), false},
	} {
		t.Run(name, func(t *testing.T) {
			v := verifier(t, tc.settings, auth.Options{})
			id, err := v.Verify(t.Context(), sign(t, tc.method, tc.key, good()))
			if tc.ok != (err == nil) || tc.ok && id.Subject != "me" || !tc.ok && !errors.Is(err, auth.ErrInvalid) {
				t.Errorf("Verify = %+v, %v; want ok %v", id, err, tc.ok)
			}
		})
	}
}

func TestClaims(t *testing.T) {
	now := time.Now()
	hmacKey := []byte(secret)
	strict := config.Auth{HMACSecretKey: config.NewSecret(secret), Audience: "piko", Issuer: "us", RequireEndpoints: true, RequireExp: true}
	loose := config.Auth{HMACSecretKey: config.NewSecret(secret)}
	piko := func(endpoints ...string) map[string]any { return map[string]any{"endpoints": endpoints} }
	for name, tc := range map[string]struct {
		settings config.Auth
		claims   jwt.MapClaims
		want     error
	}{
		"all that is asked for":    {strict, good("aud", "piko", "iss", "us", "piko", piko("a")), nil},
		"one audience of two":      {strict, good("aud", []string{"x", "piko"}, "iss", "us", "piko", piko("a")), nil},
		"wrong audience":           {strict, good("aud", "x", "iss", "us", "piko", piko("a")), auth.ErrInvalid},
		"no audience":              {strict, good("iss", "us", "piko", piko("a")), auth.ErrInvalid},
		"wrong issuer":             {strict, good("aud", "piko", "iss", "them", "piko", piko("a")), auth.ErrInvalid},
		"no endpoints":             {strict, good("aud", "piko", "iss", "us"), auth.ErrNotPermitted},
		"empty endpoints":          {strict, good("aud", "piko", "iss", "us", "piko", piko()), auth.ErrNotPermitted},
		"no endpoints, loose":      {loose, good(), nil},
		"no expiry":                {strict, good("exp", nil, "aud", "piko", "iss", "us", "piko", piko("a")), auth.ErrInvalid},
		"no expiry, loose":         {loose, good("exp", nil), nil},
		"expired":                  {loose, good("exp", now.Add(-time.Minute).Unix()), auth.ErrExpired},
		"expired within leeway":    {loose, good("exp", now.Add(-5*time.Second).Unix()), nil},
		"not yet":                  {loose, good("nbf", now.Add(time.Minute).Unix()), auth.ErrInvalid},
		"issued in the future":     {loose, good("iat", now.Add(time.Minute).Unix()), auth.ErrInvalid},
		"role fits":                {loose, good("piko", map[string]any{"role": "agent"}), nil},
		"role among several":       {loose, good("piko", map[string]any{"role": []string{"client", "agent"}}), nil},
		"role of another listener": {loose, good("piko", map[string]any{"role": "client"}), auth.ErrNotPermitted},
		"role of a wrong type":     {loose, good("piko", map[string]any{"role": 1}), auth.ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			v := verifier(t, tc.settings, auth.Options{Role: auth.Agent, Now: func() time.Time { return now }})
			if _, err := v.Verify(t.Context(), sign(t, jwt.SigningMethodHS256, hmacKey, tc.claims)); !errors.Is(err, tc.want) {
				t.Errorf("Verify: %v; want %v", err, tc.want)
			}
		})
	}
}

func TestTokenHeaderLeadsNowhere(t *testing.T) {
	v := verifier(t, config.Auth{HMACSecretKey: config.NewSecret(secret)}, auth.Options{})
	for name, extra := range map[string][]any{
		"critical extension": {"crit", []string{"x"}},
		"unencoded payload":  {"b64", false},
	} {
		t.Run(name, func(t *testing.T) {
			token := sign(t, jwt.SigningMethodHS256, []byte(secret), good(), extra...)
			if _, err := v.Verify(t.Context(), token); !errors.Is(err, auth.ErrInvalid) {
				t.Errorf("Verify: %v; want it refused", err)
			}
		})
	}
}

func TestNamesGivenTwice(t *testing.T) {
	v := verifier(t, config.Auth{HMACSecretKey: config.NewSecret(secret)}, auth.Options{})
	b64 := base64.RawURLEncoding.EncodeToString
	for name, payload := range map[string]string{
		"expiry":        `{"exp":1,"exp":99999999999}`,
		"case":          `{"exp":1,"EXP":99999999999}`,
		"nested":        `{"exp":99999999999,"piko":{"endpoints":["a"],"endpoints":["b"]}}`,
		"deeply nested": `{"exp":99999999999,"x":[{"a":{"b":1,"b":2}}]}`,
		"trailing":      `{"exp":99999999999} {}`,
	} {
		t.Run(name, func(t *testing.T) {
			signed := b64([]byte(`{"alg":"HS256"}`)) + "." + b64([]byte(payload))
			mac, err := jwt.SigningMethodHS256.Sign(signed, []byte(secret))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := v.Verify(t.Context(), signed+"."+b64(mac)); !errors.Is(err, auth.ErrInvalid) {
				t.Errorf("Verify: %v; want it refused", err)
			}
		})
	}
}

func TestPermits(t *testing.T) {
	v := verifier(t, config.Auth{HMACSecretKey: config.NewSecret(secret)}, auth.Options{})
	id, err := v.Verify(t.Context(), sign(t, jwt.SigningMethodHS256, []byte(secret),
		good("piko", map[string]any{"endpoints": []string{"Web", "team-a-*"}})))
	if err != nil {
		t.Fatal(err)
	}
	for endpoint, want := range map[string]bool{
		"web": true, "web2": false, "team-a-x": true, "team-a-": true, "team-b-x": false, "*": false, "": false,
	} {
		if got := id.Permits(endpoint); got != want {
			t.Errorf("Permits(%q) = %v, want %v", endpoint, got, want)
		}
	}
	var nobody *auth.Identity
	if !nobody.Permits("anything") {
		t.Error("an identity of a listener without tokens must permit everything")
	}
}

func TestRememberedVerdictExpires(t *testing.T) {
	now := time.Now()
	v := verifier(t, config.Auth{HMACSecretKey: config.NewSecret(secret)}, auth.Options{Now: func() time.Time { return now }})
	token := sign(t, jwt.SigningMethodHS256, []byte(secret), good("exp", now.Add(time.Minute).Unix()))
	for _, step := range []struct {
		pass time.Duration
		want error
	}{{0, nil}, {30 * time.Second, nil}, {time.Minute, auth.ErrExpired}} {
		now = now.Add(step.pass)
		if _, err := v.Verify(t.Context(), token); !errors.Is(err, step.want) {
			t.Errorf("after %v: %v, want %v", step.pass, err, step.want)
		}
	}
}

func TestBadSettings(t *testing.T) {
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		settings config.Auth
		want     string
	}{
		"short secret":        {config.Auth{HMACSecretKey: config.NewSecret("short")}, "hmac_secret_key: want at least 32 bytes, have 5"},
		"weak RSA key":        {config.Auth{RSAPublicKey: publicPEM(t, weak.Public())}, "rsa_public_key: want an RSA key of 2048 to 8192 bits"},
		"not PEM":             {config.Auth{RSAPublicKey: "x"}, "rsa_public_key: want an RSA public key"},
		"wrong kind":          {config.Auth{Ed25519PublicKey: publicPEM(t, weak.Public())}, "ed25519_public_key: want"},
		"plain http":          {config.Auth{JWKS: config.JWKS{URL: "http://keys.example/set"}}, "jwks.url: want https"},
		"secret beside a set": {config.Auth{HMACSecretKey: config.NewSecret(secret), JWKS: config.JWKS{URL: "https://x/"}}, "remove one of the two"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := auth.New(tc.settings, auth.Options{}); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("New: %v; want %q", err, tc.want)
			}
		})
	}
}

func TestGate(t *testing.T) {
	const other = "the other tenant's secret, 32 by"
	own := verifier(t, config.Auth{HMACSecretKey: config.NewSecret(secret)}, auth.Options{})
	tenant := verifier(t, config.Auth{HMACSecretKey: config.NewSecret(other)}, auth.Options{})
	gate := &auth.Gate{Own: own, Tenants: map[string]*auth.Verifier{"t1": tenant}}
	ownToken := "Bearer " + sign(t, jwt.SigningMethodHS256, []byte(secret), good())
	tenantToken := "Bearer " + sign(t, jwt.SigningMethodHS256, []byte(other), good())
	for name, tc := range map[string]struct {
		gate   *auth.Gate
		h      http.Header
		tenant string
		want   error
	}{
		"own":                      {gate, header("Authorization", ownToken), "", nil},
		"tenant":                   {gate, header("Authorization", tenantToken, auth.TenantID, "t1"), "t1", nil},
		"own token as tenant":      {gate, header("Authorization", ownToken, auth.TenantID, "t1"), "", auth.ErrInvalid},
		"tenant token as own":      {gate, header("Authorization", tenantToken), "", auth.ErrInvalid},
		"unknown tenant":           {gate, header("Authorization", ownToken, auth.TenantID, "t2"), "", auth.ErrUnknownTenant},
		"two tenants":              {gate, header("Authorization", ownToken, auth.TenantID, "t1", auth.TenantID, "t1"), "", auth.ErrUnknownTenant},
		"tenants only, none named": {&auth.Gate{Tenants: gate.Tenants}, header("Authorization", ownToken), "", auth.ErrUnknownTenant},
	} {
		t.Run(name, func(t *testing.T) {
			id, err := tc.gate.Authenticate(t.Context(), tc.h)
			if !errors.Is(err, tc.want) || err == nil && id.Tenant != tc.tenant {
				t.Errorf("Authenticate = %+v, %v; want tenant %q, error %v", id, err, tc.tenant, tc.want)
			}
		})
	}
	if id, err := new(auth.Gate).Authenticate(t.Context(), header()); id != nil || err != nil {
		t.Errorf("a gate without keys: %v, %v; want everybody let in", id, err)
	}
	id, err := gate.Authenticate(t.Context(), header("Authorization", tenantToken, auth.TenantID, "t1"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := gate.Renew(t.Context(), id, strings.TrimPrefix(ownToken, "Bearer ")); !errors.Is(err, auth.ErrInvalid) {
		t.Errorf("a tenant renewed with another's token: %v", err)
	}
	if again, err := gate.Renew(t.Context(), id, strings.TrimPrefix(tenantToken, "Bearer ")); err != nil || again.Tenant != "t1" {
		t.Errorf("Renew = %+v, %v", again, err)
	}
}

func FuzzVerify(f *testing.F) {
	b64 := base64.RawURLEncoding.EncodeToString
	for _, payload := range []string{`{"exp":99999999999}`, `{"exp":"x"}`, `{"piko":{"role":[]}}`, `[]`, `{`, `{"a":{"b":[{"c":1}]}}`} {
		f.Add(b64([]byte(`{"alg":"HS256"}`)), b64([]byte(payload)), "x")
		f.Add(b64([]byte(payload)), b64([]byte(payload)), "")
	}
	v, err := auth.New(config.Auth{HMACSecretKey: config.NewSecret(secret)}, auth.Options{})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, a, b, c string) {
		if id, err := v.Verify(t.Context(), a+"."+b+"."+c); err == nil {
			t.Errorf("a token that nobody signed is valid: %+v", id)
		}
	})
}

func BenchmarkVerifyRemembered(b *testing.B) {
	v, err := auth.New(config.Auth{HMACSecretKey: config.NewSecret(secret)}, auth.Options{})
	if err != nil {
		b.Fatal(err)
	}
	token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, good()).SignedString([]byte(secret))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.Verify(b.Context(), token); err != nil {
			b.Fatal(err)
		}
	}
}

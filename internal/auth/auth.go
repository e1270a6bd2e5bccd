// Package auth decides who the bearer of a token is and what it may offer or reach.
//
// A [Verifier] holds the keys of one listener or tenant and turns a request's header into an [Identity], or into an
// error that says which answer the caller deserves. A [Gate] chooses the verifier by tenant.
//
// Tokens are JSON Web Tokens (RFC 7519) signed with a key from the settings or from a key set (JWKS, RFC 7517). The
// checks follow RFC 8725: the algorithms are those of the configured keys only, an algorithm is bound to its kind of
// key, and the token's own header never leads to a key. Beyond what the JWT library checks, a token needs an expiry
// unless the settings say otherwise, must not carry critical extensions (RFC 7515, 4.1.11) or a name twice, and has at most [MaxToken] bytes.
//
// Nothing here logs, and no error text repeats a token. All methods are safe for concurrent use.
package auth

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/pikoproxy/piko/internal/config"
)

// MaxToken is the longest token that is looked at, in bytes.
const MaxToken = 8 << 10

// leeway is how far the clocks of issuer and node may differ.
const leeway = 10 * time.Second

// The reasons for which [Verifier.Authenticate] refuses. A caller matches them with errors.Is and answers 401, but for
// [ErrUnavailable], which is no fault of the bearer: 503.
var (
	ErrMissing       = errors.New("no token")
	ErrMalformed     = errors.New("authorization is malformed")
	ErrScheme        = errors.New("authorization is not a bearer token")
	ErrInvalid       = errors.New("token is not valid")
	ErrExpired       = errors.New("token has expired")
	ErrRevoked       = errors.New("token has been revoked")
	ErrUnknownTenant = errors.New("tenant is unknown")
	ErrNotPermitted  = errors.New("token does not permit this")
	ErrUnavailable   = errors.New("keys are not available")
)

// Role is what a token is good for.
type Role string

// The roles that a token may be limited to, one for each listener that asks for tokens.
const (
	Client   Role = "client"
	Agent    Role = "agent"
	Operator Role = "admin"
)

// Options are what a [Verifier] needs beside the settings.
type Options struct {
	// Section is the key of the settings' section, such as "proxy.auth", for errors to name; may be empty.
	Section string
	// Role is the listener's: a token that names roles must name this one.
	Role Role
	// Version is sent as part of User-Agent when a key set is fetched.
	Version string
	// Previous is the verifier in whose place this one will be put, if any. What it has fetched of the same key set goes
	// on being used, so that a change of settings is no outage.
	Previous *Verifier
	// Now is the clock that token times are held against; nil is time.Now.
	Now func() time.Time
}

// Verifier verifies the tokens of one listener or tenant.
type Verifier struct {
	settings config.Auth
	role     Role
	now      func() time.Time
	parser   *jwt.Parser
	static   staticKeys
	set      *keySet // nil without JWKS
	denylist map[string]bool
	known    cache
}

// New returns a verifier for the settings, or nil if they ask for no tokens. It reads the keys but does not touch the
// network: a key set is fetched by [Verifier.Run]. Errors are, or join, [config.Problem] values.
func New(settings config.Auth, o Options) (*Verifier, error) {
	if !settings.Enabled() {
		return nil, nil //nolint:nilnil // a nil verifier is the documented answer for "no tokens asked for"
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	v := &Verifier{settings: settings, role: o.Role, now: o.Now, denylist: map[string]bool{}}
	for _, entry := range settings.Denylist {
		v.denylist[entry] = true
	}
	var err error
	if v.static, err = parseKeys(o.Section, settings); err != nil {
		return nil, err
	}
	methods := v.static.methods()
	if settings.JWKS.URL != "" {
		if v.set, err = newKeySet(settings.JWKS, o); err != nil {
			return nil, err
		}
		if p := o.Previous; p != nil && p.set != nil && p.settings.JWKS.URL == settings.JWKS.URL {
			v.set.inherit(p.set)
		}
		methods = append(methods, setMethods()...)
	}
	slices.Sort(methods)
	options := []jwt.ParserOption{
		jwt.WithValidMethods(slices.Compact(methods)), jwt.WithIssuedAt(),
		jwt.WithLeeway(leeway), jwt.WithStrictDecoding(), jwt.WithTimeFunc(o.Now),
	}
	if settings.RequireExp {
		options = append(options, jwt.WithExpirationRequired())
	}
	if settings.Audience != "" {
		options = append(options, jwt.WithAudience(settings.Audience))
	}
	if settings.Issuer != "" {
		options = append(options, jwt.WithIssuer(settings.Issuer))
	}
	v.parser = jwt.NewParser(options...)
	return v, nil
}

// Run keeps the key set fresh until ctx ends. Without a key set, or for a nil verifier, it only waits.
func (v *Verifier) Run(ctx context.Context) error {
	if v == nil || v.set == nil {
		<-ctx.Done()
		return nil
	}
	return v.set.run(ctx)
}

// Ready returns nil when tokens can be verified, else an error that wraps [ErrUnavailable] and says why not.
func (v *Verifier) Ready() error {
	if v == nil || v.set == nil {
		return nil
	}
	_, err := v.set.current()
	return err
}

// KeysAge returns for how long the key set has not been fetched; false if there is no key set, or none was fetched yet.
func (v *Verifier) KeysAge() (time.Duration, bool) {
	if v == nil || v.set == nil {
		return 0, false
	}
	return v.set.age()
}

// Trouble returns why the last fetch of the key set did not succeed, or nil. Tokens may be verified all the same, with the
// keys of an earlier one.
func (v *Verifier) Trouble() error {
	if v == nil || v.set == nil {
		return nil
	}
	if text := v.set.source.failed.Load(); text != nil {
		return fmt.Errorf("fetch key set %s: %s", v.set.source.name(), *text)
	}
	return nil
}

// Authenticate returns who sent a request with this header. A nil verifier asks nobody: it returns a nil identity,
// which permits everything. It may wait for one fetch of the key set when a token names a key that is not known yet.
func (v *Verifier) Authenticate(ctx context.Context, h http.Header) (*Identity, error) {
	if v == nil {
		return nil, nil //nolint:nilnil // a nil identity is the documented answer for "no tokens asked for"
	}
	token, err := bearer(h)
	if err != nil {
		return nil, err
	}
	return v.Verify(ctx, token)
}

// Verify returns whose a token is. It is [Verifier.Authenticate] for a token that came by another way than a header.
func (v *Verifier) Verify(ctx context.Context, token string) (*Identity, error) {
	generation := v.generation()
	if id := v.known.get(token, generation); id != nil {
		if id.expired(v.now()) {
			return nil, ErrExpired
		}
		// Remembering a verdict must not make the key live longer than the set that it is from.
		if err := v.Ready(); err != nil && !v.static.holds(id.key) {
			return nil, err
		}
		return id, nil
	}
	id, err := v.verify(ctx, token)
	if err != nil {
		return nil, err
	}
	v.known.put(token, generation, id)
	return id, nil
}

func (v *Verifier) verify(ctx context.Context, token string) (*Identity, error) {
	if err := precheck(token); err != nil {
		return nil, err
	}
	var c claims
	var keys jwt.VerificationKeySet
	parsed, err := v.parser.ParseWithClaims(token, &c, func(t *jwt.Token) (_ any, err error) {
		keys, err = v.key(ctx, t)
		return keys, err
	})
	switch {
	case err == nil:
	case errors.Is(err, ErrUnavailable):
		return nil, err
	case errors.Is(err, jwt.ErrTokenExpired) && !errors.Is(err, jwt.ErrTokenSignatureInvalid):
		return nil, fmt.Errorf("%w at %s", ErrExpired, c.ExpiresAt.UTC().Format(time.RFC3339))
	default:
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return v.identify(&c, signer(parsed, keys.Keys))
}

// identify applies what the settings ask of the claims beyond the registered ones.
func (v *Verifier) identify(c *claims, key fingerprint) (*Identity, error) {
	if v.denied(c.ID, c.Subject) {
		return nil, ErrRevoked
	}
	if len(c.Piko.Roles) > 0 && !slices.Contains(c.Piko.Roles, string(v.role)) {
		return nil, fmt.Errorf("%w: it is not for role %q", ErrNotPermitted, v.role)
	}
	id := &Identity{
		Subject: c.Subject, TokenID: c.ID, Issuer: c.Issuer,
		everything: len(c.Piko.Endpoints) == 0, key: key, spread: new(atomic.Uint32),
	}
	if c.ExpiresAt != nil {
		id.Expires = c.ExpiresAt.Time
	}
	if id.everything && v.settings.RequireEndpoints {
		return nil, fmt.Errorf("%w: it names no endpoints", ErrNotPermitted)
	}
	for _, e := range c.Piko.Endpoints {
		id.endpoints = append(id.endpoints, lower(e))
	}
	return id, nil
}

// key returns what verifies t. The algorithm chooses the kind of key; the token's kid chooses within a key set only.
func (v *Verifier) key(ctx context.Context, t *jwt.Token) (jwt.VerificationKeySet, error) {
	keys := v.static.forMethod(t.Method)
	if v.set == nil {
		return keys, nil
	}
	fetched, err := v.set.find(ctx, t)
	if err != nil && len(keys.Keys) == 0 {
		return keys, err
	}
	keys.Keys = append(keys.Keys, fetched...)
	if len(keys.Keys) == 0 {
		return keys, errors.New("no key fits its kid and alg")
	}
	return keys, nil
}

// generation changes when keys change, so that a verdict under old keys is not remembered under new ones.
func (v *Verifier) generation() uint64 {
	if v.set == nil {
		return 0
	}
	return v.set.generation()
}

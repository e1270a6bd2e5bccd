package auth

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/golang-jwt/jwt/v5"

	"github.com/pikoproxy/piko/internal/config"
)

const (
	maxKeyID   = 256              // bytes of a kid
	maxKeys    = 100              // keys of one set
	maxStale   = 24 * time.Hour   // how long fetched keys are good while the key server does not answer
	minRefresh = 30 * time.Second // between two fetches that tokens with an unknown kid can cause
	minRetry   = time.Second      // after a fetch that did not succeed; doubles up to maxRetry
	maxRetry   = 30 * time.Second
)

// keySet is a key set that is fetched again and again. Keys stay good for maxStale when the key server is away; a key
// that is no longer in the set is gone with the next fetch.
type keySet struct {
	source source
	ttl    time.Duration
	now    func() time.Time
	keys   atomic.Pointer[fetched] // nil before the first fetch
	asked  chan struct{}           // capacity 1: a token names a key we do not know

	mu      sync.Mutex
	refresh time.Time     // when an unknown kid last caused a fetch
	settled chan struct{} // closed and replaced after each fetch, good or bad
}

// fetched is one state of a key set; it does not change.
type fetched struct {
	at         time.Time
	etag       string // of the answer that the keys came in; "": it had none
	generation uint64
	keys       []jose.JSONWebKey
	prints     map[fingerprint]bool // of keys
}

// setMethods are the algorithms that keys of a set may be used with. There is no HMAC: a set is public.
func setMethods() []string {
	return []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
}

func newKeySet(c config.JWKS, o Options) (*keySet, error) {
	problem := config.Problem{Key: "jwks.url", Want: "https://..., http:// on loopback, or file:///path", Have: "something else"}
	if o.Section != "" {
		problem.Key = o.Section + "." + problem.Key
	}
	u, err := url.Parse(string(c.URL))
	if err != nil {
		return nil, problem
	}
	s, ok := newSource(u, time.Duration(c.Timeout), o.Version)
	if !ok {
		problem.Have = strconv.Quote(c.URL.String())
		return nil, problem
	}
	return &keySet{
		source: s, ttl: time.Duration(c.CacheTTL), now: o.Now,
		asked: make(chan struct{}, 1), settled: make(chan struct{}),
	}, nil
}

// inherit takes over what another one has fetched from the same place.
func (s *keySet) inherit(from *keySet) { s.keys.Store(from.keys.Load()) }

// run fetches until ctx ends: when keys are due, when a token names an unknown key, and after a failure with growing
// pauses.
func (s *keySet) run(ctx context.Context) error {
	retry := minRetry
	for {
		wait := s.fetch(ctx, &retry)
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		case <-s.asked:
			timer.Stop()
		}
	}
}

// fetch gets the set once and returns when it is due again.
func (s *keySet) fetch(ctx context.Context, retry *time.Duration) time.Duration {
	defer s.settle()
	old := s.keys.Load()
	if old == nil {
		old = &fetched{}
	}
	set, etag, err := s.source.fetch(ctx, old.etag)
	if err != nil {
		wait := *retry/2 + rand.N(*retry/2+1) //nolint:gosec // jitter, no secret
		*retry = min(2**retry, maxRetry)
		return wait
	}
	*retry = minRetry
	next := &fetched{at: s.now(), etag: etag, generation: old.generation, keys: old.keys, prints: old.prints}
	if set != nil { // nil: not modified
		next.generation++
		next.keys = usable(set)
		next.prints = make(map[fingerprint]bool, len(next.keys))
		for _, k := range next.keys {
			next.prints[fingerprintOf(k.Key)] = true
		}
	}
	s.keys.Store(next)
	return s.ttl - s.ttl/10 + rand.N(s.ttl/5+1) //nolint:gosec // jitter, no secret
}

func (s *keySet) settle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.settled)
	s.settled = make(chan struct{})
}

// usable returns the keys that can verify a signature of ours: public, for signing, of a kind and size we take.
func usable(set *jose.JSONWebKeySet) []jose.JSONWebKey {
	var keys []jose.JSONWebKey
	for _, k := range set.Keys {
		if len(keys) == maxKeys {
			break
		}
		if k.Use != "" && k.Use != "sig" || len(k.KeyID) > maxKeyID {
			continue
		}
		switch key := k.Key.(type) {
		case *rsa.PublicKey:
			if checkRSA(key) != nil {
				continue
			}
		case *ecdsa.PublicKey, ed25519.PublicKey:
		default: // private and symmetric keys have no business in a public set
			continue
		}
		keys = append(keys, k)
	}
	return keys
}

// current returns the keys while they are good.
func (s *keySet) current() (*fetched, error) {
	f := s.keys.Load()
	if f == nil {
		return nil, fmt.Errorf("%w: key set %s was not fetched yet%s", ErrUnavailable, s.source.name(), s.source.trouble())
	}
	if age := s.now().Sub(f.at); age > maxStale {
		return nil, fmt.Errorf("%w: key set %s was last fetched %s ago%s",
			ErrUnavailable, s.source.name(), age.Round(time.Second), s.source.trouble())
	}
	return f, nil
}

func (s *keySet) age() (time.Duration, bool) {
	f := s.keys.Load()
	if f == nil {
		return 0, false
	}
	return s.now().Sub(f.at), true
}

func (s *keySet) generation() uint64 {
	if f := s.keys.Load(); f != nil {
		return f.generation
	}
	return 0
}

// find returns the keys that fit a token. A kid that is not known causes one fetch, shared by all who wait for it and
// spaced by minRefresh, so that a flood of made-up kids costs the key server nothing.
func (s *keySet) find(ctx context.Context, t *jwt.Token) ([]jwt.VerificationKey, error) {
	kid, ok := t.Header["kid"].(string)
	if _, given := t.Header["kid"]; given && !ok || len(kid) > maxKeyID {
		return nil, errors.New("kid is not a string of at most 256 bytes")
	}
	f, err := s.current()
	if err != nil {
		return nil, err
	}
	if keys := f.fit(kid, t.Method); len(keys) > 0 {
		return keys, nil
	}
	if kid == "" || !s.again(ctx) {
		return nil, nil
	}
	if f, err = s.current(); err != nil {
		return nil, err
	}
	return f.fit(kid, t.Method), nil
}

// again asks for one fetch and waits for its end; it reports false when the last such fetch was too short ago.
func (s *keySet) again(ctx context.Context) bool {
	s.mu.Lock()
	settled, now := s.settled, s.now()
	due := s.refresh.IsZero() || now.Sub(s.refresh) >= minRefresh
	if due {
		s.refresh = now
	}
	s.mu.Unlock()
	if !due {
		return false
	}
	select {
	case s.asked <- struct{}{}:
	default:
	}
	select {
	case <-settled:
		return true
	case <-ctx.Done():
		return false
	}
}

// fit returns the keys that a token with this kid and algorithm may be verified with. Without a kid every key of the
// right kind is tried.
func (f *fetched) fit(kid string, m jwt.SigningMethod) []jwt.VerificationKey {
	var keys []jwt.VerificationKey
	for _, k := range f.keys {
		if kid != "" && k.KeyID != kid || k.Algorithm != "" && k.Algorithm != m.Alg() {
			continue
		}
		if fits(k.Key, m) {
			keys = append(keys, k.Key)
		}
	}
	return slices.Clip(keys)
}

func fits(key any, m jwt.SigningMethod) bool {
	switch m := m.(type) {
	case *jwt.SigningMethodRSA, *jwt.SigningMethodRSAPSS:
		_, ok := key.(*rsa.PublicKey)
		return ok
	case *jwt.SigningMethodECDSA:
		k, ok := key.(*ecdsa.PublicKey)
		return ok && k.Curve.Params().BitSize == m.CurveBits
	case *jwt.SigningMethodEd25519:
		_, ok := key.(ed25519.PublicKey)
		return ok
	}
	return false
}

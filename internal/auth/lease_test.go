package auth_test

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/pikoproxy/piko/internal/auth"
	"github.com/pikoproxy/piko/internal/config"
)

func TestJudge(t *testing.T) {
	now := time.Now()
	settings := config.Auth{
		HMACSecretKey: config.NewSecret(secret), DisconnectOnExpiry: true, Denylist: []string{"stolen", "mallory"},
	}
	clock := func() time.Time { return now }
	issuer := verifier(t, config.Auth{HMACSecretKey: config.NewSecret(secret)}, auth.Options{Now: clock})
	identity := func(changes ...any) *auth.Identity {
		id, err := issuer.Verify(t.Context(), sign(t, jwt.SigningMethodHS256, []byte(secret), good(changes...)))
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	strict := verifier(t, settings, auth.Options{Now: clock})
	lenient := settings
	lenient.DisconnectOnExpiry = false
	otherKey := settings
	otherKey.HMACSecretKey = config.NewSecret("another secret of thirty-two byte")
	for name, tc := range map[string]struct {
		v    *auth.Verifier
		id   *auth.Identity
		skew time.Duration
		want error
	}{
		"good":                        {strict, identity(), 0, nil},
		"expired":                     {strict, identity(), time.Hour + 11*time.Second, auth.ErrExpired},
		"expired, within the leeway":  {strict, identity(), time.Hour + 9*time.Second, nil},
		"expired, and that is nought": {verifier(t, lenient, auth.Options{Now: clock}), identity(), 2 * time.Hour, nil},
		"no expiry":                   {strict, identity("exp", nil), 1000 * time.Hour, nil},
		"id denied":                   {strict, identity("jti", "stolen"), 0, auth.ErrRevoked},
		"subject denied":              {strict, identity("sub", "mallory"), 0, auth.ErrRevoked},
		"denied and expired":          {strict, identity("sub", "mallory"), 2 * time.Hour, auth.ErrRevoked},
		"no names":                    {strict, identity("sub", nil, "jti", nil), 0, nil},
		"key removed":                 {verifier(t, otherKey, auth.Options{Now: clock}), identity(), 0, auth.ErrInvalid},
		"tokens switched on":          {strict, nil, 0, auth.ErrMissing},
		"tokens switched off":         {nil, identity("sub", "mallory"), 0, nil},
	} {
		t.Run(name, func(t *testing.T) {
			now = now.Add(tc.skew)
			defer func() { now = now.Add(-tc.skew) }()
			if err := tc.v.Judge(tc.id); !errors.Is(err, tc.want) || tc.want == nil && err != nil {
				t.Errorf("Judge: %v, want %v", err, tc.want)
			}
		})
	}
	if _, err := strict.Verify(t.Context(), sign(t, jwt.SigningMethodHS256, []byte(secret), good("jti", "stolen"))); !errors.Is(err, auth.ErrRevoked) {
		t.Errorf("a denied token: %v, want it refused", err)
	}
}

func TestGateJudgesByTenant(t *testing.T) {
	v := verifier(t, config.Auth{HMACSecretKey: config.NewSecret(secret)}, auth.Options{})
	gate := &auth.Gate{Tenants: map[string]*auth.Verifier{"t1": v}}
	token := "Bearer " + sign(t, jwt.SigningMethodHS256, []byte(secret), good())
	id, err := gate.Authenticate(t.Context(), header("Authorization", token, auth.TenantID, "t1"))
	if err != nil {
		t.Fatal(err)
	}
	if err := gate.Judge(id); err != nil {
		t.Error(err)
	}
	if err := new(auth.Gate).Judge(id); !errors.Is(err, auth.ErrUnknownTenant) {
		t.Errorf("after the tenant has gone: %v", err)
	}
	if err := gate.Judge(nil); !errors.Is(err, auth.ErrMissing) {
		t.Errorf("one who names no tenant where there are some: %v", err)
	}
}

// ender counts what it is told.
type ender struct {
	ended atomic.Int32
	held  atomic.Bool // whether it may be told
	t     *testing.T
}

func (e *ender) End(error) {
	e.ended.Add(1)
	if !e.held.Load() {
		e.t.Error("ended after the lease was released")
	}
}

func TestLeasesEndOnceAndNotAfterTheirRelease(t *testing.T) {
	v := verifier(t, config.Auth{HMACSecretKey: config.NewSecret(secret)}, auth.Options{})
	id, err := v.Verify(t.Context(), sign(t, jwt.SigningMethodHS256, []byte(secret), good()))
	if err != nil {
		t.Fatal(err)
	}
	var over atomic.Bool
	leases := auth.NewLeases(func(*auth.Identity) error {
		if over.Load() {
			return auth.ErrRevoked
		}
		return nil
	})
	var kept auth.Lease
	stays := &ender{t: t}
	stays.held.Store(true)
	leases.Hold(&kept, id, stays)
	leases.Hold(new(auth.Lease), nil, &ender{t: t}) // nobody's
	(*auth.Leases)(nil).Hold(new(auth.Lease), id, &ender{t: t})
	leases.Sweep()
	if stays.ended.Load() > 0 {
		t.Fatal("ended what may go on")
	}
	over.Store(true)
	var work sync.WaitGroup
	for range 4 {
		work.Go(func() {
			for range 2000 {
				var l auth.Lease
				e := &ender{t: t}
				e.held.Store(true)
				leases.Hold(&l, id, e)
				l.Release()
				e.held.Store(false)
				l.Release()
				if n := e.ended.Load(); n > 1 {
					t.Errorf("ended %d times", n)
				}
			}
		})
		work.Go(func() {
			for range 500 {
				leases.Sweep()
			}
		})
	}
	work.Wait()
	if n := stays.ended.Load(); n != 1 {
		t.Errorf("ended %d times, want once", n)
	}
	kept.Release()
}

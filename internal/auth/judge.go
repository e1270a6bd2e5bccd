package auth

import (
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"strings"

	"github.com/golang-jwt/jwt/v5"
)

// fingerprint names a key without holding it.
type fingerprint [sha256.Size]byte

func fingerprintOf(key any) fingerprint {
	if secret, ok := key.([]byte); ok {
		return sha256.Sum256(append([]byte("hmac "), secret...))
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return fingerprint{} // can't be: other keys are not taken
	}
	return sha256.Sum256(der)
}

// Judge returns nil while what the bearer of a token has begun may go on, else why it must end: [ErrRevoked] when the
// token is on the deny list, [ErrExpired] when the settings ask for it and the token has expired, [ErrInvalid] when the
// key that verified it is not there any more, and [ErrMissing] for a nil identity, which asks for tokens being switched
// on. It does not block. A nil verifier lets everything go on.
func (v *Verifier) Judge(id *Identity) error {
	switch {
	case v == nil:
		return nil
	case id == nil:
		return ErrMissing
	case v.denied(id.TokenID, id.Subject):
		return ErrRevoked
	case !v.holds(id.key):
		return fmt.Errorf("%w: its key has been removed", ErrInvalid)
	case v.settings.DisconnectOnExpiry && id.expired(v.now()):
		return ErrExpired
	}
	return nil
}

// Judge is [Verifier.Judge] by the keys that the identity was verified with. A tenant that is not there any more has
// no keys: [ErrUnknownTenant].
func (g *Gate) Judge(id *Identity) error {
	switch {
	case id == nil && g.Own == nil && len(g.Tenants) > 0:
		return ErrMissing // whoever names no tenant is not let in any more
	case id == nil || id.Tenant == "":
		return g.Own.Judge(id)
	}
	v := g.Tenants[id.Tenant]
	if v == nil {
		return ErrUnknownTenant
	}
	return v.Judge(id)
}

// denied reports whether a token with these claims, each perhaps empty, is on the deny list.
func (v *Verifier) denied(tokenID, subject string) bool {
	if len(v.denylist) == 0 {
		return false
	}
	return tokenID != "" && v.denylist[tokenID] || subject != "" && v.denylist[subject]
}

// holds reports whether a key is still there. While a key set has never been fetched nothing is known to be gone.
func (v *Verifier) holds(key fingerprint) bool {
	if v.static.holds(key) {
		return true
	}
	if v.set == nil {
		return false
	}
	f := v.set.keys.Load()
	return f == nil || f.prints[key]
}

// signer returns the one of several keys that has signed a token which is known to be good.
func signer(t *jwt.Token, keys []jwt.VerificationKey) fingerprint {
	if len(keys) == 1 {
		return fingerprintOf(keys[0])
	}
	signed := t.Raw[:strings.LastIndexByte(t.Raw, '.')]
	for _, k := range keys {
		if t.Method.Verify(signed, t.Signature, k) == nil {
			return fingerprintOf(k)
		}
	}
	return fingerprint{}
}

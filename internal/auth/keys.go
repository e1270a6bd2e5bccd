package auth

import (
	"crypto/rsa"
	"errors"
	"fmt"

	"github.com/golang-jwt/jwt/v5"

	"github.com/pikoproxy/piko/internal/config"
)

// minSecret is the shortest HMAC secret in bytes: the output of SHA-256 (RFC 7518, 3.2).
const minSecret = 32

// minRSA and maxRSA bound an RSA modulus in bits: below it is weak (RFC 7518, 3.3), above it is a way to burn our CPU.
const (
	minRSA = 2048
	maxRSA = 8192
)

// staticKeys are the keys from the settings; each may be missing.
type staticKeys struct {
	hmac                []byte
	rsa, ecdsa, ed25519 any
}

func parseKeys(c config.Auth) (k staticKeys, err error) {
	if c.HMACSecretKey.IsSet() {
		k.hmac = []byte(c.HMACSecretKey.Reveal())
		if len(k.hmac) < minSecret {
			return k, fmt.Errorf("hmac_secret_key: want at least %d bytes, have %d", minSecret, len(k.hmac))
		}
		if c.JWKS.URL != "" {
			return k, errors.New("hmac_secret_key: want no shared secret beside jwks.url; remove one of the two")
		}
	}
	if c.RSAPublicKey != "" {
		key, err := jwt.ParseRSAPublicKeyFromPEM([]byte(c.RSAPublicKey))
		if err != nil {
			return k, fmt.Errorf("rsa_public_key: want an RSA public key in PEM form: %w", err)
		}
		if err := checkRSA(key); err != nil {
			return k, fmt.Errorf("rsa_public_key: %w", err)
		}
		k.rsa = key
	}
	if c.ECDSAPublicKey != "" {
		if k.ecdsa, err = jwt.ParseECPublicKeyFromPEM([]byte(c.ECDSAPublicKey)); err != nil {
			return k, fmt.Errorf("ecdsa_public_key: want an EC public key in PEM form: %w", err)
		}
	}
	if c.Ed25519PublicKey != "" {
		if k.ed25519, err = jwt.ParseEdPublicKeyFromPEM([]byte(c.Ed25519PublicKey)); err != nil {
			return k, fmt.Errorf("ed25519_public_key: want an Ed25519 public key in PEM form: %w", err)
		}
	}
	return k, nil
}

func checkRSA(key *rsa.PublicKey) error {
	if n := key.N.BitLen(); n < minRSA || n > maxRSA {
		return fmt.Errorf("want an RSA key of %d to %d bits, have %d", minRSA, maxRSA, n)
	}
	return nil
}

// methods returns the algorithms that the keys are good for.
func (k staticKeys) methods() (algs []string) {
	if k.hmac != nil {
		algs = append(algs, "HS256", "HS384", "HS512")
	}
	if k.rsa != nil {
		algs = append(algs, "RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
	}
	if k.ecdsa != nil {
		algs = append(algs, "ES256", "ES384", "ES512")
	}
	if k.ed25519 != nil {
		algs = append(algs, "EdDSA")
	}
	return algs
}

// forMethod returns the key of the kind that an algorithm needs, and never one of another kind: a public key must not
// serve as an HMAC secret.
func (k staticKeys) forMethod(m jwt.SigningMethod) jwt.VerificationKeySet {
	var key any
	switch m.(type) {
	case *jwt.SigningMethodHMAC:
		if k.hmac != nil {
			key = k.hmac
		}
	case *jwt.SigningMethodRSA, *jwt.SigningMethodRSAPSS:
		key = k.rsa
	case *jwt.SigningMethodECDSA:
		key = k.ecdsa
	case *jwt.SigningMethodEd25519:
		key = k.ed25519
	}
	if key == nil {
		return jwt.VerificationKeySet{}
	}
	return jwt.VerificationKeySet{Keys: []jwt.VerificationKey{key}}
}

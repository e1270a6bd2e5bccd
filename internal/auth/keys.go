package auth

import (
	"crypto/rsa"
	"errors"
	"fmt"
	"strconv"

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
	prints              map[fingerprint]bool
}

func (k staticKeys) holds(key fingerprint) bool { return k.prints[key] }

func parseKeys(section string, c config.Auth) (staticKeys, error) {
	k, err := readKeys(section, c)
	if err != nil {
		return k, err
	}
	k.prints = map[fingerprint]bool{}
	if k.hmac != nil {
		k.prints[fingerprintOf(k.hmac)] = true
	}
	for _, key := range []any{k.rsa, k.ecdsa, k.ed25519} {
		if key != nil {
			k.prints[fingerprintOf(key)] = true
		}
	}
	return k, err
}

// readKeys reports a key that is no good as a [config.Problem], whose key is the setting's in section.
func readKeys(section string, c config.Auth) (k staticKeys, err error) {
	bad := func(name string, file config.File, want, have string) {
		if file != "" {
			name += "_file" // that is what the operator wrote
		}
		if section != "" {
			name = section + "." + name
		}
		err = errors.Join(err, config.Problem{Key: name, Want: want, Have: have})
	}
	const other = "something else"
	if c.HMACSecretKey.IsSet() {
		k.hmac = []byte(c.HMACSecretKey.Reveal())
		if len(k.hmac) < minSecret {
			bad("hmac_secret_key", c.HMACSecretKeyFile, fmt.Sprintf("at least %d bytes", minSecret), strconv.Itoa(len(k.hmac)))
		}
		if c.JWKS.URL != "" {
			bad("hmac_secret_key", c.HMACSecretKeyFile, "no shared secret beside jwks.url", "both; remove one of the two")
		}
	}
	if c.RSAPublicKey != "" {
		key, e := jwt.ParseRSAPublicKeyFromPEM([]byte(c.RSAPublicKey))
		if e != nil {
			bad("rsa_public_key", c.RSAPublicKeyFile, "an RSA public key in PEM form", other)
		} else if e := checkRSA(key); e != nil {
			bad("rsa_public_key", c.RSAPublicKeyFile, fmt.Sprintf("an RSA key of %d to %d bits", minRSA, maxRSA),
				fmt.Sprintf("one of %d", key.N.BitLen()))
		}
		k.rsa = key
	}
	var e error
	if c.ECDSAPublicKey != "" {
		if k.ecdsa, e = jwt.ParseECPublicKeyFromPEM([]byte(c.ECDSAPublicKey)); e != nil {
			bad("ecdsa_public_key", c.ECDSAPublicKeyFile, "an EC public key in PEM form", other)
		}
	}
	if c.Ed25519PublicKey != "" {
		if k.ed25519, e = jwt.ParseEdPublicKeyFromPEM([]byte(c.Ed25519PublicKey)); e != nil {
			bad("ed25519_public_key", c.Ed25519PublicKeyFile, "an Ed25519 public key in PEM form", other)
		}
	}
	return k, err
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

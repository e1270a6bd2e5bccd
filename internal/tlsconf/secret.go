package tlsconf

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"time"
)

// secretRounds makes each guess at the secret cost a tenth of a second: whoever connects to a node is shown the public key,
// and could try secrets against it at home.
const secretRounds = 600_000

// errStranger says that the other end does not know the secret.
var errStranger = errors.New("the other end does not have the cluster's secret")

// Secret returns the configurations of connections between nodes that share a secret, for the accepting and for the
// connecting side. The secret and the name of the cluster make a key pair, the same on each node. Each side shows a
// certificate of that key and accepts no other, so both prove that they know the secret, and neither sends it. TLS is
// 1.3; names and times in certificates mean nothing. It takes a tenth of a second.
func Secret(secret, name string, protocols ...string) (server, client *tls.Config, err error) {
	stretched, err := pbkdf2.Key(sha256.New, secret, []byte("piko cluster "+name), secretRounds, 32)
	if err != nil {
		return nil, nil, fmt.Errorf("stretch the cluster's secret: %w", err)
	}
	seed, err := hkdf.Key(sha256.New, stretched, nil, "piko peer identity v1", ed25519.SeedSize)
	if err != nil {
		return nil, nil, fmt.Errorf("derive the cluster's key: %w", err)
	}
	key := ed25519.NewKeyFromSeed(seed)
	public := key.Public().(ed25519.PublicKey) //nolint:forcetypeassert // that is what an Ed25519 key has
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "piko node"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, key)
	if err != nil {
		return nil, nil, fmt.Errorf("certify the cluster's key: %w", err)
	}
	common := &tls.Config{
		MinVersion:   tls.VersionTLS13,
		NextProtos:   protocols,
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		VerifyConnection: func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) > 0 && public.Equal(s.PeerCertificates[0].PublicKey) {
				return nil
			}
			return errStranger
		},
		SessionTicketsDisabled: true, // sessions between nodes are few and long
	}
	server, client = common.Clone(), common
	server.ClientAuth, server.VerifyPeerCertificate = tls.RequireAnyClientCert, modest //nolint:gosec // no session is resumed
	client.InsecureSkipVerify = true                                                   // VerifyConnection asks for exactly the one key
	return server, client, nil
}

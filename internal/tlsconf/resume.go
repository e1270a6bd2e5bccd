package tlsconf

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"
)

// ownTickets makes a server's configuration encrypt its session tickets with keys of its own, which crypto/tls makes and
// replaces daily. When it is handed out by GetConfigForClient, crypto/tls would use those of the configuration that asks,
// and they would outlive every change of certificates and CAs.
func ownTickets(c *tls.Config) {
	keys := &tls.Config{MinVersion: c.MinVersion}
	c.WrapSession = keys.EncryptTicket
	c.UnwrapSession = keys.DecryptTicket
}

// resumable returns a check that holds a resumed session to the same CAs as a new one: the certificate that the client
// showed once must be good now.
func resumable(roots *x509.CertPool) func(tls.ConnectionState) error {
	return func(s tls.ConnectionState) error {
		if !s.DidResume {
			return nil // verified a moment ago
		}
		if len(s.PeerCertificates) == 0 {
			return errors.New("a resumed session without a certificate")
		}
		if err := verify(s.PeerCertificates, roots, time.Time{}); err != nil {
			return fmt.Errorf("certificate of a resumed session: %w", err)
		}
		return nil
	}
}

// Expires returns when the first of the certificates that a configuration was built with expires, and how long that one
// is good for in all; false if there is none.
func Expires(c *tls.Config) (at time.Time, life time.Duration, ok bool) {
	if c == nil {
		return at, 0, false
	}
	for _, pair := range c.Certificates {
		if leaf := pair.Leaf; leaf != nil && (!ok || leaf.NotAfter.Before(at)) {
			at, life, ok = leaf.NotAfter, leaf.NotAfter.Sub(leaf.NotBefore), true
		}
	}
	return at, life, ok
}

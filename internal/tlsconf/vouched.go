package tlsconf

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

// The reasons for which what a client certificate has begun must end. A caller matches them with errors.Is.
var (
	ErrCertificateExpired = errors.New("the client's certificate has expired")
	ErrCertificateRefused = errors.New("the client's certificate would not be accepted any more")
)

// Vouched is what a client was let in for: its certificate, or that none was asked for. Who verified it has done so once, at
// the handshake; Judge says whether it would do so again. It is safe for concurrent use.
type Vouched struct {
	chain   []*x509.Certificate // as the client sent it, its own first; none: it showed none
	expires time.Time           // when the first of all that it took to verify it does
	judged  atomic.Pointer[x509.CertPool]
}

// VouchedFor returns what the client of a connection was let in for. The state is nil for plain text.
func VouchedFor(s *tls.ConnectionState) *Vouched {
	v := &Vouched{}
	if s == nil || len(s.PeerCertificates) == 0 {
		return v
	}
	v.chain = s.PeerCertificates
	for _, chain := range s.VerifiedChains { // the one that lasts longest counts
		var first time.Time
		for _, c := range chain {
			if first.IsZero() || c.NotAfter.Before(first) {
				first = c.NotAfter
			}
		}
		if first.After(v.expires) {
			v.expires = first
		}
	}
	return v
}

// Judge returns nil if the client would be let in by a configuration of [Server] at some time, else why not. A nil
// configuration, and one without a client CA, lets everybody in.
func (v *Vouched) Judge(c *tls.Config, at time.Time) error {
	switch {
	case c == nil || c.ClientCAs == nil:
		return nil
	case len(v.chain) == 0:
		return fmt.Errorf("%w: it showed none", ErrCertificateRefused)
	}
	if last := v.judged.Load(); at.Before(v.expires) && (last == c.ClientCAs || last != nil && last.Equal(c.ClientCAs)) {
		return nil // as it was found before
	}
	err := verify(v.chain, c.ClientCAs, at)
	if err == nil {
		v.judged.Store(c.ClientCAs)
		return nil
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		return fmt.Errorf("%w: %w", ErrCertificateExpired, err)
	}
	return fmt.Errorf("%w: %w", ErrCertificateRefused, err)
}

// verify holds a client's certificate against CAs.
func verify(chain []*x509.Certificate, roots *x509.CertPool, at time.Time) error {
	o := x509.VerifyOptions{
		Roots: roots, Intermediates: x509.NewCertPool(), CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	for _, c := range chain[1:] {
		o.Intermediates.AddCert(c)
	}
	_, err := chain[0].Verify(o)
	return err
}

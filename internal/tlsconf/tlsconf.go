// Package tlsconf builds *tls.Config values from the TLS sections of the settings.
//
// What it returns was read and parsed completely: a missing file, a key that does not fit its certificate, an expired
// certificate or an empty CA file is an error now, not at the first handshake. Nothing is read again later; when
// files change, build anew. Returned configurations may be shared between goroutines and must not be changed.
//
// Every error is, or joins, [config.Problem] values that name key and file, so that [config.Source.At] can add the
// line. Which versions, curves and ciphers are good is left to crypto/tls, apart from the oldest version spoken.
package tlsconf

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/pikoproxy/piko/internal/config"
)

// Server returns the configuration of a TLS listener, or nil when the section holds no certificate. Section is the
// section's key, such as "proxy.tls"; protocols are offered by ALPN, most wanted first.
//
// A client that names no host, or one that no certificate is good for, gets the certificate of cert, or the first of
// the list when there is no cert. With a client CA every client must show a certificate that it signed, whatever host it names: a
// name chooses a certificate and nothing else.
func Server(section string, c config.TLS, protocols ...string) (*tls.Config, error) {
	var b builder
	if !c.Enabled() {
		if c.ClientCA != "" {
			b.bad(section+".client_ca", "a certificate beside it", "none")
		}
		return nil, b.err()
	}
	out := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: protocols}
	if c.MinVersion == "1.3" {
		out.MinVersion = tls.VersionTLS13
	}
	if c.Cert != "" {
		out.Certificates = append(out.Certificates, b.pair(section, c.Cert, c.Key))
	}
	for i, more := range c.Certificates {
		out.Certificates = append(out.Certificates, b.pair(fmt.Sprintf("%s.certificates[%d]", section, i), more.Cert, more.Key))
	}
	if c.ClientCA != "" {
		out.ClientCAs, out.ClientAuth = b.pool(section+".client_ca", c.ClientCA), tls.RequireAndVerifyClientCert
		out.VerifyConnection, out.VerifyPeerCertificate = resumable(out.ClientCAs), modest
	}
	if err := b.err(); err != nil {
		return nil, err
	}
	ownTickets(out)
	return out, nil
}

// Client returns the configuration of connections that we open. Without an error it is never nil, so that it may be used
// for an address that turns out to be TLS. Section is the section's key, such as "connect.tls".
func Client(section string, c config.ClientTLS) (*tls.Config, error) {
	var b builder
	out := &tls.Config{
		MinVersion: tls.VersionTLS12,
		ServerName: c.ServerName,
		// The operator asked for it by a key that says insecure, and is warned at every start.
		InsecureSkipVerify: c.InsecureSkipVerify, //nolint:gosec // see above
	}
	if c.Cert != "" || c.Key != "" {
		out.Certificates = []tls.Certificate{b.pair(section, c.Cert, c.Key)}
	}
	if c.CA != "" {
		out.RootCAs = b.pool(section+".ca", c.CA)
	}
	if err := b.err(); err != nil {
		return nil, err
	}
	return out, nil
}

// Peer returns the configurations of connections between nodes, for the accepting and for the connecting side, or nil
// when the section is empty. Both sides show a certificate of the cluster's CA, and TLS is 1.3. Protocols are offered
// by ALPN on both sides.
//
// When server_name is empty, whoever dials sets ServerName on a clone of the client's configuration to the host of the
// peer's address.
func Peer(section string, c config.PeerTLS, protocols ...string) (server, client *tls.Config, err error) {
	if c == (config.PeerTLS{}) {
		return nil, nil, nil
	}
	var b builder
	cert := b.pair(section, c.Cert, c.Key)
	ca := b.pool(section+".ca", c.CA)
	if err := b.err(); err != nil {
		return nil, nil, err
	}
	server = &tls.Config{
		MinVersion:   tls.VersionTLS13,
		NextProtos:   protocols,
		Certificates: []tls.Certificate{cert},
		ClientCAs:    ca,
		ClientAuth:   tls.RequireAndVerifyClientCert,

		VerifyPeerCertificate: modest,
	}
	if name := c.ServerName; name != "" {
		server.VerifyConnection = func(s tls.ConnectionState) error { return s.PeerCertificates[0].VerifyHostname(name) }
	}
	client = &tls.Config{
		MinVersion:   tls.VersionTLS13,
		NextProtos:   protocols,
		Certificates: []tls.Certificate{cert},
		RootCAs:      ca,
		ServerName:   c.ServerName,
	}
	return server, client, nil
}

// builder reads certificates and collects what is wrong with them.
type builder struct{ problems []error }

func (b *builder) bad(key, want, have string) {
	b.problems = append(b.problems, config.Problem{Key: key, Want: want, Have: have})
}

func (b *builder) err() error { return errors.Join(b.problems...) }

// pair reads a certificate and its key.
func (b *builder) pair(section string, cert, key config.File) tls.Certificate {
	certKey, keyKey := section+".cert", section+".key"
	if cert == "" || key == "" {
		b.bad(certKey, keyKey+" beside it", "only one of the two")
		return tls.Certificate{}
	}
	certPEM, okCert := b.read(certKey, cert)
	keyPEM, okKey := b.read(keyKey, key)
	if !okCert || !okKey {
		return tls.Certificate{}
	}
	if n := len(certificates(certPEM)); n == 0 {
		b.bad(certKey, "a certificate in PEM form", fmt.Sprintf("%q, which holds none", cert))
		return tls.Certificate{}
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		// The words of crypto/tls name neither file nor key material.
		b.bad(keyKey, fmt.Sprintf("the private key of %q in PEM form", cert), fmt.Sprintf("%q: %v", key, err))
		return tls.Certificate{}
	}
	if pair.Leaf != nil && time.Now().After(pair.Leaf.NotAfter) {
		b.bad(certKey, "a certificate that is still good",
			fmt.Sprintf("%q, which expired at %s", cert, pair.Leaf.NotAfter.UTC().Format(time.RFC3339)))
	}
	return pair
}

// pool reads CA certificates.
func (b *builder) pool(key string, file config.File) *x509.CertPool {
	if file == "" {
		b.bad(key, "a file with CA certificates in PEM form", "none")
		return nil
	}
	text, ok := b.read(key, file)
	if !ok {
		return nil
	}
	blocks := certificates(text)
	if len(blocks) == 0 {
		b.bad(key, "CA certificates in PEM form", fmt.Sprintf("%q, which holds none", file))
	}
	pool := x509.NewCertPool()
	for i, block := range blocks {
		// AppendCertsFromPEM would leave out what it does not understand, and trust less than the operator wrote.
		cert, err := x509.ParseCertificate(block)
		if err != nil {
			b.bad(key, "CA certificates in PEM form", fmt.Sprintf("%q, certificate %d: %v", file, i+1, err))
			continue
		}
		pool.AddCert(cert)
	}
	return pool
}

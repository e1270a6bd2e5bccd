package server_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/tunnel"
)

// certify writes a certificate for localhost with its key, and returns what trusts it.
func certify(t *testing.T) (cert, key config.File, roots *x509.CertPool) {
	t.Helper()
	return certifyFor(t, time.Hour)
}

// certifyFor is certify with the time for which the certificate is good.
func certifyFor(t *testing.T, life time.Duration) (cert, key config.File, roots *x509.CertPool) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(life), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, kind string, b []byte) config.File {
		file := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}), 0o600); err != nil {
			t.Fatal(err)
		}
		return config.File(file)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots = x509.NewCertPool()
	roots.AddCert(parsed)
	return write("cert.pem", "CERTIFICATE", der), write("key.pem", "PRIVATE KEY", pkcs), roots
}

func TestEveryListenerSpeaksTLS(t *testing.T) {
	cert, key, roots := certify(t)
	n := start(t, func(c *config.Pikod) {
		for _, s := range []*config.TLS{&c.Proxy.TLS, &c.Upstream.TLS, &c.Admin.TLS} {
			s.Cert, s.Key = cert, key
		}
	})
	trust := &tls.Config{RootCAs: roots, ServerName: "localhost", MinVersion: tls.VersionTLS12}
	n.client.Transport = &http.Transport{TLSClientConfig: trust, ForceAttemptHTTP2: true}
	secure := func(listener, path string) string { return "https://" + n.server.Addr(listener).String() + path }

	a, err := tunnel.Dial(t.Context(), tunnel.DialOptions{URL: secure("upstream", ""), TLS: trust})
	if err != nil {
		t.Fatal(err)
	}
	n.serve(a, "a1")
	if err := a.Listen(t.Context(), tunnel.Listen{Endpoint: "web"}); err != nil {
		t.Fatal(err)
	}
	n.get(secure("proxy", "/"), "x-piko-endpoint", "web").want(t, http.StatusOK, "a1")
	n.get(secure("admin", "/status/upstream/endpoints")).want(t, http.StatusOK, `{"web":1}`)
	for _, listener := range []string{"proxy", "upstream", "admin"} {
		if got, err := n.try(n.url(listener, "/health")); err == nil && got.status == http.StatusOK {
			t.Errorf("the %s listener answers plain HTTP with %d", listener, got.status)
		}
	}
}

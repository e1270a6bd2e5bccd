package tlsconf_test

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/tlsconf"
)

// padded returns a certificate of about so many bytes.
func (a *authority) padded(t *testing.T, size int) []byte {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(3), Subject: pkix.Name{CommonName: "padded"}, NotAfter: time.Now().Add(time.Hour),
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Value: make([]byte, size)}},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestLongChainsOfClientsAreRefused(t *testing.T) {
	a := newAuthority(t, "ca")
	cert, key := a.issue(t, time.Hour, "one.test")
	clientCert, clientKey := a.issue(t, time.Hour, "agent")
	servers := map[string]*tls.Config{
		"listener": must[*tls.Config](t)(tlsconf.Server("upstream.tls", config.TLS{Cert: cert, Key: key, ClientCA: a.file})),
	}
	var err error
	if servers["peer"], _, err = tlsconf.Peer("cluster.tls", config.PeerTLS{Cert: cert, Key: key, CA: a.file}); err != nil {
		t.Fatal(err)
	}
	for server, c := range servers {
		for name, more := range map[string]struct {
			chain [][]byte
			ok    bool
		}{
			"eight":     {slices.Repeat([][]byte{a.cert.Raw}, 7), true},
			"nine":      {slices.Repeat([][]byte{a.cert.Raw}, 8), false},
			"large":     {[][]byte{a.padded(t, 50<<10)}, true},
			"too large": {[][]byte{a.padded(t, 30<<10), a.padded(t, 34<<10)}, false},
		} {
			client := must[*tls.Config](t)(tlsconf.Client("connect.tls", config.ClientTLS{
				CA: a.file, Cert: clientCert, Key: clientKey, ServerName: "one.test",
			}))
			pair := client.Certificates[0]
			pair.Certificate = append(slices.Clone(pair.Certificate), more.chain...)
			client.Certificates = []tls.Certificate{pair}
			_, serverErr, _ := handshake(t, c, client)
			if ok := serverErr == nil; ok != more.ok || !ok && !strings.Contains(serverErr.Error(), "may send 8 of 65536") {
				t.Errorf("%s, chain %s: %v", server, name, serverErr)
			}
		}
	}
}

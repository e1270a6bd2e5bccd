package tlsconf_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/tlsconf"
)

// authority signs certificates for a test.
type authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file config.File
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{dir: t.TempDir()}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.file = a.write(t, "ca.pem", "CERTIFICATE", der)
	return a
}

func (a *authority) write(t *testing.T, name, kind string, der []byte) config.File {
	t.Helper()
	path := filepath.Join(a.dir, name)
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return config.File(path)
}

// issue returns a certificate for the names, good for so long from now, and its key.
func (a *authority) issue(t *testing.T, life time.Duration, names ...string) (cert, key config.File) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: names, Subject: pkix.Name{CommonName: names[0]},
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(life),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &private.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return a.write(t, names[0]+".pem", "CERTIFICATE", der), a.write(t, names[0]+".key", "PRIVATE KEY", keyDER)
}

// handshake connects the two over loopback, exchanges one byte and returns what each side says.
func handshake(t *testing.T, server, client *tls.Config) (state tls.ConnectionState, serverErr, clientErr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan error, 1) // closed by nobody: it takes the one result of the server's side
	go func() {
		c, err := l.Accept()
		if err != nil {
			done <- err
			return
		}
		s := tls.Server(c, server)
		defer func() { _ = s.Close() }() // the client may be gone
		if err = s.SetDeadline(time.Now().Add(time.Minute)); err == nil {
			_, err = s.Write([]byte{1})
		}
		done <- err
	}()
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c := tls.Client(raw, client)
	if clientErr = c.SetDeadline(time.Now().Add(time.Minute)); clientErr == nil {
		_, clientErr = io.ReadFull(c, make([]byte, 1))
	}
	state = c.ConnectionState()
	_ = c.Close() // the server may have refused us
	return state, <-done, clientErr
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestServerChoosesTheCertificateByName(t *testing.T) {
	a := newAuthority(t, "ca")
	cert1, key1 := a.issue(t, time.Hour, "one.test")
	cert2, key2 := a.issue(t, time.Hour, "two.test")
	server := must[*tls.Config](t)(tlsconf.Server("proxy.tls", config.TLS{
		Cert: cert1, Key: key1, Certificates: []config.Certificate{{Cert: cert2, Key: key2}},
	}, "h2", "http/1.1"))
	for name, want := range map[string]string{"one.test": "one.test", "two.test": "two.test", "other.test": "one.test"} {
		client := &tls.Config{ServerName: name, InsecureSkipVerify: true, NextProtos: []string{"h2"}}
		state, serverErr, clientErr := handshake(t, server, client)
		if serverErr != nil || clientErr != nil {
			t.Fatal(serverErr, clientErr)
		}
		if got := state.PeerCertificates[0].Subject.CommonName; got != want || state.NegotiatedProtocol != "h2" {
			t.Errorf("a client that asks for %s gets %s, %q", name, got, state.NegotiatedProtocol)
		}
	}
}

func TestVersionsBelowTheOldestAreRefused(t *testing.T) {
	a := newAuthority(t, "ca")
	cert, key := a.issue(t, time.Hour, "one.test")
	for text, oldest := range map[string]uint16{"": tls.VersionTLS12, "1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13} {
		server := must[*tls.Config](t)(tlsconf.Server("proxy.tls", config.TLS{Cert: cert, Key: key, MinVersion: text}))
		for version := uint16(tls.VersionTLS11); version <= tls.VersionTLS13; version++ {
			client := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: version}
			if _, err, _ := handshake(t, server, client); (err == nil) != (version >= oldest) {
				t.Errorf("min_version %q, client %s: %v", text, tls.VersionName(version), err)
			}
		}
	}
}

func TestClientCAWantsItsOwnCertificates(t *testing.T) {
	a, stranger := newAuthority(t, "ca"), newAuthority(t, "stranger")
	cert, key := a.issue(t, time.Hour, "one.test")
	server := must[*tls.Config](t)(tlsconf.Server("upstream.tls", config.TLS{Cert: cert, Key: key, ClientCA: a.file}))
	good, goodKey := a.issue(t, time.Hour, "agent")
	bad, badKey := stranger.issue(t, time.Hour, "agent")
	for name, tc := range map[string]struct {
		tls config.ClientTLS
		ok  bool
	}{
		"of the CA":  {config.ClientTLS{CA: a.file, Cert: good, Key: goodKey, ServerName: "one.test"}, true},
		"of another": {config.ClientTLS{CA: a.file, Cert: bad, Key: badKey, ServerName: "one.test"}, false},
		"none":       {config.ClientTLS{CA: a.file, ServerName: "one.test"}, false},
	} {
		_, serverErr, clientErr := handshake(t, server, must[*tls.Config](t)(tlsconf.Client("connect.tls", tc.tls)))
		if ok := serverErr == nil && clientErr == nil; ok != tc.ok {
			t.Errorf("client certificate %s: %v, %v", name, serverErr, clientErr)
		}
	}
}

func TestClientTrustsItsCAAndName(t *testing.T) {
	a, stranger := newAuthority(t, "ca"), newAuthority(t, "stranger")
	cert, key := a.issue(t, time.Hour, "one.test")
	server := must[*tls.Config](t)(tlsconf.Server("upstream.tls", config.TLS{Cert: cert, Key: key}))
	for name, tc := range map[string]struct {
		tls config.ClientTLS
		ok  bool
	}{
		"its CA":     {config.ClientTLS{CA: a.file, ServerName: "one.test"}, true},
		"other CA":   {config.ClientTLS{CA: stranger.file, ServerName: "one.test"}, false},
		"other name": {config.ClientTLS{CA: a.file, ServerName: "two.test"}, false},
		"insecure":   {config.ClientTLS{InsecureSkipVerify: true}, true},
	} {
		_, _, err := handshake(t, server, must[*tls.Config](t)(tlsconf.Client("connect.tls", tc.tls)))
		if (err == nil) != tc.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPeersKnowEachOther(t *testing.T) {
	a, stranger := newAuthority(t, "ca"), newAuthority(t, "stranger")
	node, nodeKey := a.issue(t, time.Hour, "node")
	agent, agentKey := a.issue(t, time.Hour, "agent")
	other, otherKey := stranger.issue(t, time.Hour, "node")
	server, _, err := tlsconf.Peer("cluster.tls", config.PeerTLS{Cert: node, Key: nodeKey, CA: a.file, ServerName: "node"})
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		tls config.PeerTLS
		ok  bool
	}{
		"node":                    {config.PeerTLS{Cert: node, Key: nodeKey, CA: a.file, ServerName: "node"}, true},
		"other name of the CA":    {config.PeerTLS{Cert: agent, Key: agentKey, CA: a.file, ServerName: "node"}, false},
		"same name of another CA": {config.PeerTLS{Cert: other, Key: otherKey, CA: a.file, ServerName: "node"}, false},
	} {
		_, client, err := tlsconf.Peer("cluster.tls", tc.tls)
		if err != nil {
			t.Fatal(err)
		}
		state, serverErr, clientErr := handshake(t, server, client)
		if ok := serverErr == nil && clientErr == nil && state.Version == tls.VersionTLS13; ok != tc.ok {
			t.Errorf("%s: %v, %v", name, serverErr, clientErr)
		}
	}
	if server, client, err := tlsconf.Peer("cluster.tls", config.PeerTLS{}); server != nil || client != nil || err != nil {
		t.Error("an empty section must give nothing")
	}
}

func TestEmptySectionMeansNoTLS(t *testing.T) {
	if c, err := tlsconf.Server("proxy.tls", config.DefaultPikod().Proxy.TLS); c != nil || err != nil {
		t.Errorf("Server = %v, %v", c, err)
	}
	c, err := tlsconf.Client("connect.tls", config.ClientTLS{})
	if err != nil || c == nil || c.InsecureSkipVerify || c.RootCAs != nil {
		t.Errorf("Client = %+v, %v", c, err)
	}
}

func TestErrorsNameKeyAndFile(t *testing.T) {
	a := newAuthority(t, "ca")
	cert, key := a.issue(t, time.Hour, "one.test")
	_, otherKey := a.issue(t, time.Hour, "two.test")
	old, oldKey := a.issue(t, -time.Hour, "old.test")
	garbage := a.write(t, "garbage.pem", "CERTIFICATE", []byte("no certificate"))
	big := filepath.Join(a.dir, "big.pem")
	if err := os.WriteFile(big, bytes.Repeat([]byte("x"), 1<<20+1), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		tls  config.TLS
		want []string
	}{
		"missing": {config.TLS{Cert: "/nope", Key: key}, []string{
			`s.cert: want a readable file, have "/nope": no such file or directory`}},
		"directory": {config.TLS{Cert: config.File(a.dir), Key: key}, []string{
			`s.cert: want a readable file, have "DIR": something that is not a file`}},
		"too large": {config.TLS{Cert: config.File(big), Key: key}, []string{
			`s.cert: want a readable file, have "DIR/big.pem": more than 1MiB`}},
		"wrong key": {config.TLS{Cert: cert, Key: otherKey}, []string{
			`s.key: want the private key of "DIR/one.test.pem" in PEM form, have "DIR/two.test.key": tls: private key does not match public key`}},
		"key as certificate": {config.TLS{Cert: key, Key: key}, []string{
			`s.cert: want a certificate in PEM form, have "DIR/one.test.key", which holds none`}},
		"expired": {config.TLS{Cert: old, Key: oldKey}, []string{
			`s.cert: want a certificate that is still good, have "DIR/old.test.pem", which expired at `}},
		"CA and list": {config.TLS{ClientCA: garbage, Certificates: []config.Certificate{{Cert: "/a", Key: "/b"}}}, []string{
			`s.certificates[0].cert: want a readable file, have "/a": no such file or directory`,
			`s.certificates[0].key: want a readable file, have "/b": no such file or directory`,
			`s.client_ca: want CA certificates in PEM form, have "DIR/garbage.pem", certificate 1: x509: `}},
		"CA alone": {config.TLS{ClientCA: a.file}, []string{`s.client_ca: want a certificate beside it, have none`}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := tlsconf.Server("s", tc.tls)
			if err == nil {
				t.Fatal("no error")
			}
			var p config.Problem
			if !errors.As(err, &p) || p.Key == "" {
				t.Errorf("%v is no config.Problem", err)
			}
			got := strings.Split(strings.ReplaceAll(err.Error(), a.dir, "DIR"), "\n")
			if len(got) != len(tc.want) {
				t.Fatalf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tc.want, "\n"))
			}
			for i := range got {
				if !strings.HasPrefix(got[i], tc.want[i]) {
					t.Errorf("got\n%s\nwant\n%s...", got[i], tc.want[i])
				}
			}
		})
	}
}

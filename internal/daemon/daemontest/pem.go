package daemontest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// Files are files that settings can name, as TOML strings.
type Files struct {
	Cert, Key, Token   string // a certificate for localhost that is its own CA, its key, and a file with a text
	RSA, ECDSA, Ed     string // files with public keys
	RSAText, ECDSAText string // public keys themselves
	EdText             string
}

// NewFiles writes files that last as long as the test.
func NewFiles(t *testing.T) Files {
	t.Helper()
	dir := t.TempDir()
	save := func(name string, b []byte) string {
		file := filepath.Join(dir, name)
		write(t, file, string(b))
		return strconv.Quote(file)
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	f := Files{
		Cert:  save("cert.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		Key:   save("key.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs})),
		Token: save("token", []byte("0123456789abcdef0123456789abcdef\n")),
	}
	big, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	text := func(key crypto.PublicKey) []byte {
		der, err := x509.MarshalPKIXPublicKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	}
	f.RSA, f.RSAText = save("rsa.pem", text(big.Public())), strconv.Quote(string(text(big.Public())))
	f.ECDSA, f.ECDSAText = save("ecdsa.pem", text(private.Public())), strconv.Quote(string(text(private.Public())))
	f.Ed, f.EdText = save("ed.pem", text(public)), strconv.Quote(string(text(public)))
	return f
}

// Auth is how to change the keys of an [auth] section.
func (f Files) Auth(section string) map[string]Values {
	return map[string]Values{
		section + ".hmac_secret_key":         {section + ".hmac_secret_key": `"0123456789abcdef0123456789abcdef"`},
		section + ".hmac_secret_key_file":    {section + ".hmac_secret_key_file": f.Token},
		section + ".rsa_public_key":          {section + ".rsa_public_key": f.RSAText},
		section + ".rsa_public_key_file":     {section + ".rsa_public_key_file": f.RSA},
		section + ".ecdsa_public_key":        {section + ".ecdsa_public_key": f.ECDSAText},
		section + ".ecdsa_public_key_file":   {section + ".ecdsa_public_key_file": f.ECDSA},
		section + ".ed25519_public_key":      {section + ".ed25519_public_key": f.EdText},
		section + ".ed25519_public_key_file": {section + ".ed25519_public_key_file": f.Ed},
		section + ".audience":                {section + ".audience": `"me"`},
		section + ".issuer":                  {section + ".issuer": `"them"`},
		section + ".denylist_file":           {section + ".denylist_file": f.Token},
		section + ".jwks.url":                {section + ".jwks.url": `"http://127.0.0.1:1/keys"`},
	}
}

// ServerTLS is how to change the keys of a listener's [tls] section.
func (f Files) ServerTLS(section string) map[string]Values {
	pair := Values{section + ".cert": f.Cert, section + ".key": f.Key}
	list := Values{section + ".certificates": "[{ cert = " + f.Cert + ", key = " + f.Key + " }]"}
	return map[string]Values{
		section + ".cert": pair, section + ".key": pair,
		section + ".client_ca":           pair.with(Values{section + ".client_ca": f.Cert}),
		section + ".certificates[].cert": list, section + ".certificates[].key": list,
	}
}

// ClientTLS is how to change the keys of a [tls] section of connections that we open.
func (f Files) ClientTLS(section string) map[string]Values {
	pair := Values{section + ".cert": f.Cert, section + ".key": f.Key}
	return map[string]Values{
		section + ".cert": pair, section + ".key": pair, section + ".ca": {section + ".ca": f.Cert},
		section + ".server_name": {section + ".server_name": `"localhost"`},
	}
}

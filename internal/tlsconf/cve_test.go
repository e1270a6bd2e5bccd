package tlsconf_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/tlsconf"
)

// A CA file that can't be read whole must never mean "no CA", which would let everybody in.
func TestCVE_2026_27586_BadCAFileIsRefused(t *testing.T) {
	a := newAuthority(t, "ca")
	cert, key := a.issue(t, time.Hour, "localhost")
	good, err := os.ReadFile(string(a.file))
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"empty":               "",
		"no PEM":              "hello",
		"a key":               "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
		"broken":              strings.Replace(string(good), "M", "-", 2),
		"good, then a broken": string(good) + "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
	} {
		file := filepath.Join(t.TempDir(), "ca.pem")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if c, err := tlsconf.Server("proxy.tls", config.TLS{Cert: cert, Key: key, ClientCA: config.File(file)}); err == nil {
			t.Errorf("%s: taken, with client authentication %v", name, c.ClientAuth)
		}
	}
	if _, err := tlsconf.Server("proxy.tls", config.TLS{Cert: cert, Key: key, ClientCA: "/no/such/file"}); err == nil {
		t.Error("a missing file is taken")
	}
}

// keys encrypts records of a TLS 1.3 client whose secrets a test knows.
type keys struct {
	secret []byte
	seal   cipher.AEAD
	iv     []byte
}

func newKeys(t *testing.T, secret []byte) *keys {
	t.Helper()
	block, err := aes.NewCipher(expand(t, secret, "key", 16))
	if err != nil {
		t.Fatal(err)
	}
	k := &keys{secret: secret, iv: expand(t, secret, "iv", 12)}
	if k.seal, err = cipher.NewGCM(block); err != nil {
		t.Fatal(err)
	}
	return k
}

// expand is HKDF-Expand-Label (RFC 8446, 7.1).
func expand(t *testing.T, secret []byte, label string, length int) []byte {
	t.Helper()
	label = "tls13 " + label
	info := append([]byte{0, byte(length), byte(len(label))}, label...)
	out, err := hkdf.Expand(sha256.New, secret, string(append(info, 0)), length)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// record encrypts messages of the handshake as the first record under these keys.
func (k *keys) record(messages []byte) []byte {
	inner := append(bytes.Clone(messages), 22)
	head := []byte{23, 3, 3, 0, 0}
	binary.BigEndian.PutUint16(head[3:], uint16(len(inner)+k.seal.Overhead()))
	return k.seal.Seal(head, k.iv, inner, head)
}

// connected returns the connection below TLS after a handshake, and the keys of the client.
func connected(t *testing.T, addr string) (net.Conn, *keys) {
	t.Helper()
	raw, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = raw.Close() })
	_ = raw.SetDeadline(time.Now().Add(30 * time.Second))
	var secrets strings.Builder
	conn := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, KeyLogWriter: &secrets})
	if err := conn.Handshake(); err != nil {
		t.Fatal(err)
	}
	written := ""
	for line := range strings.Lines(secrets.String()) {
		if f := strings.Fields(line); f[0] == "CLIENT_TRAFFIC_SECRET_0" {
			written = f[2]
		}
	}
	secret, err := hex.DecodeString(written)
	if err != nil || len(secret) == 0 {
		t.Fatalf("no secret in %q, %v", written, err)
	}
	return raw, newKeys(t, secret)
}

// Key updates cost the one who asks for them next to nothing. Several in one record let a server of crypto/tls wait for itself
// for ever, and each one that asks for an answer got it, without end.
func TestCVE_2026_32283_FloodOfKeyUpdates(t *testing.T) {
	a := newAuthority(t, "ca")
	cert, key := a.issue(t, time.Hour, "localhost")
	conf, err := tlsconf.Server("proxy.tls", config.TLS{Cert: cert, Key: key})
	if err != nil {
		t.Fatal(err)
	}
	// AES-128-GCM with SHA-256 is what a server picks that thinks it has hardware for it, and the only one that keys can do.
	below, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer below.Close()
	ended := make(chan error, 8)
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			raw, err := below.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer raw.Close()
				_ = raw.SetDeadline(time.Now().Add(30 * time.Second))
				_, err := io.Copy(io.Discard, tls.Server(raw, conf))
				ended <- err
			})
		}
	})
	defer serving.Wait()
	defer below.Close()
	update := []byte{24, 0, 0, 1, 1} // and please answer
	end := func(what string) {
		t.Helper()
		select {
		case err := <-ended:
			// Were it not able to read them, it would say so.
			if err == nil || errors.Is(err, os.ErrDeadlineExceeded) || strings.Contains(err.Error(), "MAC") {
				t.Errorf("%s: ends with %v", what, err)
			}
			t.Logf("%s: %v", what, err)
		case <-time.After(20 * time.Second):
			t.Errorf("%s: the connection goes on", what)
		}
	}
	for _, n := range []int{2, 3000} {
		raw, k := connected(t, below.Addr().String())
		if _, err := raw.Write(k.record(bytes.Repeat(update, n))); err != nil {
			t.Fatal(err)
		}
		end(fmt.Sprintf("%d in one record", n))
	}
	raw, k := connected(t, below.Addr().String())
	for range 1000 {
		if _, err := raw.Write(k.record(update)); err != nil {
			break // it has been enough
		}
		k = newKeys(t, expand(t, k.secret, "traffic upd", sha256.Size))
	}
	end("one after another")
}

// A client's chain of certificates must not cost more than its bytes: all of these could have signed each other.
func TestCVE_2026_56862_ChainsThatLeadNowhere(t *testing.T) {
	own, other := newAuthority(t, "clients"), newAuthority(t, "clients")
	cert, key := own.issue(t, time.Hour, "localhost")
	conf, err := tlsconf.Server("proxy.tls", config.TLS{Cert: cert, Key: key, ClientCA: own.file})
	if err != nil {
		t.Fatal(err)
	}
	leaf, leafKey := other.issue(t, time.Hour, "client")
	pair, err := tls.LoadX509KeyPair(string(leaf), string(leafKey))
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		template := *other.cert
		template.SerialNumber = big.NewInt(time.Now().UnixNano())
		der, err := x509.CreateCertificate(rand.Reader, &template, other.cert, &other.key.PublicKey, other.key)
		if err != nil {
			t.Fatal(err)
		}
		pair.Certificate = append(pair.Certificate, der)
	}
	client, server := net.Pipe()
	defer client.Close()
	defer server.Close()
	refused := make(chan error, 1)
	go func() { refused <- tls.Server(server, conf).Handshake() }()
	go func() {
		c := tls.Client(client, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{pair}})
		_, _ = io.Copy(io.Discard, c)
	}()
	select {
	case err := <-refused:
		if err == nil {
			t.Error("let in")
		}
	case <-time.After(20 * time.Second):
		t.Error("still busy with it")
	}
}

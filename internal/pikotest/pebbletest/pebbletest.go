// Package pebbletest runs a real ACME authority for tests, Pebble of Let's Encrypt, and the DNS server that it asks: on
// loopback, with ports of their own, and ended with the test. Every name leads to 127.0.0.1.
//
// The programs are found at bin/ of the module, where `make bin/pebble` puts them.
package pebbletest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

const startTime = 2 * time.Minute

// Pebble is one authority. It is for the goroutine of its test.
type Pebble struct {
	// Directory is the address of its directory, and CA the file with the certificate that signed its server's.
	Directory, CA string
	// Roots are what its own certificates are verified with.
	Roots *x509.CertPool

	manage string
	client *http.Client
}

// Options say where the authority asks.
type Options struct {
	HTTPPort, TLSPort int           // it asks by HTTP-01 and TLS-ALPN-01 there
	Validity          time.Duration // of its certificates; 0: 90 days
}

// Start runs an authority and waits until it answers.
func Start(t testing.TB, o Options) *Pebble {
	t.Helper()
	dir := t.TempDir()
	ports, kept := freePorts(t, 4)
	p := &Pebble{
		Directory: fmt.Sprintf("https://127.0.0.1:%d/dir", ports[0]), CA: filepath.Join(dir, "cert.pem"),
		manage: fmt.Sprintf("https://127.0.0.1:%d", ports[1]), Roots: x509.NewCertPool(),
	}
	key := filepath.Join(dir, "key.pem")
	pool := selfSigned(t, p.CA, key)
	p.client = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12},
	}}
	t.Cleanup(p.client.CloseIdleConnections)
	if o.Validity == 0 {
		o.Validity = 90 * 24 * time.Hour
	}
	settings, err := json.Marshal(map[string]any{"pebble": map[string]any{
		"listenAddress": fmt.Sprintf("127.0.0.1:%d", ports[0]), "managementListenAddress": fmt.Sprintf("127.0.0.1:%d", ports[1]),
		"certificate": p.CA, "privateKey": key, "httpPort": max(o.HTTPPort, 1), "tlsPort": max(o.TLSPort, 1), "keyAlgorithm": "ecdsa",
		"retryAfter": map[string]any{"authz": 1, "order": 1},
		"profiles":   map[string]any{"default": map[string]any{"validityPeriod": int(o.Validity / time.Second)}},
	}})
	file := filepath.Join(dir, "pebble.json")
	if err == nil {
		err = os.WriteFile(file, settings, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	dns := fmt.Sprintf("127.0.0.1:%d", ports[2])
	_ = kept[2].Close() // the only one that is for UDP, too
	run(t, nil, "pebble-challtestsrv", "-dnsserver", dns, "-management", fmt.Sprintf("127.0.0.1:%d", ports[3]), "-defaultIPv4", "127.0.0.1",
		"-defaultIPv6", "", "-http01", "", "-https01", "", "-tlsalpn01", "", "-doh", "")
	run(t, []string{"PEBBLE_VA_NOSLEEP=1", "PEBBLE_WFE_NONCEREJECT=0"}, "pebble", "-config", file, "-dnsserver", dns, "-strict")
	p.await(t)
	return p
}

// await waits until the authority answers, and takes its root certificate.
func (p *Pebble) await(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if root, err := p.get(ctx, p.manage+"/roots/0"); err == nil && p.Roots.AppendCertsFromPEM(root) {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("the authority does not answer at %s", p.manage)
		}
	}
}

func (p *Pebble) get(ctx context.Context, url string) ([]byte, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := p.client.Do(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status %d", resp.StatusCode)
	}
	return io.ReadAll(io.LimitReader(resp.Body, 1<<20))
}

// run starts a program of bin/ and ends it with the test.
func run(t testing.TB, env []string, name string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(context.Background(), program(t, name), args...) // ended by its process id below
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.Env = &out, &out, append(os.Environ(), env...)
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGKILL)
		_ = cmd.Wait() // killed
		if t.Failed() {
			t.Logf("%s said:\n%s", name, out.String())
		}
	})
}

// program finds a program.
func program(t testing.TB, name string) string {
	t.Helper()
	dir, err := os.Getwd()
	for ; err == nil && dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		if p := filepath.Join(dir, "bin", name); executable(p) {
			return p
		}
	}
	t.Fatalf("no %s: run `make bin/pebble`", name)
	return ""
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

// freePorts returns ports that nobody listens on, over UDP and TCP, and their sockets for UDP. The programs are told numbers, so
// another could take one before they do: they are drawn from below those that the system gives to connections and to listeners
// on port 0, and from above those that consultest draws from. Others who draw pass ports over whose socket for UDP is open, which
// it is until the end of the test or until it is closed.
func freePorts(t testing.TB, n int) (out []int, kept []net.PacketConn) {
	t.Helper()
	for tries := 0; len(out) < n; tries++ {
		if tries > 1000 {
			t.Fatal("there are no free ports on 127.0.0.1 between 32000 and 32700")
		}
		port := 32_000 + mathrand.IntN(700) //nolint:gosec // nobody gains from guessing it
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		defer l.Close()
		u, err := net.ListenPacket("udp", l.Addr().String())
		if err != nil {
			continue
		}
		t.Cleanup(func() { _ = u.Close() })
		out, kept = append(out, port), append(kept, u)
	}
	return out, kept
}

// selfSigned writes the certificate of the authority's server, and its key.
func selfSigned(t testing.TB, cert, key string) *x509.CertPool {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(24 * time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pool := x509.NewCertPool()
	pool.AddCert(must(x509.ParseCertificate(der)))
	return pool
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

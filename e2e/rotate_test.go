//go:build security

package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// issuer signs tokens with a key that it replaces, and publishes its public keys.
type issuer struct {
	file string // the key set
	mu   sync.Mutex
	kid  string
	key  ed25519.PrivateKey
	set  []map[string]string
}

// rotate makes a new key, published beside the old ones; tokens are signed with it once take is called.
func (i *issuer) rotate(t *testing.T, kid string) (take func()) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.set = append(i.set, map[string]string{
		"kty": "OKP", "crv": "Ed25519", "use": "sig", "kid": kid, "x": base64.RawURLEncoding.EncodeToString(public),
	})
	i.publishLocked(t)
	return func() {
		i.mu.Lock()
		defer i.mu.Unlock()
		i.kid, i.key = kid, private
	}
}

// retire takes the oldest key out of the set.
func (i *issuer) retire(t *testing.T) {
	t.Helper()
	i.mu.Lock()
	defer i.mu.Unlock()
	i.set = i.set[1:]
	i.publishLocked(t)
}

func (i *issuer) publishLocked(t *testing.T) {
	t.Helper()
	b, err := json.Marshal(map[string]any{"keys": i.set})
	if err != nil {
		t.Fatal(err)
	}
	replace(t, i.file, string(b))
}

// token signs one that lasts so long.
func (i *issuer) token(life time.Duration) string {
	i.mu.Lock()
	defer i.mu.Unlock()
	e := base64.RawURLEncoding
	text := e.EncodeToString(fmt.Appendf(nil, `{"alg":"EdDSA","kid":%q}`, i.kid)) + "." +
		e.EncodeToString(fmt.Appendf(nil, `{"sub":"e2e","exp":%d}`, time.Now().Add(life).Unix()))
	return text + "." + e.EncodeToString(ed25519.Sign(i.key, []byte(text)))
}

// replace puts a file in place of another at once, as a careful operator does.
func replace(t *testing.T, file, content string) {
	t.Helper()
	mustWriteFile(t, file+".new", content)
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
}

func replaceBy(t *testing.T, file string, others ...string) {
	t.Helper()
	var all strings.Builder
	for _, other := range others {
		b, err := os.ReadFile(other)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(b)
	}
	replace(t, file, all.String())
}

// rotation is a node and an agent that speak mutual TLS and tokens of an issuer, under load of clients with TLS and tokens.
type rotation struct {
	*node
	issuer        issuer
	dir           string
	roots         *x509.CertPool // what clients trust
	asked, failed atomic.Int64
	firstFailure  atomic.Pointer[error]
}

func (r *rotation) file(name string) string { return filepath.Join(r.dir, name) }

// Everything that is ever rotated is, one after another, under load: no request fails, and what was replaced is of no use
// afterwards.
func TestSecurityRotationFailsNoRequest(t *testing.T) {
	r := &rotation{dir: t.TempDir(), roots: x509.NewCertPool()}
	servers, clients := newAuthority(t), newAuthority(t)
	r.roots.AddCert(servers.cert)
	r.pair(t, "node", servers)
	r.pair(t, "agent", clients)
	replaceBy(t, r.file("node-trusts.pem"), clients.file)
	replaceBy(t, r.file("agent-trusts.pem"), servers.file)
	r.issuer.file = r.file("keys.json")
	r.issuer.rotate(t, "k1")()
	// The agent's first token is good for 5 s, and 10 more of leeway. The next one lies there in time.
	began := time.Now()
	mustWriteFile(t, r.file("token"), r.issuer.token(5*time.Second))
	r.start(t)
	stop := r.load(t)

	steps := []struct {
		what string
		do   func()
	}{
		{"the agent's token", func() {
			replace(t, r.file("token"), r.issuer.token(time.Hour))
			await(t, "the renewal", settle, func() error { return contains(r.output(t), "token renewed") })
		}},
		{"the node's certificate", func() { r.renew(t, servers) }},
		{"the agent's certificate", func() { r.pair(t, "agent", clients); r.reconnected(t) }},
		{"the CA of the node", func() {
			next := newAuthority(t)
			r.trust(next.cert)
			replaceBy(t, r.file("agent-trusts.pem"), servers.file, next.file)
			r.quiet(t)
			r.renew(t, next)
			replaceBy(t, r.file("agent-trusts.pem"), next.file)
			r.quiet(t)
			servers = next
		}},
		{"the CA of agents", func() {
			next := newAuthority(t)
			replaceBy(t, r.file("node-trusts.pem"), clients.file, next.file)
			r.quiet(t)
			r.pair(t, "agent", next)
			r.reconnected(t)
			replaceBy(t, r.file("node-trusts.pem"), next.file)
			r.quiet(t)
			r.refuses(t, clients)
			clients = next
		}},
		{"the signing key", func() {
			take := r.issuer.rotate(t, "k2")
			old := r.issuer.token(time.Hour)
			take() // at once: a key that is not known is fetched
			replace(t, r.file("token"), r.issuer.token(time.Hour))
			r.quiet(t)
			r.issuer.retire(t)
			await(t, "the end of the old key", settle, func() error {
				if status, err := r.ask(old); err != nil || status != http.StatusUnauthorized {
					return fmt.Errorf("status %d, %w", status, err)
				}
				return nil
			})
			r.awaitEndpoint(t, "e", -1)
		}},
	}
	for _, step := range steps {
		before := r.failed.Load()
		step.do()
		r.quiet(t)
		t.Logf("rotated %s: %d requests so far, %d failed", step.what, r.asked.Load(), r.failed.Load())
		if r.failed.Load() != before {
			t.Errorf("requests failed while rotating %s: %v", step.what, *r.firstFailure.Load())
		}
	}
	// Beyond the end of the agent's first token and its leeway.
	await(t, "the first token to be of no use", time.Minute, func() error {
		if left := time.Until(began.Add(18 * time.Second)); left > 0 {
			return fmt.Errorf("%v left", left)
		}
		return nil
	})
	stop()
	if n := r.failed.Load(); n > 0 {
		t.Errorf("%d of %d requests failed; the first: %v", n, r.asked.Load(), *r.firstFailure.Load())
	}
	t.Logf("%d requests in %v, %d failed", r.asked.Load(), time.Since(began).Round(time.Second), r.failed.Load())
}

// pair puts a fresh certificate in place.
func (r *rotation) pair(t *testing.T, name string, ca *authority) {
	t.Helper()
	cert, key := ca.issue(t, "localhost", name)
	// Both in one file, so that there is no moment at which they do not fit.
	replaceBy(t, r.file(name+".pem"), cert, key)
}

func (r *rotation) start(t *testing.T) {
	t.Helper()
	auth := fmt.Sprintf("auth.jwks = { url = \"file://%s\", cache_ttl = \"1s\" }\n", r.issuer.file)
	pair := fmt.Sprintf("tls.cert = %q\ntls.key = %q\n", r.file("node.pem"), r.file("node.pem"))
	r.node = startNode(t, nodeOptions{
		Proxy: auth + pair + "access_log = false", Upstream: auth + pair + fmt.Sprintf("tls.client_ca = %q\n", r.file("node-trusts.pem")),
	})
	startAgent(t, r.node, agentOptions{
		URL: "https://localhost:" + r.upstream[strings.LastIndexByte(r.upstream, ':')+1:],
		Connect: fmt.Sprintf("token_file = %q\ntls = { cert = %q, key = %q, ca = %q }", r.file("token"), r.file("agent.pem"),
			r.file("agent.pem"), r.file("agent-trusts.pem")),
	}, offer{Endpoint: "e", Addr: serve(t, say("ok"))})
}

func (r *rotation) trust(ca *x509.Certificate) {
	r.issuer.mu.Lock()
	defer r.issuer.mu.Unlock()
	next := r.roots.Clone()
	next.AddCert(ca)
	r.roots = next
}

// client trusts what is trusted now.
func (r *rotation) client(keep bool) *http.Client {
	r.issuer.mu.Lock()
	defer r.issuer.mu.Unlock()
	return &http.Client{Timeout: settle, Transport: &http.Transport{
		DialContext: dialTo(r.proxy), DisableKeepAlives: !keep,
		TLSClientConfig: &tls.Config{RootCAs: r.roots, ServerName: "localhost", ClientSessionCache: tls.NewLRUClientSessionCache(4)},
	}}
}

func (r *rotation) ask(token string) (int, error) {
	c := r.client(false)
	defer c.CloseIdleConnections()
	return askWith(c, token)
}

func askWith(c *http.Client, token string) (int, error) {
	req, err := http.NewRequest(http.MethodGet, "https://e.piko.test/", nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	a, err := try(c, req)
	if err != nil {
		return 0, err
	}
	return a.StatusCode, nil
}

// load sends requests all the time, half of them over kept connections, about 200 each second.
func (r *rotation) load(t *testing.T) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	for i := range 4 {
		work.Go(func() {
			keep := i%2 == 0
			c := r.client(keep)
			tick := time.NewTicker(20 * time.Millisecond)
			defer tick.Stop()
			for ctx.Err() == nil {
				if !keep {
					c = r.client(false)
				}
				r.asked.Add(1)
				status, err := askWith(c, r.issuer.token(time.Minute))
				if err == nil && status != http.StatusOK {
					err = fmt.Errorf("status %d", status)
				}
				if err != nil {
					r.firstFailure.CompareAndSwap(nil, &err)
					r.failed.Add(1)
				}
				select {
				case <-tick.C:
				case <-ctx.Done():
				}
			}
			c.CloseIdleConnections()
		})
	}
	var once sync.Once
	stop = func() { once.Do(func() { cancel(); work.Wait() }) }
	t.Cleanup(stop)
	return stop
}

// quiet lets what has changed take effect under 100 more requests, and a second.
func (r *rotation) quiet(t *testing.T) {
	t.Helper()
	want, until := r.asked.Load()+100, time.Now().Add(1500*time.Millisecond)
	await(t, "some more requests", settle, func() error {
		if n := r.asked.Load(); n < want || time.Now().Before(until) {
			return fmt.Errorf("%d requests", n)
		}
		return nil
	})
}

// renew gives the node another certificate, and waits until both its listeners show it.
func (r *rotation) renew(t *testing.T, ca *authority) {
	t.Helper()
	r.pair(t, "node", ca)
	want := leafOf(t, r.file("node.pem"))
	await(t, "the new certificate", settle, func() error {
		conn, err := tls.Dial("tcp", r.proxy, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		if have := conn.ConnectionState().PeerCertificates[0].SerialNumber; have.Cmp(want) != 0 {
			return fmt.Errorf("the node shows %v, want %v", have, want)
		}
		return nil
	})
}

func leafOf(t *testing.T, file string) *big.Int {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(file, file)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := pair.PrivateKey.(*ecdsa.PrivateKey); !ok {
		t.Fatalf("a key of type %T", pair.PrivateKey)
	}
	return pair.Leaf.SerialNumber
}

// reconnected waits until the agent has made its session anew.
func (r *rotation) reconnected(t *testing.T) {
	t.Helper()
	r.quiet(t)
	r.awaitEndpoint(t, "e", -1)
}

// refuses tries an agent's certificate of a CA that is not trusted any more.
func (r *rotation) refuses(t *testing.T, old *authority) {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(old.issue(t, "agent"))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := tls.Dial("tcp", r.upstream, &tls.Config{
		Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true,
	})
	if err == nil {
		_, err = io.ReadFull(conn, make([]byte, 1)) // TLS 1.3: the client learns it with the first byte
		_ = conn.Close()
	}
	if err == nil || !strings.Contains(err.Error(), "tls:") {
		t.Errorf("a certificate of the old CA: %v, want it refused", err)
	}
}

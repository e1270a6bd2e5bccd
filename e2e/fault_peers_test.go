package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/pikoproxy/piko/internal/tlsconf"
	"github.com/pikoproxy/piko/internal/tunnel"
)

// secretKeys are the TLS settings of a node with this secret.
func secretKeys(t testing.TB, secret, name string) *tls.Config {
	t.Helper()
	_, client, err := tlsconf.Secret(secret, name, "http/1.1")
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// dialAsPeer tries to become a peer of a node and to reach an endpoint, as a program would that knows all of the protocol.
func dialAsPeer(t testing.TB, address, scheme, clusterName string, c *tls.Config) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), settle)
	defer cancel()
	s, err := tunnel.DialPeer(ctx, tunnel.DialOptions{
		URL: scheme + "://" + address, TLS: c,
		Header: http.Header{tunnel.HeaderNode: {"rogue/1"}, "X-Piko-Cluster": {clusterName}}, HandshakeTimeout: settle,
	}, tunnel.NodeOptions{NodeID: "rogue"})
	if err != nil {
		return err
	}
	defer func() { _ = s.CloseNow(io.EOF); s.Wait() }()
	st, err := s.Open(ctx, tunnel.Header{Endpoint: "e", Protocol: tunnel.ProtocolHTTP})
	if _, refused := errors.AsType[*tunnel.RefusedError](err); refused {
		return nil // the endpoint is not here, but that it says to peers only
	}
	if err == nil {
		_ = st.Reset()
	}
	return err
}

func TestFaultStrangersAtTheClusterListener(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 2, "")
	onNode(t, c.nodes[0], "e", "ok")
	good := secretKeys(t, clusterSecret, "piko")
	if err := dialAsPeer(t, c.peers[0], "https", "piko", good); err != nil {
		t.Errorf("who has the secret is sent away, so what follows says nothing: %v", err)
	}
	a := newAuthority(t)
	certificate, key := a.issue(t, "piko")
	pair, err := tls.LoadX509KeyPair(certificate, key)
	if err != nil {
		t.Fatal(err)
	}
	old := good.Clone()
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	bare := good.Clone()
	bare.Certificates, bare.GetClientCertificate = nil, nil
	for name, try := range map[string]struct {
		scheme, cluster string
		keys            *tls.Config
	}{
		"plain HTTP":                 {"http", "piko", nil},
		"no certificate":             {"https", "piko", bare},
		"a certificate of whomever":  {"https", "piko", &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{pair}}},
		"another secret":             {"https", "piko", blind(secretKeys(t, "another secret, as long", "piko"))},
		"the secret of another name": {"https", "piko", blind(secretKeys(t, clusterSecret, "other"))},
		"another cluster":            {"https", "other", good},
		"TLS 1.2":                    {"https", "piko", old},
	} {
		began := time.Now()
		err := dialAsPeer(t, c.peers[0], try.scheme, try.cluster, try.keys)
		if err == nil {
			t.Errorf("%s: a stranger has become a peer and reached an endpoint", name)
		}
		t.Logf("%s: sent away after %s: %v", name, time.Since(began).Round(time.Millisecond), err)
	}
	for _, url := range []string{"http://" + c.peers[0], "https://" + c.peers[0]} {
		for name, keys := range map[string]*tls.Config{"nothing": {InsecureSkipVerify: true}, "the secret": good} {
			s, err := tunnel.Dial(t.Context(), tunnel.DialOptions{URL: url, TLS: keys, HandshakeTimeout: settle})
			if err == nil {
				t.Errorf("%s with %s: an agent was let in at the cluster listener", url, name)
				_ = s.CloseNow(io.EOF)
				s.Wait()
			}
		}
	}
	states, err := c.nodes[0].states()
	if err != nil || len(states) != 2 {
		t.Errorf("the nodes are %v, %v: want the two that there are", states, err)
	}
}

// blind takes any certificate of the other side, as a stranger would.
func blind(c *tls.Config) *tls.Config {
	c = c.Clone()
	c.VerifyConnection, c.VerifyPeerCertificate, c.InsecureSkipVerify = nil, nil, true
	return c
}

// recorder keeps what is sent to an address through it.
type recorder struct {
	mu   sync.Mutex
	sent bytes.Buffer
}

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sent.Write(p)
}

func (r *recorder) bytes() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return bytes.Clone(r.sent.Bytes())
}

// Somebody on the way sees no secret, and gets nothing by saying it all again.
func TestFaultSessionBetweenNodesIsRecorded(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1, "")
	heard, peers := &recorder{}, freeAddress(t)
	between := serveTCP(t, func(in *net.TCPConn) {
		out, err := net.Dial("tcp", peers)
		if err != nil {
			return
		}
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = io.Copy(in, out); _ = in.CloseWrite() })
		_, _ = io.Copy(out, io.TeeReader(in, heard))
		_ = out.(*net.TCPConn).CloseWrite()
		wg.Wait()
		_ = out.Close()
	})
	more := fmt.Sprintf("[cluster]\nnode_id = \"n2\"\nlisten = %q\nadvertise = %q\nsecret = %q\n[consul]\naddress = %q\n", peers, between,
		clusterSecret, c.consul.HTTP)
	n2 := startNode(t, nodeOptions{More: more})
	c.nodes = append(c.nodes, n2)
	c.awaitAll(t)
	onNode(t, n2, "e", "ok")
	c.routed(t, "e")
	said := heard.bytes()
	if len(said) < 1000 {
		t.Fatalf("only %d bytes were recorded: the session does not lead through here", len(said))
	}
	for _, word := range []string{clusterSecret, "GET /", "X-Piko", "endpoint"} {
		if bytes.Contains(said, []byte(word)) {
			t.Errorf("the bytes between two nodes contain %q", word)
		}
	}
	again := connect(t, peers)
	_, _ = again.Write(said) // it may hang up before the end
	_ = again.CloseWrite()
	answer, _ := io.ReadAll(io.LimitReader(again, 1<<20)) // however it ends
	if len(answer) > 4<<10 || bytes.Contains(answer, []byte("101 Switching")) {
		t.Errorf("what was recorded is answered with %d bytes: want a handshake that does not end", len(answer))
	}
}

// Certificates of a CA of their own replace the secret.
func TestFaultClusterOfCertificates(t *testing.T) {
	t.Parallel()
	ours, theirs := newAuthority(t), newAuthority(t)
	c := startCluster(t, 0, "")
	start := func(id string, by *authority, trusts *authority) (*node, string) {
		certificate, key := by.issue(t, id)
		peers := freeAddress(t)
		return startNode(t, nodeOptions{Proxy: `endpoint_wait = "0s"`, More: fmt.Sprintf(
			"[cluster]\nnode_id = %q\nlisten = %q\n[cluster.tls]\ncert = %q\nkey = %q\nca = %q\n[consul]\naddress = %q\n", id, peers,
			certificate, key, trusts.file, c.consul.HTTP)}), peers
	}
	for _, id := range []string{"n1", "n2"} {
		n, peers := start(id, ours, ours)
		c.nodes, c.peers = append(c.nodes, n), append(c.peers, peers)
	}
	c.awaitAll(t)
	onNode(t, c.nodes[0], "e", "ok")
	onNode(t, c.nodes[1], "f", "ok")
	c.routed(t, "e")
	c.routed(t, "f")

	rogue, _ := start("rogue", theirs, ours)
	onNode(t, rogue, "lure", "stranger")
	onNode(t, rogue, "e", "stranger")
	for i, n := range c.nodes {
		await(t, "the node hears of the stranger", settle, func() error {
			states, err := n.states()
			if err == nil && states["rogue"] == "" {
				err = fmt.Errorf("nodes are %v", states)
			}
			return err
		})
		client := n.client(t)
		for range 20 {
			if a := get(t, client, at("lure", "/")); a.StatusCode < 500 {
				t.Fatalf("n%d sends a request to a stranger: %s", i+1, a.body)
			}
			if a := get(t, client, at("e", "/")); a.body != "ok" {
				t.Fatalf("through n%d: status %d %s", i+1, a.StatusCode, a.body)
			}
		}
	}
	if a := get(t, rogue.client(t), at("f", "/")); a.StatusCode < 500 {
		t.Errorf("a stranger reaches an endpoint: %s", a.body)
	}

	pair := func(a *authority) []tls.Certificate {
		certificate, key := a.issue(t, "x")
		p, err := tls.LoadX509KeyPair(certificate, key)
		if err != nil {
			t.Fatal(err)
		}
		return []tls.Certificate{p}
	}
	if err := dialAsPeer(t, c.peers[0], "https", "piko", &tls.Config{RootCAs: ours.pool, Certificates: pair(ours)}); err != nil {
		t.Errorf("who has a certificate is sent away, so what follows says nothing: %v", err)
	}
	for name, keys := range map[string]*tls.Config{
		"no certificate":                {RootCAs: ours.pool},
		"a certificate of another CA":   {RootCAs: ours.pool, Certificates: pair(theirs)},
		"what nodes with a secret have": blind(secretKeys(t, clusterSecret, "piko")),
	} {
		if err := dialAsPeer(t, c.peers[0], "https", "piko", keys); err == nil {
			t.Errorf("%s: a stranger has become a peer and reached an endpoint", name)
		}
	}
}

// certified are the files of a node that has certificates for its peers.
type certified struct{ certificate, key, trusted string }

// use has a node show another certificate and trust other authorities, all at once for it to see.
func (f certified) use(t *testing.T, by *authority, trusts ...*authority) {
	certificate, key := by.issue(t, "node")
	var roots []byte
	for _, a := range trusts {
		roots = append(roots, readFile(t, a.file)...)
	}
	for path, content := range map[string][]byte{
		f.certificate: readFile(t, certificate), f.key: readFile(t, key), f.trusted: roots,
	} {
		if err := os.WriteFile(path+".new", content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{f.trusted, f.key, f.certificate} {
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// One authority follows the other while the nodes run: first all trust both, then all show the new one's certificates,
// then nobody trusts the old one.
func TestFaultCertificatesBetweenNodesRotate(t *testing.T) {
	t.Parallel()
	old, next := newAuthority(t), newAuthority(t)
	c := startCluster(t, 0, "")
	var files []certified
	for i := range 2 {
		dir := t.TempDir()
		f := certified{dir + "/cert.pem", dir + "/key.pem", dir + "/ca.pem"}
		f.use(t, old, old)
		files = append(files, f)
		c.peers = append(c.peers, freeAddress(t))
		c.nodes = append(c.nodes, startNode(t, nodeOptions{More: fmt.Sprintf(
			"[cluster]\nnode_id = \"n%d\"\nlisten = %q\n[cluster.tls]\ncert = %q\nkey = %q\nca = %q\n[consul]\naddress = %q\n", i+1,
			c.peers[i], f.certificate, f.key, f.trusted, c.consul.HTTP)}))
	}
	c.awaitAll(t)
	onNode(t, c.nodes[0], "e", "ok")
	c.routed(t, "e")
	keysOf := func(a *authority) *tls.Config {
		certificate, key := a.issue(t, "x")
		pair, err := tls.LoadX509KeyPair(certificate, key)
		if err != nil {
			t.Fatal(err)
		}
		return &tls.Config{Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true}
	}
	step := func(name string, by *authority, trusts ...*authority) {
		for _, f := range files {
			f.use(t, by, trusts...)
		}
		await(t, name, settle, func() error {
			for _, address := range c.peers {
				for _, a := range []*authority{old, next} {
					trusted := slices.Contains(trusts, a)
					if err := dialAsPeer(t, address, "https", "piko", keysOf(a)); (err == nil) != trusted {
						return fmt.Errorf("a node with a certificate of the authority %p: %w, want trusted: %t", a, err, trusted)
					}
				}
			}
			return nil
		})
		for range 20 {
			if a := get(t, c.nodes[1].client(t), at("e", "/")); a.body != "ok" {
				t.Fatalf("after %q: status %d %s", name, a.StatusCode, a.body)
			}
		}
	}
	step("both are trusted", old, old, next)
	step("the new one's are shown", next, old, next)
	step("the old one is not trusted any more", next, next)
	c.nodes[1].kill(t)
	c.nodes[1].run(t)
	c.awaitAll(t)
	c.routed(t, "e")
}

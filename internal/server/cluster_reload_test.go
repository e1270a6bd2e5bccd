package server_test

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus/hooks/test"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/daemon"
	"github.com/pikoproxy/piko/internal/pikotest/consultest"
	"github.com/pikoproxy/piko/internal/server"
)

// TestReloadRotatesTheCertificatesOfACluster goes from one CA to another as an operator does: first everybody trusts both,
// then everybody has a certificate of the new one, then nobody trusts the old one. A node that knows the new one only then
// finds them all.
func TestReloadRotatesTheCertificatesOfACluster(t *testing.T) {
	oldCert, oldKey, _ := certify(t)
	newCert, newKey, _ := certify(t)
	both := joined(t, oldCert, newCert)
	with := func(cert, key, ca config.File) func(*config.Pikod) {
		return func(p *config.Pikod) {
			p.Cluster.Secret = config.Secret{}
			p.Cluster.TLS = config.PeerTLS{Cert: cert, Key: key, CA: ca, ServerName: "localhost"}
		}
	}
	c := consultest.Start(t, consultest.Options{})
	a := member(t, c, "a", with(oldCert, oldKey, oldCert))
	b := member(t, c, "b", with(oldCert, oldKey, oldCert))
	b.agent("one", "e")
	eventually(t, "a request through a", func() bool { return a.ask("e").status == http.StatusOK })
	for _, step := range []func(*config.Pikod){
		with(oldCert, oldKey, both), with(newCert, newKey, both), with(newCert, newKey, newCert),
	} {
		for _, n := range []*running{a, b} {
			n.mustReload(t, step)
			a.ask("e").want(t, 200, "one")
		}
	}
	d := member(t, c, "d", with(newCert, newKey, newCert))
	d.wantNodes("a up 0", "b up 1", "d up 0")
	eventually(t, "a request through the new node", func() bool { return d.ask("e").status == 200 })

	if err := a.reload(func(p *config.Pikod) {
		p.Cluster.TLS, p.Cluster.Secret = config.PeerTLS{}, config.NewSecret(secret)
	}); err == nil || !strings.Contains(err.Error(), "cluster.tls: ") {
		t.Errorf("from certificates to the secret: %v, want a refusal", err)
	}
	if err := a.reload(with(newCert, oldKey, newCert)); err == nil || !strings.Contains(err.Error(), "cluster.tls.key") {
		t.Errorf("a pair that does not fit: %v, want a refusal", err)
	}
}

// TestNodesOfARemovedCAAreSentAway takes away the CA of a node that goes on using it. Neither end may go on with what it has.
func TestNodesOfARemovedCAAreSentAway(t *testing.T) {
	oldCert, oldKey, _ := certify(t)
	newCert, newKey, _ := certify(t)
	with := func(cert, key, ca config.File) func(*config.Pikod) {
		return func(p *config.Pikod) {
			p.Cluster.Secret = config.Secret{}
			p.Cluster.TLS = config.PeerTLS{Cert: cert, Key: key, CA: ca, ServerName: "localhost"}
		}
	}
	c := consultest.Start(t, consultest.Options{})
	a := member(t, c, "a", with(oldCert, oldKey, oldCert))
	b := member(t, c, "b", with(oldCert, oldKey, oldCert))
	a.agent("of a", "there")
	b.agent("of b", "e")
	eventually(t, "a request through a", func() bool { return a.ask("e").status == http.StatusOK })
	eventually(t, "a request through b", func() bool { return b.ask("there").status == http.StatusOK })
	a.mustReload(t, with(newCert, newKey, newCert))
	eventually(t, "the end of a's session", func() bool { return a.ask("e").status != http.StatusOK })
	eventually(t, "the end of b's session", func() bool { return b.ask("there").status != http.StatusOK })
	b.mustReload(t, with(newCert, newKey, newCert))
	eventually(t, "a to reach b again", func() bool { return a.ask("e").status == http.StatusOK })
	eventually(t, "b to reach a again", func() bool { return b.ask("there").status == http.StatusOK })
}

// TestANewCertificateCutsNothing renews the certificates of two nodes while something runs between them.
func TestANewCertificateCutsNothing(t *testing.T) {
	ca, key, _ := certify(t)
	next, nextKey, _ := certify(t)
	both := joined(t, ca, next)
	with := func(cert, key config.File) func(*config.Pikod) {
		return func(p *config.Pikod) {
			p.Cluster.Secret = config.Secret{}
			p.Cluster.TLS = config.PeerTLS{Cert: cert, Key: key, CA: both, ServerName: "localhost"}
		}
	}
	c := consultest.Start(t, consultest.Options{})
	a := member(t, c, "a", with(ca, key))
	b := member(t, c, "b", with(ca, key))
	b.agent("of b", "e")
	eventually(t, "a request through a", func() bool { return a.ask("e").status == http.StatusOK })
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, a.url("proxy", "/endless"), http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Piko-Endpoint", "e")
	endless, err := a.client.Do(req)
	if err != nil || endless.StatusCode != http.StatusOK {
		t.Fatalf("the endless answer begins with %v, %v", endless, err)
	}
	defer endless.Body.Close()
	for _, n := range []*running{a, b} {
		n.mustReload(t, with(next, nextKey))
		eventually(t, "another session", func() bool {
			for _, e := range n.log.AllEntries() {
				if strings.HasPrefix(e.Message, "session with peer renewed") {
					return true
				}
			}
			return false
		})
		a.ask("e").want(t, http.StatusOK, "of b")
	}
	broken := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, endless.Body)
		broken <- err
	}()
	select {
	case err := <-broken:
		t.Errorf("what ran was cut off: %v", err)
	case <-time.After(5 * time.Second): // more than what is left to those who are sent away
	}
	b.wantNodes("a up 0", "b up 1")
}

// joined writes several certificates into one file.
func joined(t *testing.T, files ...config.File) config.File {
	t.Helper()
	var all []byte
	for _, f := range files {
		b, err := os.ReadFile(string(f))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b...)
	}
	file := filepath.Join(t.TempDir(), "joined.pem")
	if err := os.WriteFile(file, all, 0o600); err != nil {
		t.Fatal(err)
	}
	return config.File(file)
}

// TestReloadHealsAConsulToken starts a node with a token that is good for nothing and gives it a good one.
func TestReloadHealsAConsulToken(t *testing.T) {
	c := consultest.Start(t, consultest.Options{ACL: true})
	s := config.DefaultPikod()
	s.Proxy.Listen, s.Upstream.Listen, s.Admin.Listen, s.Cluster.Listen = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	s.Cluster.NodeID, s.Cluster.Secret = "a", config.NewSecret(secret)
	s.Consul.Address, s.Consul.Token = config.List{c.HTTP}, config.NewSecret("00000000-0000-0000-0000-000000000001")
	log, hook := test.NewNullLogger()
	begun, ready := make(chan struct{}), make(chan struct{})
	srv, err := server.New(s, server.Options{
		Log: log, Begun: func() { close(begun) }, Ready: func() { close(ready) },
		Listen: daemon.NewProcess("pikod", "test", log).Listen,
	})
	if err != nil {
		t.Fatal(err)
	}
	n := &running{t: t, server: srv, log: hook, settings: s, ended: make(chan error, 1)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.ended <- srv.Run(t.Context())
	}()
	t.Cleanup(func() { <-done })
	await(t, "the start", begun)
	n.mustReload(t, func(p *config.Pikod) {
		p.Consul.Token = config.NewSecret(c.Token)
		p.Consul.WriteBudget = 50
	})
	await(t, "ready", ready)
}

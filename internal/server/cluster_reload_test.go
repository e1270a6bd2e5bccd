package server_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

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
	var both []byte
	for _, f := range []config.File{oldCert, newCert} {
		b, err := os.ReadFile(string(f))
		if err != nil {
			t.Fatal(err)
		}
		both = append(both, b...)
	}
	bundle := filepath.Join(t.TempDir(), "both.pem")
	if err := os.WriteFile(bundle, both, 0o600); err != nil {
		t.Fatal(err)
	}
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
	for _, step := range []func(*config.Pikod){
		with(oldCert, oldKey, config.File(bundle)), with(newCert, newKey, config.File(bundle)), with(newCert, newKey, newCert),
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

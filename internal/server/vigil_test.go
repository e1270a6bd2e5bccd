package server_test

import (
	"strings"
	"testing"

	"github.com/pikoproxy/piko/internal/config"
)

func TestOpenListenersAreCountedAndLogged(t *testing.T) {
	n := start(t, func(c *config.Pikod) {
		c.Upstream.Listen, c.Upstream.AllowUnauthenticated = "0.0.0.0:0", true
	})
	text := n.get(n.url("admin", "/metrics")).body
	for _, want := range []string{`piko_insecure{listener="upstream"} 1`, `piko_insecure{listener="admin"} 0`} {
		if !strings.Contains(text, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	eventually(t, "a line about it", func() bool {
		for _, e := range n.log.AllEntries() {
			if strings.Contains(e.Message, "without authentication") && e.Data["listener"] == "upstream" {
				return true
			}
		}
		return false
	})
}

func TestCertificatesThatExpireAreSeen(t *testing.T) {
	cert, key, _ := certify(t) // good for an hour
	n := start(t, func(c *config.Pikod) { c.Proxy.TLS.Cert, c.Proxy.TLS.Key = cert, key })
	if text := n.get(n.url("admin", "/metrics")).body; !strings.Contains(text, `piko_tls_certificate_expiry_seconds{listener="proxy"} 3`) {
		t.Error("metrics do not tell that a certificate has an hour left")
	}
}

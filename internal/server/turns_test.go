package server_test

import (
	"crypto/tls"
	"testing"
	"time"

	"github.com/pikoproxy/piko/internal/config"
)

func TestHandshakesOnAllListenersWaitForTheSameTurns(t *testing.T) {
	cert, key, roots := certify(t)
	n := start(t, func(c *config.Pikod) {
		for _, s := range []*config.TLS{&c.Proxy.TLS, &c.Upstream.TLS, &c.Admin.TLS} {
			s.Cert, s.Key = cert, key
		}
	})
	n.mustReload(t, func(c *config.Pikod) { c.MaxTLSHandshakes = 1 })
	turns := n.server.Turns()
	if !turns.Take(inAnHour(), nil, false) || turns.Take(time.Now(), nil, false) {
		t.Fatal("there is not one turn")
	}
	done := make(chan error, 3)
	for i, listener := range []string{"proxy", "upstream", "admin"} {
		go func() {
			c, err := tls.Dial("tcp", n.server.Addr(listener).String(), &tls.Config{RootCAs: roots, ServerName: "localhost"})
			if err == nil {
				err = c.Close()
			}
			done <- err
		}()
		eventually(t, "the handshake waits on "+listener, func() bool { return turns.Waiting() == i+1 })
	}
	turns.Give()
	for range cap(done) {
		if err := await(t, "handshake", done); err != nil {
			t.Error(err)
		}
	}
}

func TestAHandshakeThatWaitsTooLongIsCounted(t *testing.T) {
	cert, key, roots := certify(t)
	n := start(t, func(c *config.Pikod) {
		c.Proxy.TLS.Cert, c.Proxy.TLS.Key = cert, key
		c.Proxy.Limits.TLSHandshakeTimeout = config.Duration(50 * time.Millisecond)
		c.MaxTLSHandshakes = 1
	})
	n.server.Turns().Take(inAnHour(), nil, false)
	defer n.server.Turns().Give()
	c, err := tls.Dial("tcp", n.server.Addr("proxy").String(), &tls.Config{RootCAs: roots, ServerName: "localhost"})
	if err == nil {
		_ = c.Close()
		t.Error("a handshake succeeds without a turn")
	}
	n.wantRejected(t, "proxy", "tls_handshake", "1")
	if got := n.metric(t, "piko_server_waiting_handshakes"); got != 0 {
		t.Errorf("%v handshakes wait that have failed", got)
	}
}

package server_test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pikoproxy/piko/internal/config"
)

// reload changes the settings of a running node.
func (n *running) reload(change func(*config.Pikod)) error {
	c := n.settings
	change(&c)
	got, err := n.server.Prepare(c)
	if err != nil {
		return err
	}
	got.Commit()
	got.Retire()
	n.settings = c
	return nil
}

func (n *running) mustReload(t *testing.T, change func(*config.Pikod)) {
	t.Helper()
	if err := n.reload(change); err != nil {
		t.Fatal(err)
	}
}

// served returns the certificate that a listener shows to a new connection.
func served(t *testing.T, addr net.Addr, roots *x509.CertPool) *x509.Certificate {
	t.Helper()
	c, err := tls.Dial("tcp", addr.String(), &tls.Config{RootCAs: roots, ServerName: "localhost"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	return c.ConnectionState().PeerCertificates[0]
}

func TestReloadRotatesCertificates(t *testing.T) {
	cert, key, roots := certify(t)
	n := start(t, func(c *config.Pikod) {
		for _, s := range []*config.TLS{&c.Proxy.TLS, &c.Upstream.TLS, &c.Admin.TLS} {
			s.Cert, s.Key = cert, key
		}
	})
	listeners := []string{"proxy", "upstream", "admin"}
	for _, name := range listeners {
		served(t, n.server.Addr(name), roots)
	}
	// A pair that does not fit is refused, and the old one stays.
	newCert, newKey, newRoots := certify(t)
	replace := func(file, by config.File) {
		b, err := os.ReadFile(string(by))
		if err == nil {
			err = os.WriteFile(string(file), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	replace(cert, newCert)
	if err := n.reload(func(*config.Pikod) {}); err == nil || !strings.Contains(err.Error(), "proxy.tls.key") {
		t.Errorf("a mismatched pair gives %v", err)
	}
	for _, name := range listeners {
		served(t, n.server.Addr(name), roots)
	}
	replace(key, newKey)
	n.mustReload(t, func(*config.Pikod) {})
	for _, name := range listeners {
		served(t, n.server.Addr(name), newRoots)
	}
	// TLS goes off and on again, on the same socket.
	addr := n.server.Addr("proxy")
	n.mustReload(t, func(c *config.Pikod) { c.Proxy.TLS = config.TLS{} })
	eventually(t, "plain text", func() bool {
		res, err := http.Get("http://" + addr.String())
		if err == nil {
			_ = res.Body.Close()
		}
		return err == nil && res.Header.Get("Piko-Error") != "" // a plain request to TLS gets none
	})
	n.mustReload(t, func(c *config.Pikod) { c.Proxy.TLS.Cert, c.Proxy.TLS.Key = cert, key })
	eventually(t, "TLS", func() bool {
		c, err := tls.Dial("tcp", addr.String(), &tls.Config{RootCAs: newRoots, ServerName: "localhost"})
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
}

func TestReloadMovesListenersAndLetsConnectionsLive(t *testing.T) {
	n := start(t, nil)
	n.agent("a", "e")
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1}, Timeout: patience}
	defer client.CloseIdleConnections()
	old := n.server.Addr("proxy").String()
	ask := func(addr string) error {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+"/", nil)
		if err != nil {
			return err
		}
		req.Header.Set("x-piko-endpoint", "e")
		res, err := client.Do(req)
		if err != nil {
			return err
		}
		defer func() { _ = res.Body.Close() }()
		if _, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode != http.StatusOK {
			return fmt.Errorf("status %d, %w", res.StatusCode, err)
		}
		return nil
	}
	if err := ask(old); err != nil {
		t.Fatal(err)
	}
	n.mustReload(t, func(c *config.Pikod) { c.Proxy.Listen = "127.0.0.1:00" }) // another one
	if now := n.server.Addr("proxy").String(); now == old {
		t.Fatalf("still at %s", now)
	}
	if err := ask(old); err != nil {
		t.Errorf("the open connection: %v", err)
	}
	if err := ask(n.server.Addr("proxy").String()); err != nil {
		t.Errorf("the new address: %v", err)
	}
	eventually(t, "the end of the old listener", func() bool {
		c, err := net.Dial("tcp", old)
		if err == nil {
			_ = c.Close()
		}
		return err != nil
	})
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	before := n.server.Addr("admin")
	if err := n.reload(func(c *config.Pikod) {
		c.Admin.Listen = "127.0.0.1:00"
		c.Upstream.Listen = config.Address(taken.Addr().String())
	}); err == nil {
		t.Error("an address in use is taken")
	}
	if n.server.Addr("admin") != before {
		t.Error("half of a refused change was made")
	}
}

func TestReloadsUnderLoadFailNoRequest(t *testing.T) {
	const reloads = 100
	n := start(t, nil)
	n.agent("a", "e")
	var asked, failed atomic.Int64
	stop := make(chan struct{})
	var load sync.WaitGroup
	for range 8 {
		load.Go(func() {
			client := &http.Client{Transport: &http.Transport{}, Timeout: patience}
			defer client.CloseIdleConnections()
			for {
				select {
				case <-stop:
					return
				default:
				}
				req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, n.url("proxy", "/"), strings.NewReader("x"))
				if err != nil {
					t.Error(err)
					return
				}
				req.Header.Set("x-piko-endpoint", "e")
				res, err := client.Do(req)
				if err == nil {
					_, err = io.Copy(io.Discard, res.Body)
					_ = res.Body.Close()
				}
				if asked.Add(1); err != nil || res.StatusCode != http.StatusOK {
					failed.Add(1)
					t.Errorf("request failed: %v", err)
					return
				}
			}
		})
	}
	for i := range reloads {
		err := n.reload(func(c *config.Pikod) {
			switch i % 5 {
			case 0:
				c.Proxy.IdleTimeout = config.Duration(time.Minute + time.Duration(i)*time.Second)
			case 1:
				c.Proxy.MaxHeaderBytes = config.Size(32<<10 + i)
			case 2:
				c.Proxy.TLS.Cert, c.Proxy.TLS.Key = "/no/such", "/no/such"
			case 3:
				c.Admin.Listen = config.Address("127.0.0.1:" + strings.Repeat("0", i%2+1))
				c.Balance.Policy = []string{"p2c", "round-robin"}[i%2]
			case 4:
				c.Upstream.MaxSessions = 100 + i
			}
		})
		if (err != nil) != (i%5 == 2) {
			t.Fatalf("reload %d: %v", i, err)
		}
		// Some requests pass between two reloads.
		want := asked.Load() + 10
		eventually(t, "requests", func() bool { return asked.Load() >= want || failed.Load() > 0 })
	}
	close(stop)
	load.Wait()
	t.Logf("%d requests during %d reloads, %d failed", asked.Load(), reloads, failed.Load())
}

func TestReloadChangesWhoMayCome(t *testing.T) {
	const one, two = "0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210"
	n := start(t, nil)
	n.agent("a", "e")
	n.ask("e").want(t, 200, "")
	n.mustReload(t, func(c *config.Pikod) { c.Proxy.Auth = keyed(one) })
	n.ask("e").want(t, 401, "")
	n.ask("e", "authorization", "Bearer "+token(t, one, inAnHour())).want(t, 200, "")
	n.mustReload(t, func(c *config.Pikod) { c.Proxy.Auth = keyed(two) })
	n.ask("e", "authorization", "Bearer "+token(t, one, inAnHour())).want(t, 401, "")
	n.ask("e", "authorization", "Bearer "+token(t, two, inAnHour())).want(t, 200, "")

	n.mustReload(t, func(c *config.Pikod) {
		tenant := config.DefaultTenant()
		tenant.ID, tenant.Auth = "acme", keyed(one)
		c.Upstream.Tenants = []config.Tenant{tenant}
	})
	n.wantSessions(0) // where there are tenants, nobody comes without naming one
	a, err := n.dial("b", token(t, one, inAnHour()), "acme")
	if err != nil {
		t.Fatal(err)
	}
	a.listen("f")
	n.mustReload(t, func(c *config.Pikod) { c.Upstream.Tenants = nil })
	n.wantSessions(0)
}

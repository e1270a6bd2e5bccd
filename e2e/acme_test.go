package e2e

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pikoproxy/piko/internal/pikotest/pebbletest"
)

const ordered = "my-endpoint.piko.test"

// orderAuthority starts an authority that asks at an address.
func orderAuthority(t *testing.T, plain string) *pebbletest.Pebble {
	t.Helper()
	_, port, _ := net.SplitHostPort(plain)
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	return pebbletest.Start(t, pebbletest.Options{HTTPPort: n})
}

// orders is the [acme] section of a node.
func orders(t *testing.T, p *pebbletest.Pebble, plain string) string {
	return fmt.Sprintf("[acme]\ndomains = [%q]\nagree_tos = true\ndirectory_url = %q\nca = %q\nhttp_listen = %q\ndirectory = %q\n",
		ordered, p.Directory, p.CA, plain, t.TempDir())
}

// certificate waits for the certificate that a node serves, and returns its serial number.
func (n *node) certificate(t *testing.T, p *pebbletest.Pebble) (serial string) {
	t.Helper()
	await(t, "a certificate of the authority is served at "+n.proxy, 2*time.Minute, func() error {
		c, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", n.proxy,
			&tls.Config{RootCAs: p.Roots, ServerName: ordered, MinVersion: tls.VersionTLS12})
		if err != nil {
			return err
		}
		serial = c.ConnectionState().PeerCertificates[0].SerialNumber.String()
		return c.Close()
	})
	return serial
}

func TestFreshNodeGetsACertificate(t *testing.T) {
	plain := freeAddress(t)
	p := orderAuthority(t, plain)
	n := startNode(t, nodeOptions{More: orders(t, p, plain)})
	startAgent(t, n, agentOptions{}, offer{Endpoint: "my-endpoint", Addr: serve(t, say("hello"))})
	n.certificate(t, p)

	client := &http.Client{Timeout: settle, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: p.Roots, ServerName: ordered, MinVersion: tls.VersionTLS12},
	}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	t.Cleanup(client.CloseIdleConnections)
	get := func(url string) *http.Response {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = ordered
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = resp.Body.Close() })
		return resp
	}
	if resp := get("https://" + n.proxy + "/"); resp.StatusCode != http.StatusOK {
		t.Errorf("status %d through the certificate", resp.StatusCode)
	}
	if resp := get("http://" + plain + "/x"); resp.StatusCode != 308 || resp.Header.Get("Location") != "https://"+ordered+"/x" {
		t.Errorf("a plain request is answered %d, %q", resp.StatusCode, resp.Header.Get("Location"))
	}
	if _, body, err := fetch("http://" + n.admin + "/metrics"); err != nil || !strings.Contains(string(body), `piko_acme_orders_total{kind="new",outcome="ok"} 1`) {
		t.Errorf("the order is not counted: %v", err)
	}
}

func TestNodesOfAClusterOrderACertificateOnce(t *testing.T) {
	plain := freeAddress(t)
	p := orderAuthority(t, plain)
	c := startClusterOf(t, 3, func(i int) nodeOptions {
		at := plain // the authority always asks the first, whoever orders
		if i > 0 {
			at = freeAddress(t)
		}
		return nodeOptions{More: orders(t, p, at)}
	})
	serials, done := map[string]bool{}, 0
	for _, n := range c.nodes {
		serials[n.certificate(t, p)] = true
		_, body, err := fetch("http://" + n.admin + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		done += strings.Count(string(body), `piko_acme_orders_total{kind="new",outcome="ok"} 1`)
	}
	if len(serials) != 1 || done != 1 {
		t.Errorf("%d certificates by %d orders for three nodes, want one", len(serials), done)
	}
}

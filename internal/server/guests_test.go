package server_test

import (
	"crypto/tls"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/tunnel"
	"github.com/pikoproxy/piko/internal/websocket"
)

// visitor is an agent, a client and an operator with one certificate, which is its own CA.
type visitor struct {
	n         *running
	cert, key config.File
	conf      *tls.Config
	agent     *tunnel.AgentSession
	clients   map[string]*http.Client // each with one connection that is kept
	upgraded  *websocket.Conn
}

func newVisitor(t *testing.T, life time.Duration) *visitor {
	t.Helper()
	v := &visitor{}
	v.cert, v.key, _ = certifyFor(t, life)
	pair, err := tls.LoadX509KeyPair(string(v.cert), string(v.key))
	if err != nil {
		t.Fatal(err)
	}
	v.conf = &tls.Config{Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true}
	return v
}

func bundle(t *testing.T, visitors ...*visitor) config.File {
	t.Helper()
	files := make([]config.File, len(visitors))
	for i, v := range visitors {
		files[i] = v.cert
	}
	return joined(t, files...)
}

func trusting(cert, key, ca config.File) func(*config.Pikod) {
	return func(c *config.Pikod) {
		for _, s := range []*config.TLS{&c.Proxy.TLS, &c.Upstream.TLS, &c.Admin.TLS} {
			s.Cert, s.Key, s.ClientCA = cert, key, ca
		}
	}
}

func (v *visitor) url(listener, path string) string {
	return "https://" + v.n.server.Addr(listener).String() + path
}

// come opens what can be opened: a session, a connection of each kind to the proxy, one to the console, and one for TCP.
func (v *visitor) come(t *testing.T, n *running, name string) {
	t.Helper()
	v.n = n
	var err error
	v.agent, err = tunnel.Dial(t.Context(), tunnel.DialOptions{
		URL: v.url("upstream", ""), TLS: v.conf.Clone(), Hello: tunnel.Hello{AgentID: name},
	})
	if err != nil {
		t.Fatal(err)
	}
	n.serve(v.agent, name)
	for endpoint, protocol := range map[string]string{name: tunnel.ProtocolHTTP, "tcp-" + name: tunnel.ProtocolTCP} {
		if err := v.agent.Listen(t.Context(), tunnel.Listen{Endpoint: endpoint, Protocol: protocol}); err != nil {
			t.Fatal(err)
		}
	}
	v.clients = map[string]*http.Client{}
	for _, kind := range []string{"HTTP/1.1", "HTTP/2", "console"} {
		c := &http.Client{Transport: &http.Transport{TLSClientConfig: v.conf.Clone(), ForceAttemptHTTP2: kind == "HTTP/2"}}
		t.Cleanup(c.CloseIdleConnections)
		v.clients[kind] = c
		if _, err := v.ask(t, kind, "/"); err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
	}
	v.upgraded, _, err = websocket.Dial(t.Context(), v.url("proxy", "/_piko/v1/tcp/tcp-"+name), websocket.DialOptions{TLS: v.conf.Clone()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = v.upgraded.Reset() })
}

func (v *visitor) ask(t *testing.T, kind, path string) (*http.Response, error) {
	t.Helper()
	url := v.url("proxy", path)
	if kind == "console" {
		url = v.url("admin", "/health")
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Piko-Endpoint", "good")
	resp, err := v.clients[kind].Do(req)
	if err != nil {
		return nil, err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	return resp, err
}

// wantGone waits until nothing is left of what has come, and no more can come.
func (v *visitor) wantGone(t *testing.T) {
	t.Helper()
	select {
	case <-v.agent.Done():
	case <-time.After(3 * patience):
		t.Error("the session of the agent is still there")
	}
	v.wantCut(t)
	for kind := range v.clients {
		eventually(t, "the end of the connection by "+kind, func() bool {
			_, err := v.ask(t, kind, "/")
			return err != nil
		})
	}
	if a, err := tunnel.Dial(t.Context(), tunnel.DialOptions{URL: v.url("upstream", ""), TLS: v.conf.Clone()}); err == nil {
		t.Errorf("another session of it is let in by %s", a.NodeID())
		_ = a.CloseNow(io.EOF)
	}
}

// wantCut waits for the end of the TCP connection.
func (v *visitor) wantCut(t *testing.T) {
	t.Helper()
	limit := time.Now().Add(patience)
	_ = v.upgraded.SetReadDeadline(limit)
	if _, err := v.upgraded.Read(make([]byte, 1)); err == nil || time.Now().After(limit) {
		t.Errorf("the TCP connection ends with %v", err)
	}
}

func (v *visitor) wantAlive(t *testing.T) {
	t.Helper()
	select {
	case <-v.agent.Done():
		t.Error("the session of the other agent has ended")
	default:
	}
	for kind := range v.clients {
		if _, err := v.ask(t, kind, "/"); err != nil {
			t.Errorf("%s of the other one: %v", kind, err)
		}
	}
	if _, err := v.upgraded.Write([]byte("x")); err != nil {
		t.Errorf("the TCP connection of the other one: %v", err)
	}
}

func TestARemovedClientCAEndsWhatItLetIn(t *testing.T) {
	cert, key, _ := certify(t)
	good, bad := newVisitor(t, time.Hour), newVisitor(t, time.Hour)
	n := start(t, trusting(cert, key, bundle(t, good, bad)))
	good.come(t, n, "good")
	bad.come(t, n, "bad")
	n.mustReload(t, trusting(cert, key, bundle(t, good)))
	bad.wantGone(t)
	good.wantAlive(t)
}

func TestAClientCertificateThatExpiresEndsWhatItLetIn(t *testing.T) {
	t.Parallel()
	cert, key, _ := certify(t)
	good, brief := newVisitor(t, time.Hour), newVisitor(t, 30*time.Second)
	n := start(t, trusting(cert, key, bundle(t, good, brief)))
	good.come(t, n, "good")
	brief.come(t, n, "brief")
	brief.wantGone(t)
	good.wantAlive(t)
}

func TestAskingForCertificatesEndsWhatHasNone(t *testing.T) {
	cert, key, _ := certify(t)
	v := newVisitor(t, time.Hour)
	n := start(t, trusting(cert, key, ""))
	v.conf.Certificates = nil
	v.come(t, n, "good")
	n.mustReload(t, trusting(cert, key, v.cert))
	v.wantGone(t)
}

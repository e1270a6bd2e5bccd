package e2e

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestServicesOnSocketsAndOverTLS(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{})
	show := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		reply(w, "%s %t", r.Host, r.TLS != nil)
	})
	dir, err := os.MkdirTemp("", "piko") // the path of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, &http.Server{Handler: show, ReadHeaderTimeout: time.Minute}, socket)
	ca := newAuthority(t)
	secure := tls.NewListener(listen(t), ca.server(t, "internal.test"))
	serveOn(t, &http.Server{Handler: show, ReadHeaderTimeout: time.Minute}, secure)
	plain := serve(t, show)
	_, port, _ := net.SplitHostPort(plain)

	startAgent(t, n, agentOptions{},
		offer{Endpoint: "socket", Addr: "unix:" + socket.Addr().String()},
		offer{Endpoint: "secure", Addr: "https://" + secure.Addr().String(),
			More: fmt.Sprintf("[listeners.tls]\nca = %q\nserver_name = \"internal.test\"", ca.file)},
		offer{Endpoint: "skips", Addr: "https://" + secure.Addr().String(),
			More: "[listeners.tls]\ninsecure_skip_verify = true"},
		offer{Endpoint: "stranger", Addr: "https://" + secure.Addr().String()},
		offer{Endpoint: "port", Addr: port},
		offer{Endpoint: "url", Addr: "http://" + plain},
		offer{Endpoint: "rewritten", Addr: plain, More: `host_header = "inside.test"`})
	c := n.client(t)
	for endpoint, want := range map[string]string{
		"socket":    "socket.piko.test false",
		"secure":    "secure.piko.test true",
		"skips":     "skips.piko.test true",
		"port":      "port.piko.test false",
		"url":       "url.piko.test false",
		"rewritten": "inside.test false",
	} {
		for range 3 {
			if a := get(t, c, at(endpoint, "/")); a.StatusCode != 200 || a.body != want {
				t.Errorf("%s: status %d %q: want %q", endpoint, a.StatusCode, a.body, want)
			}
		}
	}
	if a := get(t, c, at("stranger", "/")); a.StatusCode != http.StatusBadGateway {
		t.Errorf("a certificate nobody vouches for: status %d %s: want 502", a.StatusCode, a.body)
	}
}

func TestOneRefusedListenerHarmsNoOther(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{Upstream: withKey})
	token := writeFile(t, "token", sign(t, claims{Endpoints: []string{"one", "two", "three"}}))
	service := serve(t, say("ok"))
	agent := launchAgent(t, n, agentOptions{Connect: fmt.Sprintf("token_file = %q", token)},
		offer{Endpoint: "one", Addr: service}, offer{Endpoint: "two", Addr: service},
		offer{Endpoint: "forbidden", Addr: service}, offer{Endpoint: "three", Addr: service})
	c := n.client(t)
	for _, endpoint := range []string{"one", "two", "three"} {
		n.awaitEndpoint(t, endpoint, -1)
		if a := get(t, c, at(endpoint, "/")); a.body != "ok" {
			t.Errorf("%s: status %d %s", endpoint, a.StatusCode, a.body)
		}
	}
	await(t, "the refusal is in the log of the agent", settle, func() error {
		return contains(agent.output(t), "forbidden", "not_permitted")
	})
	have, err := n.endpoints()
	if err != nil || have["forbidden"] != 0 || len(have) != 3 {
		t.Errorf("pikod has %v, %v: want the three permitted", have, err)
	}
	if agent.ended() {
		t.Error("the agent ended: want it to serve what it may")
	}
}

func TestMoreEndpointsThanASessionMayOffer(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{Upstream: "max_endpoints_per_session = 3"})
	service := serve(t, say("ok"))
	var offers []offer
	for i := range 5 {
		offers = append(offers, offer{Endpoint: fmt.Sprint("e", i), Addr: service})
	}
	agent := launchAgent(t, n, agentOptions{}, offers...)
	n.awaitCount(t, 3)
	if agent.ended() {
		t.Error("the agent ended: want it to serve what it may")
	}
}

func TestAgentOverTLS(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	cert, key := ca.issue(t, "pikod.test")
	n := startNode(t, nodeOptions{
		Upstream: fmt.Sprintf("tls.cert = %q\ntls.key = %q\ntls.client_ca = %q", cert, key, ca.file)})
	own, ownKey := ca.issue(t, "agent.test")
	service := serve(t, say("ok"))
	trust := fmt.Sprintf("tls.ca = %q\ntls.server_name = \"pikod.test\"\n", ca.file)
	startAgent(t, n, agentOptions{URL: "https://" + n.upstream,
		Connect: trust + fmt.Sprintf("tls.cert = %q\ntls.key = %q", own, ownKey)},
		offer{Endpoint: "mutual", Addr: service})
	if a := get(t, n.client(t), at("mutual", "/")); a.body != "ok" {
		t.Errorf("status %d %s", a.StatusCode, a.body)
	}
	stranger := launchAgent(t, n, agentOptions{URL: "https://" + n.upstream, Connect: trust},
		offer{Endpoint: "none", Addr: service})
	await(t, "an agent without a certificate is refused", settle, func() error {
		return contains(stranger.output(t), "certificate")
	})
	if have, err := n.endpoints(); err != nil || have["none"] != 0 {
		t.Errorf("endpoints %v, %v: want none of the stranger", have, err)
	}
}

func TestManyListenersInOneAgent(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{})
	var offers []offer
	for i := range 200 {
		word := fmt.Sprint("e", i)
		offers = append(offers, offer{Endpoint: word, Addr: serve(t, say(word))})
	}
	startAgent(t, n, agentOptions{}, offers...)
	c := n.client(t)
	for _, o := range offers {
		if a := get(t, c, at(o.Endpoint, "/")); a.body != o.Endpoint {
			t.Errorf("%s: status %d %q: want the answer of its own service", o.Endpoint, a.StatusCode, a.body)
		}
	}
}

func TestReadinessOfAnAgent(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{})
	admin := freeAddress(t)
	agent := startAgent(t, n, agentOptions{More: fmt.Sprintf("[admin]\nlisten = %q", admin)},
		offer{Endpoint: "e", Addr: serve(t, say("ok"))})
	agent.awaitReady(t, admin)
	for path, want := range map[string]string{"/health": "", "/metrics": "piko_", "/status": "e"} {
		status, body, err := fetch("http://" + admin + path)
		if err != nil || status != http.StatusOK || contains(string(body), want) != nil {
			t.Errorf("%s: status %d, %v: %.200s", path, status, err, body)
		}
	}
	n.kill(t)
	await(t, "an agent without a session is not ready", settle, func() error {
		status, _, err := fetch("http://" + admin + "/ready")
		if err == nil && status != http.StatusServiceUnavailable {
			err = fmt.Errorf("status %d", status)
		}
		return err
	})
}

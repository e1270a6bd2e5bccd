package agent

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/pikotest/fakenode"
	"github.com/pikoproxy/piko/internal/tunnel"
)

// FuzzReload loads any text over a running agent, which has a node and a service. Whatever it is, the agent goes on: under the
// settings of the text it offers what they list, and on the way back it serves what it served before.
func FuzzReload(f *testing.F) {
	seedReloads(f, "../../configs/piko-agent.toml",
		"[connect]\nconnections = 3", "[connect]\nheartbeat = \"1s\"\ntenant_id = \"t\"", "[connect]\ntoken = \"a\"",
		"[[listeners]]\nendpoint = \"kept\"\naddr = \"1\"\nprotocol = \"tcp\"", "[[listeners]]\nendpoint = \"KEPT\"\naddr = \"https://a:1\"",
		"[[listeners]]\nendpoint = \"kept\"\naddr = \"1\"\n[listeners.health]\ntype = \"tcp\"\ninterval = \"100ms\"",
		"[[listeners]]\nendpoint = \"a\"\naddr = \"1\"\n[[listeners]]\nendpoint = \"b\"\naddr = \"unix:/x\"\nmax_in_flight = 1",
		"[[listeners]]\nendpoint = \"a\"\naddr = \"https://b\"\n[listeners.tls]\nca = \"/no/such\"",
		"[admin]\nlisten = \":1\"\nallow_unauthenticated = true\npprof = true", "[admin]\nlisten = \"127.0.0.1:1\"\n[admin.tls]\ncert = \"/no/such\"")
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"} {
		if err := os.Unsetenv(name); err != nil { // nothing here may lead to other hosts
			f.Fatal(err)
		}
	}
	node := fakenode.Start(f, "n1")
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }))
	f.Cleanup(service.Close)
	at := strings.TrimPrefix(service.URL, "http://")
	base := config.DefaultAgent()
	base.Connect.URL, base.Connect.Connections = node.URL(), 1
	base.Listeners = []config.Listener{listenerFor("http", "kept", at)}
	log := logrus.New()
	log.SetOutput(io.Discard)
	a, err := New(base, Options{Log: log, Version: "fuzz"})
	if err != nil {
		f.Fatal(err)
	}
	ctx, stop := context.WithCancel(f.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	f.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			f.Errorf("the agent ends with %v", err)
		}
	})
	node.AwaitListen("kept", true)
	file := filepath.Join(f.TempDir(), "piko-agent.toml")
	f.Fuzz(func(t *testing.T, text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		next, err := config.LoadAgent(file)
		if err != nil {
			return
		}
		next = local(next, node.URL(), at)
		changes := config.Diff(base, next)
		if slices.ContainsFunc(changes, func(c config.Change) bool { return !c.Live }) {
			return // the shell refuses it
		}
		if put(a, next) == nil && !keysOf(changes).under("connect") { // whoever wants another connection may never get it
			for _, l := range next.Listeners {
				_, listens := node.Listens(strings.ToLower(l.Endpoint))
				for l.Health.Type == "" && !listens {
					eventually(t, "the endpoint "+l.Endpoint, func() bool {
						_, listens = node.Listens(strings.ToLower(l.Endpoint))
						return listens
					})
				}
			}
		}
		a.status()
		if err := put(a, base); err != nil {
			t.Fatalf("the way back: %v", err)
		}
		eventually(t, "an answer of the service", func() bool { return hello(t, node) == nil })
	})
}

// seedReloads adds what is worth trying for every daemon, and some texts.
func seedReloads(f *testing.F, reference string, more ...string) {
	f.Helper()
	text, err := os.ReadFile(reference)
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range append(more, "", string(text), "\x00", "a = [[[[", "drain_timeout = 5", "drain_timeout = \"1s\"",
		"[connect]\nurl = \"http://192.0.2.1\"", "[connect.tls]\ncert = \"/no/such\"", "[log]\nlevel = \"debug\"") {
		f.Add(seed)
	}
}

// put has an agent take other settings.
func put(a *Agent, c config.Agent) error {
	change, err := a.Prepare(c)
	if err != nil {
		return err
	}
	change.Commit()
	change.Retire()
	return nil
}

// local takes from settings what would lead to other hosts, or to ports that somebody may have, or take long.
func local(c config.Agent, node, service string) config.Agent {
	c.Connect.URL, c.Connect.ProxyURL = node, config.DefaultAgent().Connect.ProxyURL
	c.Connect.Connections = min(c.Connect.Connections, 3)
	c.DrainTimeout = min(c.DrainTimeout, config.Duration(time.Second))
	c.Admin.Auth.JWKS.URL = ""
	if c.Admin.Listen != "" {
		c.Admin.Listen = "127.0.0.1:0"
	}
	c.Listeners = slices.Clone(c.Listeners[:min(len(c.Listeners), 20)])
	for i := range c.Listeners {
		addr := service
		if scheme, _, _ := c.Listeners[i].Addr.Split(); scheme != "" {
			addr = scheme + "://" + service
		}
		c.Listeners[i].Addr = config.ServiceAddress(addr)
	}
	return c
}

// hello asks the service by the node.
func hello(t *testing.T, node *fakenode.Node) error {
	t.Helper()
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return node.Open(ctx, tunnel.Header{Endpoint: "kept", Protocol: tunnel.ProtocolHTTP})
		},
	}}
	resp, err := client.Get("http://kept/")
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err == nil && string(body) != "hello" {
		err = fmt.Errorf("answer %q", body)
	}
	return err
}

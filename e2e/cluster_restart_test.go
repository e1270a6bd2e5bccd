package e2e

import (
	"fmt"
	"net/http"
	"syscall"
	"testing"
	"time"

	"github.com/pikoproxy/piko/e2e/classic"
)

// TestClusterRollingRestart is not parallel: it counts what fails under load.
func TestClusterRollingRestart(t *testing.T) { rollingRestart(t, 1, 3*time.Second) }

// rollingRestart stops and starts each node in turn, as often as rounds says, and pauses before each.
func rollingRestart(t *testing.T, rounds int, pause time.Duration) {
	c := startCluster(t, 3, "drain_notice = \"1s\"\ndrain_timeout = \"20s\"")
	service, tcp := serve(t, loadService), serveTCP(t, echo)
	c.agents(t, 3, offer{Endpoint: "e", Addr: service}, offer{Endpoint: "tcp", Addr: tcp, Protocol: "tcp"})
	forward := freeAddress(t)
	p := start(t, nil, "piko-forward", forward, "tcp", "--url", "http://"+c.proxy)
	p.awaitListen(t, "tcp", forward)
	c.roll(t, rounds, pause, forward, 6)
}

// TestClusterRollingRestartOfClassicAgents is not parallel either.
func TestClusterRollingRestartOfClassicAgents(t *testing.T) {
	classicRollingRestart(t, 1, time.Second)
}

func classicRollingRestart(t *testing.T, rounds int, pause time.Duration) {
	c := startCluster(t, 3, "drain_notice = \"1s\"\ndrain_timeout = \"20s\"")
	const agents = 4
	for i := range agents {
		a, err := classic.Listen(t.Context(), classic.Options{
			URL: "http://" + c.upstreams, Endpoint: "e", Version: classicVersions[i%2],
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = a.Close() })
		serveOn(t, &http.Server{Handler: http.HandlerFunc(loadService), ReadHeaderTimeout: time.Minute}, a)
	}
	c.awaitSessions(t, "e", agents, settle)
	c.roll(t, rounds, pause, "", agents)
}

// roll restarts the nodes one after another under load and wants no request to fail.
func (c *cluster) roll(t *testing.T, rounds int, pause time.Duration, forward string, sessions int) {
	t.Helper()
	c.routed(t, "e")
	began := time.Now()
	f := startCrowd(t, c, 300, forward)
	t.Cleanup(func() { f.end() })
	for range rounds {
		for i, m := range c.nodes {
			name := fmt.Sprint("n", i+1)
			<-time.After(pause)
			stopped := time.Now()
			m.signal(t, syscall.SIGTERM)
			if code := m.exit(t, 40*time.Second); code != 0 {
				t.Errorf("%s exits %d", name, code)
			}
			took := time.Since(stopped)
			m.run(t)
			c.awaitAll(t)
			t.Logf("%s stopped in %s, was back after %s", name, took.Round(time.Millisecond),
				time.Since(stopped).Round(time.Millisecond))
		}
	}
	c.awaitSessions(t, "e", sessions, settle)
	failures := f.end()
	took := time.Since(began)
	t.Logf("%d requests and %d WebSockets and TCP connections in %s, %d failed", f.sent.Load(), f.tunnels.Load(),
		took.Round(time.Second), len(failures))
	complain(t, failures, f.sent.Load()+f.tunnels.Load())
	if f.sent.Load() < 100*int64(took/time.Second) {
		t.Error(fmt.Errorf("only %d requests in %s: too few to tell", f.sent.Load(), took))
	}
}

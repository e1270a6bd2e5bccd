package e2e

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// onNode connects an agent to one node and no other.
func onNode(t testing.TB, n *node, endpoint, name string) *process {
	t.Helper()
	return startAgent(t, n, agentOptions{Connect: "connections = 1"}, offer{Endpoint: endpoint, Addr: serve(t, say(name))})
}

func TestClusterAnswersThroughEveryNode(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, "")
	onNode(t, c.nodes[0], "e", "ok")
	for i, n := range c.nodes {
		for range 3 {
			r := request(t, http.MethodGet, at("e", "/"), nil)
			// What a client says of the inside changes nothing.
			for _, name := range []string{"x-piko-forward", "x-piko-node", "x-piko-peer", "x-piko-cluster"} {
				r.Header.Set(name, "true")
			}
			r.Header.Set("Connection", "x-piko-endpoint, x-piko-forward")
			if a := do(t, n.client(t), r); a.body != "ok" {
				t.Errorf("through n%d: status %d %s", i+1, a.StatusCode, a.body)
			}
		}
	}
	out, err := exec.Command(filepath.Join(binaries, "pikod"), "status", "nodes", "--admin", "http://"+c.nodes[1].admin).Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"n1", "n2", "n3"} {
		if !bytes.Contains(out, []byte(id)) {
			t.Errorf("pikod status nodes shows no %s:\n%s", id, out)
		}
	}
}

func TestClusterListenerKnowsNobodyElse(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 2, "")
	onNode(t, c.nodes[0], "e", "ok")
	var nodes []struct {
		ID string `json:"id"`
	}
	_ = nodes
	settings := c.nodes[0].file
	address := between(t, settings, "[cluster]", "listen = \"")
	for name, scheme := range map[string]string{"plain": "http", "TLS": "https"} {
		client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
			DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		}}
		for _, path := range []string{"/piko/v2/peer", "/", "/piko/v2/tunnel", "/status"} {
			resp, err := client.Get(scheme + "://" + address + path)
			if err == nil {
				_ = resp.Body.Close()
				if scheme == "https" || resp.StatusCode != http.StatusBadRequest {
					t.Errorf("%s %s: a stranger got status %d", name, path, resp.StatusCode)
				}
			}
		}
	}
}

// TestClusterRollsWithoutAFailedRequest is not parallel: it is about load.
func TestClusterRollsWithoutAFailedRequest(t *testing.T) {
	c := startCluster(t, 3, "drain_timeout = \"30s\"\ndrain_notice = \"1s\"")
	service := serve(t, say("ok"))
	for range 2 {
		startAgent(t, c.nodes[0], agentOptions{URL: "http://" + c.upstreams}, nowhere...)
		launchAgent(t, c.nodes[0], agentOptions{URL: "http://" + c.upstreams}, offer{Endpoint: "e", Addr: service})
	}
	c.routed(t, "e")
	l := startLoad(t, c.proxy, "e", 150)
	for i, n := range c.nodes {
		began := time.Now()
		n.signal(t, syscall.SIGTERM)
		if code := n.exit(t, 40*time.Second); code != 0 {
			t.Errorf("n%d exits %d", i+1, code)
		}
		stopped := time.Since(began)
		n.run(t)
		c.awaitAll(t)
		t.Logf("n%d took %s to stop, and is back after %s; %d requests, %d failed", i+1,
			stopped.Round(time.Millisecond), time.Since(began).Round(time.Millisecond), l.sent.Load(), l.failed.Load())
	}
	l.stop()
	if n := l.failed.Load(); n > 0 {
		t.Errorf("%d of %d requests failed:\n%s", n, l.sent.Load(), l.shown())
	}
}

var nowhere []offer

// TestClusterSurvivesAKill is not parallel: it measures how fast.
func TestClusterSurvivesAKill(t *testing.T) {
	c := startCluster(t, 3, "")
	service := serve(t, say("ok"))
	for range 2 {
		launchAgent(t, c.nodes[0], agentOptions{URL: "http://" + c.upstreams}, offer{Endpoint: "e", Addr: service})
	}
	c.routed(t, "e")
	// The victim is not one that the clients talk to.
	l := startLoad(t, c.nodes[0].proxy, "e", 100)
	pause(300 * time.Millisecond)
	began := time.Now()
	c.nodes[2].kill(t)
	pause(time.Second)
	during := l.failed.Load()
	pause(4 * time.Second)
	if late := l.failed.Load() - during; late > 0 {
		t.Errorf("%d requests failed more than a second after the kill", late)
	}
	t.Logf("%d of %d requests failed in the first second", during, l.sent.Load())
	if during > 20 {
		t.Errorf("%d requests failed in the first second:\n%s", during, l.shown())
	}
	l.stop()
	c.nodes[2].run(t)
	c.awaitAll(t)
	t.Logf("the cluster is whole again after %s", time.Since(began).Round(time.Millisecond))
}

// TestClusterPassesOverAStoppedNode is not parallel: it measures how fast.
func TestClusterPassesOverAStoppedNode(t *testing.T) {
	c := startCluster(t, 3, "")
	onNode(t, c.nodes[1], "e", "ok")
	onNode(t, c.nodes[2], "e", "ok")
	c.routed(t, "e")
	l := startLoad(t, c.nodes[0].proxy, "e", 50)
	pause(300 * time.Millisecond)
	c.nodes[2].signal(t, syscall.SIGSTOP)
	pause(4 * time.Second)
	before, failed := l.sent.Load(), l.failed.Load()
	pause(4 * time.Second)
	if late := l.failed.Load() - failed; late > 0 {
		t.Errorf("%d of %d requests failed when the node had been silent for 4 s:\n%s", late, l.sent.Load()-before, l.shown())
	}
	c.nodes[2].signal(t, syscall.SIGCONT)
	c.awaitAll(t)
	l.stop()
	t.Logf("%d of %d requests failed while the node fell silent", failed, l.sent.Load())
}

// between gives the text up to the next quote after two marks in a file.
func between(t testing.TB, file, first, second string) string {
	t.Helper()
	out, err := exec.Command("cat", file).Output()
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(out), first)
	_, rest, _ = strings.Cut(rest, second)
	text, _, found := strings.Cut(rest, "\"")
	if !found {
		t.Fatal(fmt.Errorf("%s has no %s", file, second))
	}
	return text
}

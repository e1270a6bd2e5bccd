//go:build security

package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// pace sends a request every 10 ms until stop is closed, and returns how long each took.
func pace(t *testing.T, c *http.Client, url string, stop <-chan struct{}) (took []time.Duration, failed []string) {
	t.Helper()
	var mu sync.Mutex
	var running sync.WaitGroup
	defer running.Wait()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			running.Wait()
			return took, failed
		case <-tick.C:
		}
		running.Go(func() {
			began := time.Now()
			a, err := try(c, request(t, http.MethodGet, url, http.NoBody))
			mu.Lock()
			defer mu.Unlock()
			took = append(took, time.Since(began))
			if err != nil || a.StatusCode != http.StatusOK {
				failed = append(failed, fmt.Sprint(a.StatusCode, err))
			}
		})
	}
}

func p99(all []time.Duration) time.Duration {
	slices.Sort(all)
	return all[len(all)*99/100]
}

// Two thousand connections of each kind that slowhttptest knows, at once: no request of others fails, they end, and what
// they took is given back. How long others wait is only told: the attackers take the same processors.
func TestSecuritySlowConnections(t *testing.T) {
	const connections, attack = "2000", 70 // seconds: longer than every limit of a slow client
	large := bytes.Repeat([]byte("x"), 8<<20)
	n := startNode(t, nodeOptions{Proxy: "access_log = false"})
	addr := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/large" {
			_, _ = w.Write(large)
			return
		}
		echoBody(w, r)
	})
	for range 2 { // one session would be full of the attackers' requests: see upstream.max_streams_per_session
		startAgent(t, n, agentOptions{}, offer{Endpoint: "web", Addr: addr})
	}
	n.awaitEndpoint(t, "web", 2)
	client := n.client(t)
	phase := func(d time.Duration) ([]time.Duration, []string) {
		stop := make(chan struct{})
		time.AfterFunc(d, func() { close(stop) })
		return pace(t, client, at("web", "/"), stop)
	}
	phase(2 * time.Second)
	calm, failed := phase(8 * time.Second)
	if len(failed) > 0 {
		t.Fatal(failed[0])
	}
	before := n.rss(t)

	var tools sync.WaitGroup
	for _, kind := range [][]string{
		{"-H", "-i", "5", "-u", "http://web.piko.test/"},
		{"-B", "-i", "5", "-s", "100000", "-u", "http://web.piko.test/"},
		{"-R", "-u", "http://web.piko.test/"},
		{"-X", "-w", "512", "-y", "1024", "-n", "5", "-z", "32", "-u", "http://web.piko.test/large"},
	} {
		args := append([]string{"-c", connections, "-r", "500", "-l", fmt.Sprint(attack), "-p", "5", "-d", n.proxy}, kind...)
		tools.Go(func() {
			out, err := exec.Command("slowhttptest", args...).CombinedOutput()
			if err != nil {
				t.Errorf("slowhttptest %v: %v\n%s", args, err, out)
			}
			t.Logf("%s: %s", kind[0], lastState(string(out)))
		})
	}
	// What the machine itself takes, busy with the attackers, is seen by those who ask the service without a node.
	var direct []time.Duration
	stop := make(chan struct{})
	tools.Go(func() { direct, _ = pace(t, &http.Client{}, "http://"+strings.TrimPrefix(addr, "http://")+"/", stop) })
	busy, failed := phase(attack * time.Second)
	close(stop)
	most := n.rss(t)
	tools.Wait()
	if len(failed) > 0 {
		t.Errorf("%d of %d honest requests failed: %s\n%s", len(failed), len(busy), failed[0], n.faults(t))
	}
	was, is, least := p99(calm), p99(busy), p99(direct)
	t.Logf("%d honest requests, p99 %v before, %v during the attack, when a direct one takes %v", len(busy), was, is, least)
	client.CloseIdleConnections()
	await(t, "connections end", settle, func() error {
		open := n.series(t, `piko_server_connections{listener="proxy"}`)
		if open > 50 {
			return fmt.Errorf("%v are open", open)
		}
		return nil
	})
	after := n.rss(t)
	t.Logf("resident: %d MiB before, %d at the end of the attack, %d after", before>>20, most>>20, after>>20)
	await(t, "memory returns", 4*time.Minute, // the collector looks every two minutes when nothing happens
		func() error {
			if after = n.rss(t); after > before+96<<20 {
				return fmt.Errorf("%d MiB", after>>20)
			}
			return nil
		})
	for _, reason := range []string{"slow_header", "slow_body", "slow_reader"} {
		count := n.series(t, fmt.Sprintf("piko_rejected_total{listener=%q,reason=%q}", "proxy", reason))
		t.Logf("%s: %v", reason, count)
		if count == 0 {
			t.Errorf("nobody was turned away for %s", reason)
		}
	}
}

// lastState is the line of slowhttptest's output that says what became of its connections.
func lastState(out string) string {
	var last []string
	for line := range strings.Lines(out) {
		if _, after, ok := strings.Cut(line, ":"); ok {
			for _, word := range []string{"pending", "connected", "error", "closed", "service available"} {
				if strings.Contains(line, word) && len(after) < 40 {
					last = append(last, strings.TrimSpace(line))
				}
			}
		}
	}
	return strings.Join(last[max(0, len(last)-5):], ", ")
}

// faults are the lines of the metrics that tell who was turned away, and why.
func (n *node) faults(t testing.TB) string {
	t.Helper()
	_, body, err := fetch("http://" + n.admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(body)) {
		if strings.HasPrefix(line, "piko_proxy_faults_total") && !strings.HasSuffix(line, " 0\n") ||
			strings.HasPrefix(line, "piko_rejected_total") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "")
}

// series is the value of one line of the metrics; 0 when it is not there.
func (n *node) series(t testing.TB, name string) float64 {
	t.Helper()
	_, body, err := fetch("http://" + n.admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(body)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			var f float64
			if _, err := fmt.Sscan(value, &f); err != nil {
				t.Fatal(err)
			}
			return f
		}
	}
	return 0
}

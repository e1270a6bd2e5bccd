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
			if err == nil && a.StatusCode != http.StatusOK {
				err = fmt.Errorf("status %d: %s", a.StatusCode, a.body)
			}
			if err != nil {
				failed = append(failed, err.Error())
			}
		})
	}
}

func p99(all []time.Duration) time.Duration {
	slices.Sort(all)
	return all[len(all)*99/100]
}

// noise is how long a request may take on two processors because others have their turn first, whatever the node does: beside
// it run services, clients and four attackers, and each may keep a processor for some milliseconds.
const noise = 25 * time.Millisecond

// target is a node with a service that echoes, and answers at length if asked for it, and an honest client of it.
type target struct {
	*node
	client *http.Client
	asked  int
	failed []string
	p99s   []time.Duration // of one window of time after another
}

func newTarget(t *testing.T) *target {
	t.Helper()
	// More than a node keeps for a slow reader. Much more, and thousands of sockets with full buffers on both sides, all of them of
	// this one machine, would be more than its kernel has for TCP: it would drop what is for others, whatever the node does.
	large := bytes.Repeat([]byte("x"), 512<<10)
	// By default those who are slow with their header would be gone before there is much to measure.
	n := startNode(t, nodeOptions{Proxy: "access_log = false\nread_header_timeout = \"1m\""})
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
	return &target{node: n, client: n.client(t)}
}

// window asks for so long.
func (s *target) window(t *testing.T, d time.Duration) {
	t.Helper()
	stop := make(chan struct{})
	time.AfterFunc(d, func() { close(stop) })
	took, failed := pace(t, s.client, at("web", "/"), stop)
	s.asked += len(took)
	s.failed = append(s.failed, failed...)
	if len(took) > 0 {
		s.p99s = append(s.p99s, p99(took))
	}
}

// usual is what half of the windows were better than. One in which the machine did something else says nothing of the node.
func (s *target) usual() time.Duration {
	if len(s.p99s) == 0 {
		return 0
	}
	all := slices.Sorted(slices.Values(s.p99s))
	return all[len(all)/2]
}

func (s *target) open(t *testing.T) float64 {
	return s.series(t, `piko_server_connections{listener="proxy"}`)
}

// attack runs one slowhttptest of each kind, each with that many connections, for so many seconds.
func (s *target) attack(t *testing.T, connections, seconds int) *sync.WaitGroup {
	t.Helper()
	tools := &sync.WaitGroup{}
	for _, kind := range [][]string{
		{"-H", "-i", "5", "-u", "http://web.piko.test/"},
		{"-B", "-i", "5", "-s", "100000", "-u", "http://web.piko.test/"},
		{"-R", "-u", "http://web.piko.test/"},
		{"-X", "-w", "512", "-y", "1024", "-n", "5", "-z", "32", "-u", "http://web.piko.test/large"},
	} {
		args := append([]string{
			"-c", fmt.Sprint(connections), "-r", "1000", "-l", fmt.Sprint(seconds), "-p", "5", "-d", s.proxy,
		}, kind...)
		tools.Go(func() {
			out, err := exec.Command("slowhttptest", args...).CombinedOutput()
			if err != nil {
				t.Errorf("slowhttptest %v: %v\n%s", args, err, out)
			}
			t.Logf("%s: %s", kind[0], lastState(string(out)))
		})
	}
	return tools
}

// Two thousand connections of each kind that slowhttptest knows, at once: no request of others fails, nor takes twice as long,
// the connections end, and what they took is given back.
//
// How long a request takes depends above all on who else wants a processor, and the attackers do. So it is compared with one to
// another node, of the same settings and asked in the same moments, that nobody attacks: what the machine does happens to
// both. That the attacked node keeps the other from its processor would not show in this, so its processor time is bounded
// too.
func TestSecuritySlowConnections(t *testing.T) {
	const connections, seconds = 2000, 90 // longer than every limit of a slow client
	attacked, spared := newTarget(t), newTarget(t)
	both := func(d time.Duration) {
		var work sync.WaitGroup
		work.Go(func() { spared.window(t, d) })
		attacked.window(t, d)
		work.Wait()
	}
	for range 4 {
		both(2 * time.Second)
	}
	t.Logf("before the attack: p99 %v, and %v at the other node", attacked.usual(), spared.usual())
	before := attacked.rss(t)
	tools := attacked.attack(t, connections, seconds)
	// The ramp ends when nothing grows: all connections are there, and what slow readers are to be given fills every buffer. Until
	// then it is the bytes themselves, hundreds of MiB at once, that others have to wait for.
	most, open, until := before, 0.0, time.Now().Add(30*time.Second)
	for grows := true; grows && time.Now().Before(until); {
		wasOpen, wasHeld := open, most
		both(time.Second)
		open, most = max(open, attacked.open(t)), max(most, attacked.rss(t))
		grows = open > wasOpen || most > wasHeld+wasHeld/50
	}
	full := open
	attacked.p99s, spared.p99s = nil, nil
	began, worked, idled := time.Now(), attacked.cpu(t), spared.cpu(t)
	for ; open >= 2*connections; open = attacked.open(t) { // until those of -H are gone: those of -B go earlier
		both(time.Second)
		most = max(most, attacked.rss(t))
	}
	took := time.Since(began)
	worked, idled = attacked.cpu(t)-worked, spared.cpu(t)-idled
	is, would := attacked.usual(), spared.usual()
	t.Logf("%v connections, %d windows: p99 %v, and %v at the other node; processor time %v and %v in %v",
		full, len(attacked.p99s), is, would, worked, idled, took.Round(time.Second))
	if len(attacked.p99s) < 5 {
		t.Errorf("the ramp took so long that only %d s were left", len(attacked.p99s))
	}
	if full < 2.7*connections { // those of -R have ended, and on a slow machine the first of the others
		t.Errorf("only %v connections were there at once", full)
	}
	if is > max(2*would, noise) {
		t.Errorf("a request takes %v beside the slow connections (%v) and %v without (%v)", is, attacked.p99s, would, spared.p99s)
	}
	if worked-idled > took/4 {
		t.Errorf("the slow connections take %v of processor time in %v", worked-idled, took)
	}
	for range 10 { // and while they end
		both(2 * time.Second)
		most = max(most, attacked.rss(t))
	}
	tools.Wait()
	for _, s := range []*target{attacked, spared} {
		if len(s.failed) > 0 {
			t.Errorf("%d of %d honest requests failed: %s\n%s", len(s.failed), s.asked, s.failed[0], s.faults(t))
		}
		s.client.CloseIdleConnections()
	}
	attacked.recovers(t, before, most)
}

// recovers waits until the attackers' connections have ended and their memory is given back, and wants each kind to have been
// turned away for what it did.
func (s *target) recovers(t *testing.T, before, most int64) {
	t.Helper()
	await(t, "connections end", settle, func() error {
		if open := s.open(t); open > 50 {
			return fmt.Errorf("%v are open", open)
		}
		return nil
	})
	after := s.rss(t)
	t.Logf("resident: %d MiB before, %d at most during the attack, %d after", before>>20, most>>20, after>>20)
	took := await(t, "memory returns", 4*time.Minute, // the collector looks every two minutes when nothing happens
		func() error {
			if after = s.rss(t); after > before+96<<20 {
				return fmt.Errorf("%d MiB", after>>20)
			}
			return nil
		})
	t.Logf("%d MiB after another %v", after>>20, took.Round(time.Second))
	for _, reason := range []string{"slow_header", "slow_body", "slow_reader"} {
		count := s.series(t, fmt.Sprintf("piko_rejected_total{listener=%q,reason=%q}", "proxy", reason))
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
			strings.HasPrefix(line, "piko_rejected_total") || strings.HasPrefix(line, "piko_server_abuses_total") {
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

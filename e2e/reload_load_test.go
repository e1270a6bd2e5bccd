package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// prompt is how soon a good change of the settings must have an effect, and a bit.
var prompt = bound(2 * time.Second)

// reloading is a daemon whose settings are changed by all triggers in turn.
type reloading struct {
	*process
	file, admin string
	turn        int
}

// become writes settings and has them reloaded by the next trigger. It does not wait for what comes of it.
func (r *reloading) become(t testing.TB, settings string) (trigger string) {
	t.Helper()
	r.turn++
	if err := os.WriteFile(r.file+".new", []byte(settings), 0o600); err != nil {
		t.Fatal(err)
	}
	if r.turn%8 == 4 { // an editor that writes in place
		mustWriteFile(t, r.file, settings)
	} else if err := os.Rename(r.file+".new", r.file); err != nil {
		t.Fatal(err)
	}
	switch r.turn % 4 {
	case 0:
		return "file"
	case 1:
		r.signal(t, syscall.SIGHUP)
		return "SIGHUP"
	case 2:
		resp, err := direct.Post("http://"+r.admin+"/reload", "", nil)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		return "POST /reload"
	default:
		run(t, nil, r.name, "--reload", strconv.Itoa(r.cmd.Process.Pid))
		return "--reload"
	}
}

// outcome is what the daemon says of its last reload.
func (r *reloading) outcome() (problems []string, err error) {
	var status struct {
		Reload struct{ Problems []string }
	}
	_, body, err := fetch("http://" + r.admin + "/status")
	if err == nil {
		err = json.Unmarshal(body, &status)
	}
	return status.Reload.Problems, err
}

// refused waits until the daemon says that it has refused settings because of a key.
func (r *reloading) refused(t testing.TB, trigger, key string) {
	t.Helper()
	await(t, "the refusal of "+key+" by "+trigger, 2*prompt, func() error {
		problems, err := r.outcome()
		if err == nil {
			err = contains(strings.Join(problems, "\n"), key)
		}
		return err
	})
}

// accepted waits until the daemon says that it has taken the last settings, which it says once they are in use.
func (r *reloading) accepted(t testing.TB) {
	t.Helper()
	await(t, "the settings are accepted", settle, func() error {
		problems, err := r.outcome()
		if err == nil && len(problems) > 0 {
			err = fmt.Errorf("have %q", problems)
		}
		return err
	})
}

// gauge reads a metric without labels.
func (r *reloading) gauge(t testing.TB, name string) float64 {
	t.Helper()
	_, body, err := fetch("http://" + r.admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(body)) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(rest), 64)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

// back waits until the daemon has about as many goroutines, files and memory as before.
func (r *reloading) back(t testing.TB, goroutines float64, files int, memory int64) {
	t.Helper()
	await(t, "what was used for the changes is given back", 5*time.Minute, func() error {
		g, f, m := r.gauge(t, "go_goroutines"), r.files(t), r.rss(t)
		if g > goroutines+15 || f > files+10 || m > memory+memory/4+(32<<20) {
			return fmt.Errorf("%.0f goroutines, %d files, %d KiB: before it were %.0f, %d and %d", g, f, m>>10, goroutines, files, memory>>10)
		}
		return nil
	})
	t.Logf("goroutines %.0f -> %.0f, files %d -> %d, memory %d -> %d KiB", goroutines, r.gauge(t, "go_goroutines"),
		files, r.files(t), memory>>10, r.rss(t)>>10)
}

// TestAHundredReloadsOfANodeUnderLoad is not parallel: it measures.
func TestAHundredReloadsOfANodeUnderLoad(t *testing.T) {
	const reloads = 100
	n := startNode(t, nodeOptions{})
	startAgent(t, n, agentOptions{}, offer{Endpoint: "e", Addr: serve(t, echoAll)},
		offer{Endpoint: "tcp", Addr: serveTCP(t, func(c *net.TCPConn) { hashing(c) }), Protocol: "tcp"})
	address, _ := startForward(t, n, "tcp")
	r := &reloading{process: n.process, file: n.file, admin: n.admin}
	settings := func(i int, more string) string {
		// Some hold for requests, some for connections to come, for which the listener is served anew.
		return fmt.Sprintf("drain_timeout = \"%ds\"\n%s\n[log]\nlevel = %q\n[proxy]\nlisten = %q\nidle_timeout = \"%ds\"\n"+
			"max_header_bytes = %q\nresponse_header_timeout = \"%ds\"\naccess_log = %v\n[upstream]\nlisten = %q\nmax_sessions = %d\n"+
			"[balance]\npolicy = %q\n[admin]\nlisten = %q\npprof = %v\n", 10+i%3, more, []string{"info", "warn"}[i%2], n.proxy, 60+i,
			fmt.Sprintf("%dKiB", 32+i%4), 30+i, i%3 == 0, n.upstream, 10+i, []string{"p2c", "round-robin", "local-first"}[i%3],
			n.admin, i%2 == 0)
	}
	profiles := func(want bool) func() error {
		return func() error {
			status, _, err := fetch("http://" + n.admin + "/debug/pprof/")
			if err == nil && (status == http.StatusOK) != want {
				err = fmt.Errorf("profiles: status %d", status)
			}
			return err
		}
	}
	broken := []struct{ text, key string }{
		{"[proxy", "proxy: "}, {"no_such_key = 1", "no_such_key"}, {"drain_notice = 5", "drain_notice"},
		{"[proxy.tls]\ncert = \"/no/such\"\nkey = \"/no/such\"", "proxy.tls.cert"}, {"[cluster]\nzone = \"z\"", "cluster.zone"},
	}
	load := startTraffic(t, n, trafficOptions{Endpoint: "e", Rate: 300, WebSockets: 4})
	transfer := make(chan error, 1)
	go func() { transfer <- upload(address, 100<<20, 25*time.Second) }()
	var goroutines float64
	var files int
	var memory int64
	var slowest time.Duration
	good := 0
	for i := range reloads {
		if i == 10 { // pools and buffers have been filled
			goroutines, files, memory = r.gauge(t, "go_goroutines"), r.files(t), r.rss(t)
		}
		if i%5 == 2 {
			b := broken[i/5%len(broken)]
			trigger := r.become(t, settings(good, "")+b.text)
			if strings.HasPrefix(b.text, "drain") || strings.HasPrefix(b.text, "no_") {
				trigger = r.become(t, settings(good, b.text))
			}
			r.refused(t, trigger, b.key)
			continue
		}
		good++
		began := time.Now()
		trigger := r.become(t, settings(good, ""))
		await(t, fmt.Sprintf("effect of reload %d by %s", i, trigger), prompt, profiles(good%2 == 0))
		slowest = max(slowest, time.Since(began))
	}
	if err := wait(t, "the end of the transfer", patience, transfer); err != nil {
		t.Errorf("transfer: %v", err)
	}
	load.end()
	t.Logf("the slowest effect took %s", slowest)
	r.accepted(t)
	r.back(t, goroutines, files, memory)
}

// TestReloadsOfAnAgentUnderLoad changes everything around one listener, which must notice nothing.
func TestReloadsOfAnAgentUnderLoad(t *testing.T) {
	n := startNode(t, nodeOptions{})
	admin := freeAddress(t)
	service, other := serve(t, echoAll), serve(t, say("other"))
	settings := func(i int, more string) string {
		text := fmt.Sprintf("drain_timeout = \"30s\"\n%s\n[connect]\nurl = \"http://%s\"\nconnections = %d\n[admin]\nlisten = %q\n"+
			"[[listeners]]\nendpoint = \"e\"\naddr = %q\n[[listeners]]\nendpoint = \"changed\"\naddr = %q\nweight = %d\n",
			more, n.upstream, 1+i%2, admin, service, []string{service, other}[i%2], 1+i)
		if i%2 == 1 {
			text += fmt.Sprintf("[[listeners]]\nendpoint = \"odd\"\naddr = %q\n", other)
		}
		return text
	}
	file := writeFile(t, "piko-agent.toml", settings(0, ""))
	r := &reloading{process: start(t, nil, "piko-agent", "--config", file), file: file, admin: admin}
	n.awaitEndpoint(t, "e", -1)
	load := startTraffic(t, n, trafficOptions{Endpoint: "e", Rate: 150, WebSockets: 2})
	c := n.client(t)
	var goroutines float64
	var files int
	var memory int64
	for i := 1; i <= 32; i++ {
		if i == 8 {
			goroutines, files, memory = r.gauge(t, "go_goroutines"), r.files(t), r.rss(t)
		}
		if i%4 == 3 {
			r.refused(t, r.become(t, settings(i, "drain_notice = 1")), "drain_notice")
		}
		trigger := r.become(t, settings(i, ""))
		await(t, fmt.Sprintf("effect of reload %d by %s", i, trigger), prompt, func() error {
			have, err := n.endpoints()
			if err != nil {
				return err
			}
			a, err := try(c, request(t, http.MethodPost, at("changed", "/"), strings.NewReader("mine")))
			if err != nil || a.StatusCode != http.StatusOK {
				return fmt.Errorf("endpoint that is changed: %v: %w", a.Response, or(err))
			}
			if want := []string{"mine", "other"}[i%2]; a.body != want || have["odd"] != i%2 {
				return fmt.Errorf("%q answers for the changed listener, %v", a.body, have)
			}
			return nil
		})
	}
	load.end()
	r.back(t, goroutines, files, memory)
}

// askForward says something and returns the answer.
func askForward(address string) (string, error) {
	c, err := net.DialTimeout("tcp", address, settle)
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(settle)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(c, "one"); err != nil {
		return "", err
	}
	b := make([]byte, 3)
	_, err = io.ReadFull(c, b)
	return string(b), err
}

// TestReloadsOfAForwarderUnderLoad changes everything around one forward, which must notice nothing.
func TestReloadsOfAForwarderUnderLoad(t *testing.T) {
	n := startNode(t, nodeOptions{})
	startAgent(t, n, agentOptions{}, offer{Endpoint: "bulk", Addr: serveTCP(t, func(c *net.TCPConn) { hashing(c) }), Protocol: "tcp"},
		offer{Endpoint: "one", Addr: serveTCP(t, echo), Protocol: "tcp"},
		offer{Endpoint: "two", Addr: serveTCP(t, func(c *net.TCPConn) { reply(c, "two") }), Protocol: "tcp"})
	steady, changed, comes, admin := freeAddress(t), freeAddress(t), freeAddress(t), freeAddress(t)
	settings := func(i int, more string) string {
		text := fmt.Sprintf("drain_timeout = \"%ds\"\n%s\n[connect]\nurl = \"http://%s\"\n[admin]\nlisten = %q\n"+
			"[[forwards]]\nlisten = %q\nendpoint = \"bulk\"\n[[forwards]]\nlisten = %q\nendpoint = %q\n",
			5+i, more, n.proxy, admin, steady, changed, []string{"one", "two"}[i%2])
		if i%2 == 1 {
			text += fmt.Sprintf("[[forwards]]\nlisten = %q\nendpoint = \"two\"\n", comes)
		}
		return text
	}
	file := writeFile(t, "piko-forward.toml", settings(0, ""))
	r := &reloading{process: start(t, nil, "piko-forward", "--config", file), file: file, admin: admin}
	r.awaitListen(t, "tcp", steady)
	transfer := make(chan error, 1)
	go func() { transfer <- upload(steady, 100<<20, 6*time.Second) }()
	kept := connect(t, changed)
	mustWrite(t, kept, "a")
	mustRead(t, kept, "a")
	var goroutines float64
	var files int
	var memory int64
	for i := 1; i <= 24; i++ {
		if i == 8 {
			goroutines, files, memory = r.gauge(t, "go_goroutines"), r.files(t), r.rss(t)
		}
		if i%6 == 3 {
			r.refused(t, r.become(t, settings(i, "drain_notice = 1")), "drain_notice")
		}
		trigger := r.become(t, settings(i, ""))
		await(t, fmt.Sprintf("effect of reload %d by %s", i, trigger), prompt, func() error {
			answer, err := askForward(changed)
			if err != nil || (answer == "two") != (i%2 == 1) {
				return fmt.Errorf("%q answers: %w", answer, or(err))
			}
			answer, err = askForward(comes)
			if (err == nil && answer == "two") != (i%2 == 1) {
				return fmt.Errorf("at the forward that comes and goes %q answers: %w", answer, or(err))
			}
			return nil
		})
		mustWrite(t, kept, "b") // where it was
		mustRead(t, kept, "b")
	}
	_ = kept.Close()
	if err := wait(t, "the end of the transfer", patience, transfer); err != nil {
		t.Errorf("transfer: %v", err)
	}
	r.back(t, goroutines, files, memory)
}

// TestCertificatesAreReplacedUnderLoad replaces files, and nothing else. It is not parallel: it measures.
func TestCertificatesAreReplacedUnderLoad(t *testing.T) {
	ca := newAuthority(t)
	certFile, keyFile := ca.issue(t, "e.piko.test")
	n := startNode(t, nodeOptions{Proxy: fmt.Sprintf("[proxy.tls]\ncert = %q\nkey = %q\n", certFile, keyFile)})
	startAgent(t, n, agentOptions{}, offer{Endpoint: "e", Addr: serve(t, echoAll)})
	r := &reloading{process: n.process, file: n.file, admin: n.admin}
	conf := &tls.Config{RootCAs: ca.pool}
	load := startTraffic(t, n, trafficOptions{Endpoint: "e", Rate: 100, WebSockets: 2, TLS: conf})
	shown := func() *x509.Certificate {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), settle)
		defer cancel()
		c, err := (&tls.Dialer{Config: &tls.Config{RootCAs: ca.pool, ServerName: "e.piko.test"}}).DialContext(ctx, "tcp", n.proxy)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		return c.(*tls.Conn).ConnectionState().PeerCertificates[0]
	}
	move := func(from, to string) {
		t.Helper()
		b, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(to+".new", b, 0o600)
		}
		if err == nil {
			err = os.Rename(to+".new", to)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range 4 {
		before := shown()
		newCert, newKey := ca.issue(t, "e.piko.test")
		move(newCert, certFile)
		if i%2 == 1 { // the key is late: the pair does not fit, and the old one stays
			r.refused(t, "file", "proxy.tls.key")
			if !shown().Equal(before) {
				t.Error("another certificate is shown while the pair does not fit")
			}
		}
		move(newKey, keyFile)
		await(t, "the new certificate", bound(3*time.Second), func() error {
			if shown().Equal(before) {
				return fmt.Errorf("the old one is shown")
			}
			return nil
		})
		r.accepted(t)
	}
	load.end()
}

// errAnswer stands for an answer that came and was not the one that was wanted.
var errAnswer = errors.New("another answer is wanted")

func or(err error) error {
	if err == nil {
		return errAnswer
	}
	return err
}

package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// inFlight begins a request that takes as long as the service likes, and gives what becomes of it.
func inFlight(t testing.TB, c *http.Client, url string) <-chan error {
	done := make(chan error, 1)
	r := request(t, http.MethodGet, url, nil)
	go func() {
		a, err := try(c, r)
		if err == nil && a.body != "begin end" {
			err = fmt.Errorf("status %d: %q", a.StatusCode, a.body)
		}
		done <- err
	}()
	return done
}

// slow answers in two pieces, the second after five seconds or when the client is gone.
func slow(began chan<- struct{}) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/early" {
			_, _ = io.WriteString(w, "begin ")
			_ = http.NewResponseController(w).Flush()
		}
		began <- struct{}{}
		select {
		case <-time.After(5 * time.Second):
		case <-r.Context().Done():
			return
		}
		if r.URL.Path != "/early" {
			_, _ = io.WriteString(w, "begin ")
		}
		_, _ = io.WriteString(w, "end")
	}
}

// TestAgentsComeBackAfterEveryCrash is not parallel: it measures how fast.
func TestAgentsComeBackAfterEveryCrash(t *testing.T) {
	n := startNode(t, nodeOptions{})
	web := startAgent(t, n, agentOptions{}, offer{Endpoint: "web", Addr: serve(t, say("ok"))})
	tcp := startAgent(t, n, agentOptions{}, offer{Endpoint: "tcp", Addr: serveTCP(t, echo), Protocol: "tcp"})
	address, forward := startForward(t, n, "tcp")
	for i := range 10 {
		n.kill(t)
		n.run(t)
		began := time.Now()
		for _, endpoint := range []string{"web", "tcp"} {
			n.awaitEndpoint(t, endpoint, -1)
		}
		if took := time.Since(began); took > bound(2*time.Second) {
			t.Errorf("restart %d: the agents took %s to come back: want at most 2 s", i, took)
		}
		if a := get(t, n.client(t), at("web", "/")); a.body != "ok" {
			t.Errorf("restart %d: status %d %s", i, a.StatusCode, a.body)
		}
		c := connect(t, address)
		mustWrite(t, c, "ping")
		mustRead(t, c, "ping")
	}
	for _, p := range []*process{web, tcp, forward} {
		if p.ended() {
			t.Errorf("%s ended with code %d: want it to outlive pikod", p.name, p.cmd.ProcessState.ExitCode())
		}
	}
}

func TestAgentWaitsForAServerThatIsNotThereYet(t *testing.T) {
	t.Parallel()
	n := &node{proxy: freeAddress(t), upstream: freeAddress(t), admin: freeAddress(t)}
	n.file = writeFile(t, "pikod.toml", fmt.Sprintf(
		"[proxy]\nlisten = %q\n[upstream]\nlisten = %q\n[admin]\nlisten = %q\n", n.proxy, n.upstream, n.admin))
	agent := launchAgent(t, n, agentOptions{}, offer{Endpoint: "e", Addr: serve(t, say("ok"))})
	select {
	case <-agent.done:
		t.Fatalf("agent ended with code %d: want it to keep trying", agent.cmd.ProcessState.ExitCode())
	case <-time.After(time.Second):
	}
	n.run(t)
	n.awaitEndpoint(t, "e", -1)
	if a := get(t, n.client(t), at("e", "/")); a.body != "ok" {
		t.Errorf("status %d %s", a.StatusCode, a.body)
	}
}

func TestSocketsLeftByACrashAreTakenOver(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "piko") // the path of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	n := &node{upstream: freeAddress(t), admin: freeAddress(t)}
	n.file = writeFile(t, "pikod.toml", fmt.Sprintf(
		"[proxy]\nlisten = \"unix:%s/proxy\"\n[upstream]\nlisten = %q\n[admin]\nlisten = %q\n", dir, n.upstream, n.admin))
	n.run(t)
	startAgent(t, n, agentOptions{}, offer{Endpoint: "e", Addr: serve(t, say("ok"))})
	for range 2 {
		n.awaitEndpoint(t, "e", -1)
		if out, errs, code := curl(t, "--unix-socket", dir+"/proxy", "http://e.piko.test/"); code != 0 || out != "ok" {
			t.Errorf("curl exits %d with %q %s", code, out, errs)
		}
		n.kill(t)
		n.run(t)
	}
}

func TestPikodFinishesWhatRunsWhenAskedToStop(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"/late", "/early"} {
		for _, version := range []string{"HTTP/1.1", "HTTP/2"} {
			t.Run(version+path, func(t *testing.T) {
				t.Parallel()
				began := make(chan struct{}, 1)
				n := oneService(t, nodeOptions{}, slow(began))
				done := inFlight(t, n.versions(t)[version], at("e", path))
				wait(t, "the service has the request", settle, began)
				n.signal(t, syscall.SIGTERM)
				if err := wait(t, "the request ends", settle, done); err != nil {
					t.Errorf("the request that ran: %v: want it completed", err)
				}
				if code := n.exit(t, settle); code != 0 {
					t.Errorf("pikod exits %d: want 0", code)
				}
			})
		}
	}
}

func TestAgentFinishesWhatRunsWhenAskedToStop(t *testing.T) {
	t.Parallel()
	began := make(chan struct{}, 1)
	n := startNode(t, nodeOptions{})
	agent := startAgent(t, n, agentOptions{}, offer{Endpoint: "e", Addr: serve(t, slow(began))})
	done := inFlight(t, n.client(t), at("e", "/early"))
	wait(t, "the service has the request", settle, began)
	agent.signal(t, syscall.SIGTERM)
	// While one request runs the endpoint is offered no more.
	n.awaitEndpoint(t, "e", 0)
	if err := wait(t, "the request ends", settle, done); err != nil {
		t.Errorf("the request that ran: %v: want it completed", err)
	}
	if code := agent.exit(t, settle); code != 0 {
		t.Errorf("agent exits %d: want 0", code)
	}
}

func TestAgentsAreReplacedWithoutAFailedRequest(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{})
	service := serve(t, say("ok"))
	agents := []*process{}
	for i := range 2 {
		agents = append(agents, startAgent(t, n, agentOptions{}, offer{Endpoint: "e", Addr: service}))
		n.awaitEndpoint(t, "e", i+1)
	}
	stop, failures := make(chan struct{}), make(chan error, 1)
	go func() {
		c := n.client(t)
		var all error
		for {
			select {
			case <-stop:
				failures <- all
				return
			default:
			}
			a, err := try(c, request(t, http.MethodPost, at("e", "/"), strings.NewReader("order")))
			if err == nil && a.StatusCode != 200 {
				err = fmt.Errorf("status %d: %s", a.StatusCode, a.body)
			}
			if err != nil {
				all = err
			}
		}
	}()
	for i := range 6 {
		agents[i%2].signal(t, syscall.SIGTERM)
		if code := agents[i%2].exit(t, settle); code != 0 {
			t.Errorf("agent exits %d: want 0", code)
		}
		n.awaitEndpoint(t, "e", 1)
		agents[i%2] = startAgent(t, n, agentOptions{}, offer{Endpoint: "e", Addr: service})
		n.awaitEndpoint(t, "e", 2)
	}
	close(stop)
	if err := wait(t, "the load ends", settle, failures); err != nil {
		t.Errorf("a request failed while agents were replaced one by one: %v", err)
	}
}

func TestForwardFinishesWhatRunsWhenAskedToStop(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{})
	startAgent(t, n, agentOptions{}, offer{Endpoint: "tcp", Addr: serveTCP(t, echo), Protocol: "tcp"})
	address, forward := startForward(t, n, "tcp")
	c := connect(t, address)
	mustWrite(t, c, "before")
	mustRead(t, c, "before")
	forward.signal(t, syscall.SIGTERM)
	await(t, "no new connection is taken", settle, func() error {
		c, err := net.Dial("tcp", address)
		if err != nil {
			return nil
		}
		_ = c.Close()
		return fmt.Errorf("one was")
	})
	mustWrite(t, c, "after")
	mustRead(t, c, "after")
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(c); err != nil || len(rest) > 0 {
		t.Errorf("end: %q, %v: want a clean one", rest, err)
	}
	if code := forward.exit(t, settle); code != 0 {
		t.Errorf("piko-forward exits %d: want 0", code)
	}
}

func TestReadinessGoesOffWhileDraining(t *testing.T) {
	t.Parallel()
	began, release := make(chan struct{}, 1), make(chan struct{})
	n := oneService(t, nodeOptions{Top: `drain_timeout = "5m"`}, func(w http.ResponseWriter, r *http.Request) {
		began <- struct{}{}
		select {
		case <-release:
			reply(w, "begin end")
		case <-r.Context().Done():
		}
	})
	done := inFlight(t, n.client(t), at("e", "/"))
	wait(t, "the service has the request", settle, began)
	n.signal(t, syscall.SIGTERM)
	await(t, "pikod says it is not ready", bound(3*time.Second), func() error {
		status, _, err := fetch("http://" + n.admin + "/ready")
		if err != nil || status == http.StatusServiceUnavailable {
			return err
		}
		return fmt.Errorf("status %d", status)
	})
	if status, _, err := fetch("http://" + n.admin + "/health"); err != nil || status != http.StatusOK {
		t.Errorf("health while draining: %d, %v: want 200", status, err)
	}
	close(release)
	if err := wait(t, "the request ends", settle, done); err != nil {
		t.Error(err)
	}
}

func TestSecondSignalEndsAtOnce(t *testing.T) {
	t.Parallel()
	began := make(chan struct{}, 2)
	n := startNode(t, nodeOptions{Proxy: `endpoint_wait = "5m"`}) // for the request to wait longer than the agent lives
	service := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		began <- struct{}{}
		<-r.Context().Done()
	})
	agent := startAgent(t, n, agentOptions{},
		offer{Endpoint: "e", Addr: service}, offer{Endpoint: "raw", Addr: service, Protocol: "tcp"})
	address, forward := startForward(t, n, "raw")
	held := connect(t, address)
	mustWrite(t, held, "GET /late HTTP/1.1\r\nHost: x\r\n\r\n")
	done := inFlight(t, n.client(t), at("e", "/late"))
	wait(t, "the service has one request", settle, began)
	wait(t, "the service has the other", settle, began)
	for _, p := range []*process{forward, agent, n.process} {
		p.signal(t, syscall.SIGTERM)
		await(t, p.name+" has noticed the first signal", bound(3*time.Second), func() error {
			if p.ended() {
				t.Fatalf("%s ended at the first signal with %d while a request ran", p.name, p.cmd.ProcessState.ExitCode())
			}
			if !strings.Contains(p.output(t), "drain") {
				return fmt.Errorf("its log does not speak of drain")
			}
			return nil
		})
		p.signal(t, syscall.SIGINT)
		if code := p.exit(t, bound(time.Second)); code != 1 {
			t.Errorf("%s exits %d at the second signal: want 1", p.name, code)
		}
	}
	if err := wait(t, "the request ends", settle, done); err == nil {
		t.Error("the request succeeded: want it cut with the processes")
	}
}

func TestDrainEndsAtItsDeadline(t *testing.T) {
	t.Parallel()
	began := make(chan struct{}, 1)
	n := oneService(t, nodeOptions{Top: `drain_timeout = "1s"`}, func(_ http.ResponseWriter, r *http.Request) {
		began <- struct{}{}
		<-r.Context().Done()
	})
	done := inFlight(t, n.client(t), at("e", "/"))
	wait(t, "the service has the request", settle, began)
	n.signal(t, syscall.SIGTERM)
	n.exit(t, bound(4*time.Second))
	if err := wait(t, "the request ends", settle, done); err == nil {
		t.Error("the request that outlived the drain succeeded: want it broken")
	}
}

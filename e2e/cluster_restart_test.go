package e2e

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pikoproxy/piko/e2e/classic"
)

// rolling says how nodes are restarted one after another, and under what load.
type rolling struct {
	drain   time.Duration // drain_timeout
	pause   time.Duration // before each restart
	lasting time.Duration // of one request in a hundred
	count   int64         // of requests, at least
	size    int64         // of the uploads that each restart meets
	held    int           // streams of each kind that last as long as they may
	local   float64       // the share of requests for which a node with agents for the endpoint is chosen; 0: as the nodes like
}

// spare is a time that may be short on a machine that is quiet. On others something that has to end within it is held up.
func spare(quietly, busy time.Duration) time.Duration {
	if quiet {
		return quietly
	}
	return busy
}

// notice is drain_notice. The balancer has to hear of it within that.
var notice = spare(time.Second, 4*time.Second)

var (
	briefly  = rolling{spare(6*time.Second, 10*time.Second), time.Second, 2 * time.Second, 0, 8 << 20, 1, 0}
	thorough = rolling{20 * time.Second, 10 * time.Second, 5 * time.Second, 36_000, 100 << 20, 4, 0.6}
)

// TestClusterRollingRestart is not parallel: it counts what fails under load.
func TestClusterRollingRestart(t *testing.T) { rollingRestart(t, briefly) }

// rollingRestart has agents with two connections each. For the crowd to choose which share of the requests takes a second
// node, all those through a node that has agents for the endpoint stay there.
func rollingRestart(t *testing.T, o rolling) {
	policy := ""
	if o.local > 0 {
		policy = "policy = \"local-first\""
	}
	c := o.cluster(t, policy)
	service := serve(t, loadService)
	load := o.crowd(o.local)
	for i := range 6 {
		load.Endpoints = append(load.Endpoints, fmt.Sprint("e", i))
		c.agents(t, 1, offer{Endpoint: load.Endpoints[i], Addr: service})
	}
	calls := serveGRPC(t, &grpcService{cancelled: make(chan struct{}, 1<<16)})
	c.agents(t, 2, offer{Endpoint: "g", Addr: calls}, offer{Endpoint: "tcp", Addr: serveTCP(t, echo), Protocol: "tcp"},
		offer{Endpoint: "bulk", Addr: serveTCP(t, func(c *net.TCPConn) { hashing(c) }), Protocol: "tcp"})
	load.Calls = o.held
	load.Forward = freeAddress(t)
	p := start(t, nil, "piko-forward", load.Forward, "tcp", "--url", "http://"+c.proxy)
	p.awaitListen(t, "tcp", load.Forward)
	c.roll(t, o, load, 2)
}

// TestClusterRollingRestartOfClassicAgents is not parallel either.
func TestClusterRollingRestartOfClassicAgents(t *testing.T) {
	o := briefly
	o.held, o.drain = 0, spare(10*time.Second, 12*time.Second) // long enough for both agents of an endpoint to leave the same node one after the other
	classicRollingRestart(t, o)
}

// classicRollingRestart has an agent of each classic version for each endpoint. Each has one connection.
func classicRollingRestart(t *testing.T, o rolling) {
	c := o.cluster(t, "")
	load := o.crowd(0)
	offer := func(endpoint string, serve func(*classic.Agent)) {
		for _, v := range classicVersions {
			a, err := classic.Listen(t.Context(), classic.Options{URL: "http://" + c.upstreams, Endpoint: endpoint, Version: v})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = a.Close() })
			serve(a)
		}
		c.awaitSessions(t, endpoint, len(classicVersions), settle)
	}
	for i := range 4 {
		load.Endpoints = append(load.Endpoints, fmt.Sprint("e", i))
		offer(load.Endpoints[i], func(a *classic.Agent) {
			serveOn(t, &http.Server{Handler: http.HandlerFunc(loadService), ReadHeaderTimeout: time.Minute}, a)
		})
	}
	offer("bulk", func(a *classic.Agent) {
		go func() {
			for {
				conn, err := a.Accept()
				if err != nil {
					return
				}
				go func() {
					hashing(conn)
					_ = conn.Close()
				}()
			}
		}()
	})
	c.roll(t, o, load, 2)
}

func (o rolling) cluster(t *testing.T, balance string) *cluster {
	return startClusterOf(t, 3, func(int) nodeOptions {
		return nodeOptions{
			Top:   fmt.Sprintf("drain_notice = %q\ndrain_timeout = %q", notice, o.drain),
			Proxy: "access_log = false", More: "[balance]\n" + balance,
		}
	})
}

func (o rolling) crowd(local float64) crowdOptions {
	return crowdOptions{Rate: 300, Local: local, Lasting: o.lasting, Brief: 2, Held: o.held}
}

// restart is when a node was told to stop, and when it had.
type restart struct{ told, ended time.Time }

// roll restarts the nodes one after another under load and wants no request to fail. What lasts longer than the drain timeout
// is to be cut when that is over, and no sooner.
func (c *cluster) roll(t *testing.T, o rolling, load crowdOptions, sessions int) {
	t.Helper()
	var forwards []string
	for _, n := range c.nodes {
		address, _ := startForward(t, n, "bulk")
		forwards = append(forwards, address)
	}
	for _, e := range load.Endpoints {
		c.routed(t, e)
	}
	f := startCrowd(t, c, load)
	t.Cleanup(func() { f.end() })
	var restarts []restart
	var uploads sync.WaitGroup
	for i, n := range c.nodes {
		name := fmt.Sprint("n", i+1)
		pause(o.pause)
		for k := range 2 { // through the node that is to stop, and through another one
			uploads.Go(func() {
				began := time.Now()
				err := upload(forwards[(i+k)%len(forwards)], o.size, o.drain/2)
				f.note(failure{node: (i + k) % len(forwards), what: "upload", began: began, err: err})
			})
		}
		pause(o.drain / 20)
		r := restart{told: time.Now()}
		n.signal(t, syscall.SIGTERM)
		if code := n.exit(t, o.drain+settle); code != 0 {
			t.Errorf("%s exits %d", name, code)
		}
		r.ended = time.Now()
		restarts = append(restarts, r)
		n.run(t)
		c.awaitAll(t)
		t.Logf("%s stopped in %s, was back after %s", name, r.ended.Sub(r.told).Round(time.Millisecond),
			time.Since(r.told).Round(time.Millisecond))
		uploads.Wait()
	}
	for _, e := range load.Endpoints {
		c.awaitSessions(t, e, sessions, settle)
	}
	await(t, "enough requests", 2*time.Minute, func() error {
		if n := f.sent.Load(); n < o.count {
			return fmt.Errorf("%d of %d", n, o.count)
		}
		return nil
	})
	failures := f.end()
	f.report(t)
	for i, n := range c.nodes {
		for line := range strings.Lines(n.output(t)) {
			// A node that has no processor for some seconds is silent, and that is down.
			if strings.Contains(line, "peer is down") && (quiet || !strings.Contains(line, "nothing received")) {
				t.Errorf("n%d takes a node that stops as it should for one that is down: %s", i+1, line)
			}
		}
	}
	for _, x := range f.breaks {
		if !o.justified(x, restarts) {
			x.err = fmt.Errorf("cut before the drain timeout: %w", x.err)
			failures = append(failures, x)
		}
	}
	complain(t, failures, f.sent.Load()+f.tunnels.Load())
}

// justified reports whether a stream was cut when a drain was over.
func (o rolling) justified(x failure, restarts []restart) bool {
	for _, r := range restarts {
		due := r.told.Add(notice + o.drain)
		if x.ended.After(due.Add(-100*time.Millisecond)) && x.ended.Before(r.ended.Add(bound(time.Second))) {
			return true
		}
	}
	return false
}

// TestClusterReplacesAgents is not parallel: it counts what fails under load.
func TestClusterReplacesAgents(t *testing.T) {
	const agents = 3
	c := startCluster(t, 3, "")
	service := serve(t, loadService)
	launch := func() *process {
		return launchAgent(t, c.nodes[0], agentOptions{URL: "http://" + c.upstreams, Connect: "connections = 2"},
			offer{Endpoint: "e", Addr: service})
	}
	var all []*process
	for range agents {
		all = append(all, launch())
	}
	c.awaitSessions(t, "e", 2*agents, settle)
	c.routed(t, "e")
	f := startCrowd(t, c, crowdOptions{Rate: 200, Endpoints: []string{"e"}, Lasting: 2 * time.Second, Brief: 3})
	t.Cleanup(func() { f.end() })
	for i := range all {
		pause(500 * time.Millisecond)
		all[i].signal(t, syscall.SIGTERM)
		if code := all[i].exit(t, settle); code != 0 {
			t.Errorf("agent %d exits %d", i, code)
		}
		all[i] = launch()
		c.awaitSessions(t, "e", 2*agents, settle)
	}
	failures := f.end()
	f.report(t)
	complain(t, failures, f.sent.Load())
}

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestHandoverOfAgentAndForwarder is not parallel: it measures.
func TestHandoverOfAgentAndForwarder(t *testing.T) {
	n := startNode(t, nodeOptions{})
	s := listenSystemd(t)
	agent := startAgent(t, n, agentOptions{Env: []string{"NOTIFY_SOCKET=" + s.path}}, offer{Endpoint: "e", Addr: serve(t, echoAll)},
		offer{Endpoint: "tcp", Addr: serveTCP(t, echo), Protocol: "tcp"})
	address, f := freeAddress(t), listenSystemd(t)
	forward := start(t, []string{"NOTIFY_SOCKET=" + f.path}, "piko-forward", address, "tcp", "--url", "http://"+n.proxy)
	forward.awaitListen(t, "tcp", address)
	load := startTraffic(t, n, trafficOptions{Endpoint: "e", Rate: 200})
	held := connect(t, address)
	mustWrite(t, held, "a")
	mustRead(t, held, "a")
	old := []int{agent.cmd.Process.Pid, forward.cmd.Process.Pid}
	next := []int{handOver(t, s, old[0]), handOver(t, f, old[1])}
	for i := range 100 {
		text := fmt.Sprintf("%03d", i)
		c := connect(t, address)
		mustWrite(t, c, text)
		mustRead(t, c, text)
		_ = c.Close()
	}
	mustWrite(t, held, "b") // in two old processes
	mustRead(t, held, "b")
	_ = held.Close()
	awaitEnd(t, old[0])
	awaitEnd(t, old[1])
	load.end()
	if most := time.Duration(load.slowest.Load()); most >= bound(500*time.Millisecond) {
		t.Errorf("a request took %s: want less than %s", most, bound(500*time.Millisecond))
	}
	if !alive(next[0]) || !alive(next[1]) {
		t.Error("a process that has taken over is gone")
	}
	if log := agent.output(t); strings.Contains(log, "level=error") {
		t.Errorf("the agents complain:\n%s", log)
	}
}

// TestWatchdogAndDrainAreToldToSystemd looks at what a service of systemd's says of itself.
func TestWatchdogAndDrainAreToldToSystemd(t *testing.T) {
	t.Parallel()
	s := listenSystemd(t)
	n := startNode(t, nodeOptions{Env: []string{"NOTIFY_SOCKET=" + s.path, "WATCHDOG_USEC=16000000"}})
	began := make(chan struct{}, 1)
	startAgent(t, n, agentOptions{}, offer{Endpoint: "slow", Addr: serve(t, slow(began))})
	await(t, "signs of life", settle, func() error {
		if have := s.count("WATCHDOG=1"); have < 2 {
			return fmt.Errorf("%d", have)
		}
		return nil
	})
	if log := n.output(t); strings.Contains(log, "watchdog") || strings.Contains(log, "PIKO-E") {
		t.Errorf("the question is heard of in the log:\n%s", log)
	}
	running := inFlight(t, n.client(t), at("slow", "/early"))
	wait(t, "the request", settle, began)
	n.signal(t, 15)
	if err := wait(t, "the request that runs", settle, running); err != nil {
		t.Error(err)
	}
	if code := n.exit(t, settle); code != 0 {
		t.Errorf("exit %d", code)
	}
	await(t, "systemd has heard of the drain", settle, func() error {
		if stops, more := s.count("STOPPING=1"), s.count("EXTEND_TIMEOUT_USEC="); stops != 1 || more < 2 {
			return fmt.Errorf("of %d stops, and of %d extensions", stops, more)
		}
		return nil
	})
}

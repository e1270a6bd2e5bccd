package e2e

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// handOverNode is handOver for a node that systemd does not watch: the log tells.
func handOverNode(t testing.TB, n *node, pid int) int {
	t.Helper()
	const done = "handed over, and stopping"
	before := strings.Count(n.output(t), done)
	if err := syscall.Kill(pid, syscall.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	var log string
	await(t, "another process takes over", settle, func() error {
		if log = n.output(t); strings.Count(log, done) == before {
			return fmt.Errorf("it has not yet")
		}
		return nil
	})
	all := strings.Split(log, "msg=starting ")
	_, number, _ := strings.Cut(all[len(all)-1], " pid=")
	number, _, _ = strings.Cut(number, " ")
	next, err := strconv.Atoi(number)
	if err != nil || next == pid {
		t.Fatalf("the new process is %q, after %d", number, pid)
	}
	t.Cleanup(func() { endProcess(t, next) })
	return next
}

// TestHandoverOfANodeOfACluster hands one of two nodes over, with clients at both and agents that know only that one. It is
// not parallel: it measures.
func TestHandoverOfANodeOfACluster(t *testing.T) {
	c := startCluster(t, 2, "drain_timeout = \"10s\"")
	n, other := c.nodes[0], c.nodes[1]
	startAgent(t, n, agentOptions{}, offer{Endpoint: "native", Addr: serve(t, echoAll)})
	await(t, "the other node knows", settle, func() error {
		a, err := try(other.client(t), request(t, "POST", at("native", "/"), nil))
		if err == nil && a.StatusCode != 200 {
			err = fmt.Errorf("status %d", a.StatusCode)
		}
		return err
	})
	here := startTraffic(t, n, trafficOptions{Endpoint: "native", Rate: 150})
	there := startTraffic(t, other, trafficOptions{Endpoint: "native", Rate: 150, WebSockets: 0})
	pid := n.cmd.Process.Pid
	for i := range 2 {
		asked := there.asked.Load()
		await(t, "some traffic", settle, func() error {
			if there.asked.Load() < asked+150 {
				return fmt.Errorf("%d requests", there.asked.Load())
			}
			return nil
		})
		next := handOverNode(t, n, pid)
		awaitEnd(t, pid)
		pid = next
		await(t, "the nodes are those that live", settle, func() error {
			states, err := other.states()
			if err != nil {
				return err
			}
			ids := slices.Sorted(maps.Keys(states))
			if len(ids) != 2 || states[ids[0]] != "up" || ids[1] != "n2" || (ids[0] == "n1") != (i == 1) || !strings.HasPrefix(ids[0], "n1") {
				return fmt.Errorf("have %v", states)
			}
			return nil
		})
	}
	for _, f := range []*traffic{here, there} {
		f.end()
		if most := time.Duration(f.slowest.Load()); most >= bound(500*time.Millisecond) {
			t.Errorf("a request took %s: want less than %s", most, bound(500*time.Millisecond))
		}
	}
}

package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"
	"testing"
)

// schedBatch is SCHED_BATCH of sched(7), as proc(5) writes it.
const schedBatch = "3"

// Threads of a node do not interrupt each other, also those that came when it was busy.
func TestAllThreadsOfANodeAreBatchThreads(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{})
	startAgent(t, n, agentOptions{}, offer{Endpoint: "e", Addr: serve(t, echoAll)})
	load := startTraffic(t, n, trafficOptions{Endpoint: "e", Rate: 300})
	await(t, "some traffic", settle, func() error {
		if asked := load.asked.Load(); asked < 100 {
			return fmt.Errorf("%d requests", asked)
		}
		return nil
	})
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", n.cmd.Process.Pid))
	if err != nil || len(threads) < 2 {
		t.Fatalf("%d threads: %v", len(threads), err)
	}
	for _, file := range threads {
		const policy = 41
		have, err := statField(file, policy)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue // it has ended
		}
		if err != nil || have != schedBatch {
			t.Errorf("%s has the policy %q: want %s: %v", file, have, schedBatch, err)
		}
	}
}

package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
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
		stat, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		const place = 41 - 3 // the third field is the first behind the name
		_, rest, _ := bytes.Cut(stat, []byte(") "))
		if fields := bytes.Fields(rest); len(fields) <= place || string(fields[place]) != schedBatch {
			t.Errorf("%s does not say that the policy is %s: %s", file, schedBatch, rest)
		}
	}
}

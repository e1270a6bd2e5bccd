package daemon

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// BatchThreads has the threads of the process, those there are and those to come, run under SCHED_BATCH (sched(7)): one that
// is woken does not interrupt another one. The runtime wakes threads to look for work all the time, and where the kernel
// puts such a thread on the core of the one that woke it, that one is interrupted for nothing.
//
// A process whose policy somebody has chosen already keeps it. Where the policy can't be set, as in a unit of ours with its
// filter of system calls, nothing changes: there the unit says it.
func (p *Process) BatchThreads() {
	if err := batchThreads(); err != nil {
		p.Log.WithError(err).Debug("scheduling policy kept")
	}
}

// threadPasses bounds how often the threads are looked at, should the kernel say that a policy is set, and not do it.
const threadPasses = 10

// batchThreads looks until it has found no other thread: one that it has not seen yet may start another.
func batchThreads() error {
	for pass, changed := 0, true; changed && pass < threadPasses; pass++ {
		changed = false
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return fmt.Errorf("list threads: %w", err)
		}
		for _, thread := range threads {
			id, err := strconv.Atoi(thread.Name())
			if err != nil {
				continue // the kernel has no other names
			}
			attr, err := unix.SchedGetAttr(id, 0)
			if err != nil || attr.Policy != unix.SCHED_NORMAL {
				continue // it has ended, or is as it should be
			}
			attr.Policy = unix.SCHED_BATCH
			if err := unix.SchedSetAttr(id, attr, 0); err != nil {
				return fmt.Errorf("set the scheduling policy of thread %d: %w", id, err)
			}
			changed = true
		}
	}
	return nil
}

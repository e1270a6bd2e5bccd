package daemon

import (
	"os"
	"runtime"
	"strconv"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// policies counts the threads of this process by scheduling policy.
func policies(t *testing.T) map[uint32]int {
	t.Helper()
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	count := map[uint32]int{}
	for _, thread := range threads {
		id, err := strconv.Atoi(thread.Name())
		if err != nil {
			t.Fatal(err)
		}
		if attr, err := unix.SchedGetAttr(id, 0); err == nil { // else it has ended
			count[attr.Policy]++
		}
	}
	return count
}

func TestThreadsAreOfBatchPolicyUnlessSomebodyHasChosen(t *testing.T) {
	var ready, done sync.WaitGroup
	release := make(chan struct{})
	// thread runs f on a thread of its own, which ends with it.
	thread := func(f func()) {
		ready.Add(1)
		done.Go(func() {
			runtime.LockOSThread()
			f()
			ready.Done()
			<-release
		})
	}
	for range 5 {
		thread(func() {})
	}
	thread(func() {
		attr, err := unix.SchedGetAttr(0, 0)
		if err != nil {
			t.Error(err)
			return
		}
		attr.Policy = unix.SCHED_IDLE
		if err := unix.SchedSetAttr(0, attr, 0); err != nil {
			t.Error(err)
		}
	})
	ready.Wait()
	if err := batchThreads(); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		thread(func() {})
	}
	ready.Wait()
	if got := policies(t); got[unix.SCHED_NORMAL] != 0 || got[unix.SCHED_IDLE] != 1 || got[unix.SCHED_BATCH] < 11 {
		t.Errorf("threads by policy: %v", got)
	}
	close(release)
	done.Wait()
}

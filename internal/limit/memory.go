package limit

import (
	"context"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

const (
	memoryEvery = 500 * time.Millisecond
	softShare   = 0.8 // of what the process may have: the garbage collector works harder from here
	fullShare   = 0.9 // nothing new is taken from here
	shortShare  = 0.95

	restAfter  = 10 * time.Second // without a collection of garbage a burst is over
	restEnough = 64 << 20         // what is held below this is not worth the work
)

// Pressure is how much of the memory that it may hold the process holds.
type Pressure int32

// The degrees of pressure.
const (
	Enough Pressure = iota
	Full            // 90 %: nothing new is taken
	Short           // 95 %: what rests is given up too, and nobody is let in to be told so
)

func (p Pressure) String() string { return [...]string{"enough", "full", "short"}[p] }

// Memory watches how much memory the process holds of what it may hold.
type Memory struct {
	limit    atomic.Int64 // 0: none
	used     func() int64
	pressure atomic.Int32

	// What a burst has left behind, the garbage collector finds when as much again was allocated, or after two minutes,
	// and the system gets it back later still. So it is made to look as soon as there is rest, once.
	cycles func() uint64 // of the garbage collector so far
	free   func()        // collects garbage and gives back what is not needed
	seen   uint64        // cycles
	since  time.Time     // when they were another number
	freed  bool          // since then
	tasks  func() int    // goroutines that there are
	busy   int           // tasks when memory was given back
}

// NewMemory returns a watch that knows no limit.
func NewMemory() *Memory {
	return &Memory{used: heldMemory, cycles: collections, free: giveBack, tasks: runtime.NumGoroutine}
}

// Apply sets how many bytes the process may hold; 0 means what the control group of the process says, or if that says
// nothing, so much that GOMEMLIMIT is 80 % of it; without that either there is no limit. The garbage collector is told to
// stay below 80 %, unless GOMEMLIMIT is set in the environment, whose author knows better.
func (m *Memory) Apply(limit int64) {
	own := os.Getenv("GOMEMLIMIT") != ""
	if limit <= 0 {
		limit = groupLimit("/proc/self/cgroup", "/sys/fs/cgroup")
	}
	if limit <= 0 && own {
		limit = limitAbove(debug.SetMemoryLimit(-1))
	}
	if m.limit.Swap(limit) == limit || own {
		return
	}
	soft := int64(math.MaxInt64)
	if limit > 0 {
		soft = int64(float64(limit) * softShare)
	}
	debug.SetMemoryLimit(soft)
}

// Limit is how many bytes the process may hold; 0: as many as there are.
func (m *Memory) Limit() int64 { return m.limit.Load() }

// limitAbove is the limit that a soft one, as in GOMEMLIMIT, belongs to; 0: none.
func limitAbove(soft int64) int64 {
	if soft <= 0 || soft == math.MaxInt64 {
		return 0
	}
	return int64(float64(soft) / softShare)
}

// Pressure is what the last look has found.
func (m *Memory) Pressure() Pressure { return Pressure(m.pressure.Load()) }

// Full reports whether nothing new is to be taken, since the process holds 90 % of what it may.
func (m *Memory) Full() bool { return m.Pressure() >= Full }

// Short reports whether not even those are to be let in who would be told that nothing is taken, since the process holds
// 95 % of what it may.
func (m *Memory) Short() bool { return m.Pressure() >= Short }

// Run looks again and again until ctx ends. Each look tells what it has found; nil: nobody wants to know.
func (m *Memory) Run(ctx context.Context, told func(Pressure)) error {
	tick := time.NewTicker(memoryEvery)
	defer tick.Stop()
	for {
		m.look()
		if told != nil {
			told(m.Pressure())
		}
		m.rest(time.Now())
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (m *Memory) look() {
	limit, p := m.limit.Load(), Enough
	if limit > 0 {
		switch share := float64(m.used()) / float64(limit); {
		case share >= shortShare:
			p = Short
		case share >= fullShare:
			p = Full
		}
	}
	m.pressure.Store(int32(p))
}

// rest gives memory back when nothing much has happened for a while.
func (m *Memory) rest(now time.Time) {
	if cycles := m.cycles(); cycles != m.seen {
		m.seen, m.since, m.freed = cycles, now, false
		return
	}
	if m.freed && m.tasks() < m.busy/2 {
		m.since, m.freed = now, false // much has ended, and nothing has come that would call for a collection
	}
	if m.freed || now.Sub(m.since) < restAfter || m.used() < restEnough {
		return
	}
	m.free()
	m.seen, m.freed, m.busy = m.cycles(), true, m.tasks()
}

// collections is how often garbage was collected so far.
func collections() uint64 {
	sample := [...]metrics.Sample{{Name: "/gc/cycles/total:gc-cycles"}}
	metrics.Read(sample[:])
	return sample[0].Value.Uint64()
}

// giveBack collects garbage and returns what is free to the system. What pools hold survives one collection.
func giveBack() {
	runtime.GC()
	debug.FreeOSMemory()
}

// heldMemory is what the Go runtime holds of the system's memory.
func heldMemory() int64 {
	samples := [...]metrics.Sample{
		{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"},
	}
	metrics.Read(samples[:])
	return int64(samples[0].Value.Uint64() - samples[1].Value.Uint64()) //nolint:gosec // far below 2^63
}

// groupLimit returns the smallest limit of memory on the way from the root of the control groups to that of this
// process; 0 if there is none. It reads version 2 and version 1.
func groupLimit(self, root string) int64 {
	text, err := os.ReadFile(self)
	if err != nil {
		return 0 // no control groups here
	}
	limit := int64(0)
	for line := range strings.Lines(string(text)) {
		// "0::/path" in version 2, "N:memory:/path" in version 1
		part := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(part) != 3 {
			continue
		}
		dir, file := root, "memory.max"
		switch {
		case part[0] == "0" && part[1] == "":
		case part[1] == "memory":
			dir, file = root+"/memory", "memory.limit_in_bytes"
		default:
			continue
		}
		path := strings.TrimSuffix(part[2], "/")
		for {
			if n := readLimit(dir + path + "/" + file); n > 0 && (limit == 0 || n < limit) {
				limit = n
			}
			i := strings.LastIndexByte(path, '/')
			if i < 0 {
				break
			}
			path = path[:i]
		}
	}
	return limit
}

// noLimit is what version 1 says for none: the largest number of whole pages.
const noLimit = math.MaxInt64 &^ 0xffff

func readLimit(file string) int64 {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil || n >= noLimit { // "max"
		return 0
	}
	return n
}

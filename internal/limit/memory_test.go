package limit

import (
	"context"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"testing"
	"time"
)

func TestGroupLimit(t *testing.T) {
	root := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write("v2/system.slice/memory.max", "2000000\n")
	write("v2/system.slice/pikod.service/memory.max", "max\n")
	write("v2/other/memory.max", "1000\n")
	write("v1/memory/docker/abc/memory.limit_in_bytes", "3000000\n")
	write("v1/memory/memory.limit_in_bytes", "9223372036854771712\n")
	for _, c := range []struct {
		name, self, root string
		want             int64
	}{
		{"version 2, of a parent", write("a", "0::/system.slice/pikod.service\n"), "v2", 2000000},
		{"version 2, none", write("b", "0::/\n"), "v2", 0},
		{"version 1", write("c", "5:cpu:/docker/abc\n4:memory:/docker/abc\n"), "v1", 3000000},
		{"version 1, none", write("d", "4:memory:/\n"), "v1", 0},
		{"no groups", filepath.Join(root, "absent"), "v2", 0},
	} {
		if got := groupLimit(c.self, filepath.Join(root, c.root)); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}

func TestMemoryIsFullAt90PercentAndShortAt95(t *testing.T) {
	t.Setenv("GOMEMLIMIT", "off") // the test's own process is none of its business
	m := NewMemory()
	held := int64(0)
	m.used = func() int64 { return held }
	m.Apply(1000)
	for _, c := range []struct {
		held int64
		want Pressure
	}{{899, Enough}, {900, Full}, {949, Full}, {950, Short}, {2000, Short}, {900, Full}, {100, Enough}} {
		held = c.held
		m.look()
		if m.Pressure() != c.want || m.Full() != (c.want >= Full) || m.Short() != (c.want == Short) {
			t.Errorf("with %d of 1000 bytes it is %s, full: %v, short: %v", c.held, m.Pressure(), m.Full(), m.Short())
		}
	}
	if heldMemory() < 1<<20 {
		t.Error("the process holds nothing")
	}
}

// An operator who sets nothing but GOMEMLIMIT has said how much there is.
func TestTheLimitOfMemoryFollowsGOMEMLIMIT(t *testing.T) {
	for _, c := range []struct{ soft, want int64 }{{800, 1000}, {math.MaxInt64, 0}, {0, 0}} {
		if got := limitAbove(c.soft); got != c.want {
			t.Errorf("with GOMEMLIMIT %d: %d, want %d", c.soft, got, c.want)
		}
	}
	want := int64(10 << 40)
	if group := groupLimit("/proc/self/cgroup", "/sys/fs/cgroup"); group > 0 {
		want = group // which counts more
	}
	before := debug.SetMemoryLimit(8 << 40)
	t.Cleanup(func() { debug.SetMemoryLimit(before) })
	t.Setenv("GOMEMLIMIT", "8TiB")
	m := NewMemory()
	if m.Apply(0); m.Limit() != want {
		t.Errorf("the limit is %d, want %d", m.Limit(), want)
	}
	if m.Apply(1000); m.Limit() != 1000 || debug.SetMemoryLimit(-1) != 8<<40 {
		t.Errorf("the limit is %d, want that of the settings; that of the collector is %d", m.Limit(), debug.SetMemoryLimit(-1))
	}
}

func TestEachLookAtMemoryIsTold(t *testing.T) {
	m := NewMemory()
	m.used = func() int64 { return 100 }
	m.limit.Store(100)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	told := make(chan Pressure, 1)
	done := make(chan error, 1)
	go func() {
		done <- m.Run(ctx, func(p Pressure) {
			select {
			case told <- p:
			default:
			}
		})
	}()
	if p := <-told; p != Short {
		t.Errorf("told %s", p)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestMemoryIsGivenBackAfterABurst(t *testing.T) {
	m := NewMemory()
	cycles, held, freed := uint64(1), int64(restEnough), 0
	m.cycles, m.used = func() uint64 { return cycles }, func() int64 { return held }
	m.free = func() { freed++; cycles += 2 }
	tasks := 100
	m.tasks = func() int { return tasks }
	now := time.Now()
	step := func(d time.Duration, want int, when string) {
		t.Helper()
		now = now.Add(d)
		if m.rest(now); freed != want {
			t.Errorf("%s: given back %d times, want %d", when, freed, want)
		}
	}
	step(0, 0, "at first")
	step(restAfter-1, 0, "a moment early")
	cycles++
	step(1, 0, "garbage was collected")
	step(restAfter, 1, "rest")
	step(restAfter, 1, "more rest")
	cycles++
	step(0, 1, "another burst")
	held--
	step(restAfter, 1, "too little is held")
	held++
	step(0, 2, "rest again")
	tasks = 50
	step(restAfter, 2, "half of all has ended")
	tasks = 49
	step(0, 2, "more than half has ended")
	step(restAfter, 3, "rest without a collection")
	if before := collections(); before == 0 {
		giveBack()
		if collections() <= before {
			t.Error("no garbage is collected")
		}
	}
}

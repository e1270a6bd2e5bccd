package daemon

import (
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
)

func TestMemoryOfTheCgroup(t *testing.T) {
	for _, c := range []struct {
		name  string
		files map[string]string
		want  int64
		bad   bool
	}{
		{"version 2, in a container", map[string]string{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "1000\n"}, 1000, false},
		{"version 2, no limit", map[string]string{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, 0, false},
		{"version 2, the slice above is tighter", map[string]string{
			"proc/self/cgroup":                                      "0::/system.slice/pikod.service\n",
			"sys/fs/cgroup/system.slice/memory.max":                 "500\n",
			"sys/fs/cgroup/system.slice/pikod.service/memory.max":   "1000\n",
			"sys/fs/cgroup/system.slice/another.service/memory.max": "1\n",
		}, 500, false},
		{"version 2, path of the host", map[string]string{
			"proc/self/cgroup": "0::/kubepods/pod1\n", "sys/fs/cgroup/memory.max": "700\n",
		}, 700, false},
		{"path that climbs", map[string]string{"proc/self/cgroup": "0::/../../x\n", "sys/fs/cgroup/x/memory.max": "9\n"}, 9, false},
		{"version 1", map[string]string{
			"proc/self/cgroup": "5:cpu,cpuacct:/a\n4:memory:/a\n0::/b\n", "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "800\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
		}, 800, false},
		{"nonsense", map[string]string{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "lots\n"}, 0, true},
		{"none", nil, 0, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := fstest.MapFS{}
			for name, data := range c.files {
				root[name] = &fstest.MapFile{Data: []byte(data)}
			}
			have, err := cgroupMemory(root)
			if have != c.want || (err != nil) != c.bad {
				t.Errorf("have %d, %v, want %d", have, err, c.want)
			}
		})
	}
}

func TestVersionSaysWhatIsKnown(t *testing.T) {
	stamped := &debug.BuildInfo{Main: debug.Module{Version: "v1.2.3"}, Settings: []debug.BuildSetting{
		{Key: "vcs.revision", Value: "abc"}, {Key: "vcs.time", Value: "2026-08-22T10:00:00Z"},
	}}
	for _, c := range []struct {
		name                  string
		info                  *debug.BuildInfo
		version, commit, date string
		want                  string
	}{
		{"nothing", nil, "", "", "", "dev (go"},
		{"a checkout without stamp", &debug.BuildInfo{Main: debug.Module{Version: "(devel)"}}, "", "", "", "dev (go"},
		{"the toolchain's stamp", stamped, "", "", "", "1.2.3 (abc, 2026-08-22T10:00:00Z, go"},
		{"the linker's stamp", stamped, "1.3.0", "def", "2026-08-23", "1.3.0 (def, 2026-08-23, go"},
	} {
		if have := describe(c.info, c.version, c.commit, c.date); !strings.HasPrefix(have, c.want) {
			t.Errorf("%s: have %q, want %q", c.name, have, c.want)
		}
	}
}

func TestNoCoreIsWritten(t *testing.T) {
	noCores()
	var have syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_CORE, &have); err != nil || have.Cur != noCore || have.Max != noCore {
		t.Errorf("the limit of cores is %v, %v", have, err)
	}
}

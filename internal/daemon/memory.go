package daemon

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/sirupsen/logrus"
)

// memoryShare is the part of the cgroup's memory that the garbage collector may let the process reach. The rest is for
// what it does not count: thread stacks, the binary, the kernel's socket buffers.
const memoryShare = 0.9

// limitMemory tells the garbage collector how much memory the cgroup allows, unless the operator has set GOMEMLIMIT, so
// that it works harder instead of being killed. The runtime does so for processors by itself, but not for memory.
func limitMemory(log logrus.FieldLogger) {
	if os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	limit, err := cgroupMemory(os.DirFS("/"))
	if err != nil {
		log.WithError(err).Debug("memory limit unknown")
		return
	}
	if limit > 0 {
		limit = int64(float64(limit) * memoryShare)
		debug.SetMemoryLimit(limit)
		log.WithField("bytes", limit).Debug("memory limit set")
	}
}

// unlimited is where the numbers begin that cgroup v1 writes for "no limit"; they depend on the page size.
const unlimited = 1 << 60

// cgroupMemory returns the smallest memory limit in bytes among the process's cgroup and those above it, 0 if there is
// none. It knows cgroup v1 and v2.
func cgroupMemory(root fs.FS) (int64, error) {
	self, err := fs.ReadFile(root, "proc/self/cgroup")
	if err != nil {
		return 0, err
	}
	var least int64
	for line := range strings.Lines(string(self)) {
		// hierarchy-ID:controllers:path, where version 2 has no controllers.
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		mount, file := "sys/fs/cgroup", "memory.max"
		if parts[1] == "memory" {
			mount, file = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
		} else if parts[1] != "" {
			continue
		}
		limit, err := leastAbove(root, mount, parts[2], file)
		if err != nil {
			return 0, err
		}
		if limit > 0 && (least == 0 || limit < least) {
			least = limit
		}
	}
	return least, nil
}

// leastAbove returns the smallest limit from the group up to the mount point. A group that cannot be seen is passed
// over: inside a container the path may be the host's, and then the mount point is the container's own group.
func leastAbove(root fs.FS, mount, group, file string) (int64, error) {
	var least int64
	for dir := path.Join("/", group); ; dir = path.Dir(dir) {
		data, err := fs.ReadFile(root, path.Join(mount, dir, file))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, err
		}
		if text := strings.TrimSpace(string(data)); err == nil && text != "max" {
			n, err := strconv.ParseInt(text, 10, 64)
			if err != nil {
				return 0, err
			}
			if n < unlimited && (least == 0 || n < least) {
				least = n
			}
		}
		if dir == "/" {
			return least, nil
		}
	}
}

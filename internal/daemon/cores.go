package daemon

import (
	"os"
	"syscall"
)

// noCores keeps the memory of a process that crashes, and with it keys and tokens, from being written to disk, unless
// somebody has asked for exactly that.
func noCores() {
	if os.Getenv("GOTRACEBACK") != "crash" {
		// Where it can't be set there are no core files either.
		_ = syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{})
	}
}

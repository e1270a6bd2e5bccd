package daemon

import (
	"os"
	"syscall"
)

// noCore is the size of core files that means that there are none, wherever they would go.
const noCore = 1

// noCores keeps the memory of a process that crashes, and with it keys and tokens, from being written to disk, unless
// somebody has asked for exactly that. One byte, and not none: the kernel hands no core to a program that collects them only
// then (core(5)). That the process can't be looked into otherwise (PR_SET_DUMPABLE) is not asked for: who has its user can read
// the files of its secrets too, and tools that count its files could do so no more.
func noCores() {
	if os.Getenv("GOTRACEBACK") != "crash" {
		// Where it can't be set there are no core files either.
		_ = syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{Cur: noCore, Max: noCore})
	}
}

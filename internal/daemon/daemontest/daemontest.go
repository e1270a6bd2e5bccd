// Package daemontest runs the scripts that try a daemon's command line, in its folder's testdata. The daemon is the real
// one, in a process of its own: the test binary, which becomes the daemon when it is called by the daemon's name.
//
// Scripts are those of testscript, and know two more commands:
//
//	exits CODE PROGRAM [ARG...]   run the program and want this exit code
//	appears FILE                  wait until the file is there, for a minute at most
//
// The package is for tests only.
package daemontest

import (
	"errors"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// Main is the TestMain of a daemon's folder. It does not return.
func Main(m *testing.M, name string, main func()) {
	testscript.Main(m, map[string]func(){name: main})
}

// Run runs the scripts in testdata.
func Run(t *testing.T) {
	t.Helper()
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exits": exits, "appears": appears,
		},
	})
}

func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM [ARG...]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	code := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("%v", err)
		}
		code = exit.ExitCode()
	}
	if code != want {
		ts.Fatalf("exit code %d, want %d", code, want)
	}
}

// appearLimit is generous: it is reached only if the test fails.
const appearLimit = time.Minute

func appears(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: appears FILE")
	}
	file := ts.MkAbs(args[0])
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for limit := time.Now().Add(appearLimit); time.Now().Before(limit); <-tick.C {
		if _, err := os.Stat(file); err == nil {
			return
		}
	}
	ts.Fatalf("%s has not appeared", file)
}

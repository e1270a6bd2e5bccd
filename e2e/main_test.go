package e2e

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// binaries is the folder of the daemons under test; TestMain sets it before any test runs.
var binaries string

// spawn runs functions on one thread that lives as long as the test program. Children are started there because a
// child that is to die with its parent dies, on Linux, with the thread that started it.
var spawn = make(chan func())

func TestMain(m *testing.M) {
	flag.Parse()
	if err := prepare(); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		os.Exit(1)
	}
	go func() {
		runtime.LockOSThread()
		for f := range spawn {
			f()
		}
	}()
	os.Exit(m.Run())
}

func prepare() error {
	// Most of what runs in parallel here waits; two cores are no reason to let only two tests wait at once.
	chosen := false
	flag.Visit(func(f *flag.Flag) { chosen = chosen || f.Name == "test.parallel" })
	if !chosen {
		if err := flag.Set("test.parallel", "16"); err != nil {
			return err
		}
	}
	for tool, pkg := range map[string]string{"curl": "curl", "redis-server": "redis", "redis-cli": "redis"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%s is needed: install it (Debian: apt-get install %s): %w", tool, pkg, err)
		}
	}
	version, err := exec.Command("curl", "--version").Output()
	if err != nil || !bytes.Contains(version, []byte("HTTP2")) {
		return errors.Join(errors.New("curl has no HTTP/2: want one that does"), err)
	}
	return findBinaries()
}

// findBinaries takes the daemons from $PIKO_BIN, or builds them into ../bin when it is not set.
func findBinaries() error {
	names := []string{"pikod", "piko-agent", "piko-forward"}
	dir, given := os.LookupEnv("PIKO_BIN")
	if !given || dir == "" {
		dir = filepath.Join("..", "bin")
		build := exec.Command("go", "build", "-o", "bin/")
		build.Dir = ".."
		for _, name := range names {
			build.Args = append(build.Args, "./"+name)
		}
		if out, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", strings.Join(build.Args, " "), err, out)
		}
	}
	var err error
	if binaries, err = filepath.Abs(dir); err != nil {
		return err
	}
	for _, name := range names {
		if _, err := os.Stat(filepath.Join(binaries, name)); err != nil {
			return fmt.Errorf("PIKO_BIN: want a folder that holds %s: %w", strings.Join(names, ", "), err)
		}
	}
	return nil
}

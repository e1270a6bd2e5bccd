package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	startLimit = 3 * time.Minute
	stopLimit  = 20 * time.Second

	// tick is the unit of times in /proc, 1/100 s on every Linux that Go runs on.
	tick = 10 * time.Millisecond
)

// group is a process that was started here, with all its descendants.
type group struct {
	label string
	cmd   *exec.Cmd
	log   string
	ended chan struct{} // closed when the process has ended; err is set then
	err   error
}

// groups are all that have been started, oldest first.
type groups struct {
	logs string // the folder for what they print
	list []*group
}

// start starts a command in a process group of its own. What it prints goes to a file, as under a service manager.
func (gs *groups) start(label string, args ...string) (*group, error) {
	log := filepath.Join(gs.logs, fmt.Sprintf("%d-%s.log", len(gs.list), label))
	out, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer out.Close() //nolint:errcheck // the process has its own descriptor; nothing was written by this one
	g := &group{label: label, cmd: exec.Command(args[0], args[1:]...), log: log, ended: make(chan struct{})}
	g.cmd.Stdout, g.cmd.Stderr = out, out
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := g.cmd.Start(); err != nil {
		return nil, err
	}
	gs.list = append(gs.list, g)
	go func() {
		g.err = g.cmd.Wait()
		close(g.ended)
	}()
	return g, nil
}

// startRole starts this program in one of its other roles.
func (gs *groups) startRole(role string, args ...string) (*group, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return gs.start(strings.TrimPrefix(role, "@"), append([]string{self, role}, args...)...)
}

// await waits until ready says so, and gives up when time is over or one of the processes has ended.
func (gs *groups) await(what string, ready func() error) error {
	wait := time.NewTicker(20 * time.Millisecond)
	defer wait.Stop()
	var err error
	for limit := time.Now().Add(startLimit); time.Now().Before(limit); <-wait.C {
		for _, g := range gs.list {
			select {
			case <-g.ended:
				return fmt.Errorf("waiting for %s: %s has ended (%w):\n%s", what, g.label, g.err, tail(g.log))
			default:
			}
		}
		if err = ready(); err == nil {
			return nil
		}
	}
	return fmt.Errorf("waited %s for %s: %w", startLimit, what, err)
}

func (gs *groups) awaitPort(addr string) error {
	return gs.await(addr, func() error {
		c, err := net.DialTimeout("tcp", addr, time.Second)
		if err == nil {
			_ = c.Close()
		}
		return err
	})
}

// stop stops those from the given place on, newest first.
func (gs *groups) stop(from int) error {
	var errs []error
	for _, g := range slices.Backward(gs.list[from:]) {
		if err := g.stop(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", g.label, err))
		}
	}
	gs.list = gs.list[:from]
	return errors.Join(errs...)
}

// stop ends the whole group. A process that answers SIGTERM by an exit code is no error: that is another test's business.
func (g *group) stop() error {
	all := -g.cmd.Process.Pid
	_ = syscall.Kill(all, syscall.SIGTERM)
	limit := time.NewTimer(stopLimit)
	defer limit.Stop()
	var err error
	select {
	case <-g.ended:
	case <-limit.C:
		err = fmt.Errorf("still there %s after SIGTERM", stopLimit)
	}
	_ = syscall.Kill(all, syscall.SIGKILL) // descendants that outlived the first
	<-g.ended
	return err
}

// usage returns the CPU time that the group's living processes have used since they began, and their resident memory.
func (g *group) usage() (cpu time.Duration, rss int64) {
	names, err := os.ReadDir("/proc")
	if err != nil {
		return 0, 0
	}
	for _, name := range names {
		if _, err := strconv.Atoi(name.Name()); err != nil {
			continue
		}
		stat, err := os.ReadFile(filepath.Join("/proc", name.Name(), "stat"))
		if err != nil {
			continue // it has ended meanwhile
		}
		pgrp, used, pages := parseStat(string(stat))
		if pgrp == g.cmd.Process.Pid {
			cpu += used
			rss += pages * int64(os.Getpagesize())
		}
	}
	return cpu, rss
}

// parseStat reads process group, CPU time and resident pages from a line of /proc/PID/stat. The name of the command stands in
// parentheses and may hold anything, so counting starts behind the last one.
func parseStat(line string) (pgrp int, cpu time.Duration, pages int64) {
	f := strings.Fields(line[strings.LastIndexByte(line, ')')+1:])
	if len(f) < 22 {
		return 0, 0, 0
	}
	number := func(i int) int64 {
		n, _ := strconv.ParseInt(f[i], 10, 64) // the kernel writes numbers here
		return n
	}
	return int(number(2)), time.Duration(number(11)+number(12)) * tick, number(21)
}

// ownCPU is the CPU time of this process.
func ownCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func tail(file string) string {
	f, err := os.Open(file)
	if err != nil {
		return err.Error()
	}
	defer f.Close() //nolint:errcheck // it was only read from
	if end, err := f.Seek(0, io.SeekEnd); err == nil {
		_, _ = f.Seek(max(end-1000, 0), io.SeekStart)
	}
	b, _ := io.ReadAll(io.LimitReader(f, 1000))
	return string(b)
}

// freePorts finds addresses that are free now. Another process may still take one, and then what wanted it says so and ends.
func freePorts(addrs ...*string) error {
	for _, a := range addrs {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		defer l.Close()
		*a = l.Addr().String()
	}
	return nil
}

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// process is one of our daemons.
type process struct {
	name  string
	cmd   *exec.Cmd
	ended chan struct{} // closed when the process has ended and its output is printed; err is set then
	err   error
}

// processes are all that have been started, oldest first.
type processes struct {
	list []*process
	out  sync.Mutex // one line of output at a time
}

// start starts a binary and prints what it logs.
func (ps *processes) start(bin, name string, args ...string) error {
	fmt.Printf("$ %s %s\n", name, strings.Join(args, " "))
	p := &process{name: name, cmd: exec.Command(filepath.Join(bin, name), args...), ended: make(chan struct{})}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	out, err := p.cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := p.cmd.Start(); err != nil {
		return err
	}
	ps.list = append(ps.list, p)
	go func() {
		ps.print(name, out)
		p.err = p.cmd.Wait()
		close(p.ended)
	}()
	return nil
}

func (ps *processes) print(name string, out io.Reader) {
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		ps.out.Lock()
		fmt.Printf("    %-12s | %s\n", name, lines.Text())
		ps.out.Unlock()
	}
}

// await waits until ready says so, and gives up when time is over or a process has ended.
func (ps *processes) await(what string, ready func() bool) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for limit := time.Now().Add(startLimit); time.Now().Before(limit); <-tick.C {
		for _, p := range ps.list {
			select {
			case <-p.ended:
				return fmt.Errorf("waiting for %s: %s has ended: %w", what, p.name, p.err)
			default:
			}
		}
		if ready() {
			return nil
		}
	}
	return fmt.Errorf("waited %s for %s in vain", startLimit, what)
}

// stop asks the processes to stop, newest first, and waits for each.
func (ps *processes) stop() error {
	fmt.Println()
	var errs []error
	for _, p := range slices.Backward(ps.list) {
		if err := p.stop(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", p.name, err))
		}
	}
	return errors.Join(errs...)
}

func (p *process) stop() error {
	fmt.Printf("$ kill -TERM %d    # %s\n", p.cmd.Process.Pid, p.name)
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	limit := time.NewTimer(stopLimit)
	defer limit.Stop()
	select {
	case <-p.ended:
		return p.err
	case <-limit.C:
	}
	err := p.cmd.Process.Kill()
	<-p.ended
	return errors.Join(fmt.Errorf("still there %s after SIGTERM", stopLimit), err)
}

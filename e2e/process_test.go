package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// process is a child whose output is kept, and which is gone when its test is over.
type process struct {
	name string
	cmd  *exec.Cmd
	log  string        // the file that takes stdout and stderr
	done chan struct{} // closed when the child has ended and its output is complete
}

var processes atomic.Int32

// start runs a program. A bare name is looked for among the binaries under test.
func start(t testing.TB, env []string, name string, args ...string) *process {
	t.Helper()
	p := &process{name: name, done: make(chan struct{})}
	path := filepath.Join(binaries, name)
	if strings.Contains(name, "/") {
		path = name
	}
	dir := os.Getenv("E2E_LOGS")
	if dir == "" {
		dir = t.TempDir()
	}
	p.log = filepath.Join(dir, fmt.Sprintf("%s-%d.log", filepath.Base(name), processes.Add(1)))
	out, err := os.Create(p.log)
	if err != nil {
		t.Fatal(err)
	}
	p.cmd = exec.Command(path, args...)
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir}, env...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error, 1)
	spawn <- func() { started <- p.cmd.Start() }
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.cmd.Wait()
		_ = out.Close()
		close(p.done)
	}()
	t.Cleanup(func() { p.cleanup(t) })
	return p
}

// cleanup ends what still runs, shows the log of a failed test, and fails a test whose child crashed.
func (p *process) cleanup(t testing.TB) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGTERM, syscall.SIGKILL} {
		if p.ended() {
			break
		}
		_ = p.cmd.Process.Signal(syscall.SIGCONT)
		_ = p.cmd.Process.Signal(sig)
		select {
		case <-p.done:
		case <-time.After(settle):
			if sig == syscall.SIGKILL {
				t.Errorf("%s (pid %d) does not end", p.name, p.cmd.Process.Pid)
			}
		}
		if sig == syscall.SIGKILL {
			t.Errorf("%s (pid %d) had to be killed: two SIGTERM did not end it", p.name, p.cmd.Process.Pid)
		}
	}
	log, err := os.ReadFile(p.log)
	if err != nil {
		t.Errorf("log of %s: %v", p.name, err)
	}
	for _, sign := range []string{"WARNING: DATA RACE", "panic:", "fatal error:", "goroutine 1 ["} {
		if bytes.Contains(log, []byte(sign)) {
			t.Errorf("%s crashed: its log has %q", p.name, sign)
		}
	}
	if t.Failed() {
		lines := bytes.Split(bytes.TrimSpace(log), []byte("\n"))
		const most = 20
		if len(lines) > most {
			lines = lines[len(lines)-most:]
		}
		t.Logf("the end of the log of %s (pid %d):\n%s", p.name, p.cmd.Process.Pid, bytes.Join(lines, []byte("\n")))
	}
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

func (p *process) signal(t testing.TB, s syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		t.Fatalf("%s %s: %v", s, p.name, err)
	}
}

// kill ends the child as kill -9 does and waits until it is gone.
func (p *process) kill(t testing.TB) {
	t.Helper()
	p.signal(t, syscall.SIGKILL)
	p.exit(t, settle)
}

// exit waits for the child to end by itself and gives its exit code (-1 when a signal ended it).
func (p *process) exit(t testing.TB, within time.Duration) int {
	t.Helper()
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(within):
		t.Fatalf("%s still runs after %s: want it to end", p.name, within)
		return 0
	}
}

func (p *process) output(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile(p.log)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// rss is the resident memory of the child in bytes.
func (p *process) rss(t testing.TB) int64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kib << 10
		}
	}
	t.Fatal("no VmRSS in the status of the process")
	return 0
}

// statField returns a field of a file /proc/.../stat by its number in proc(5), from the third on.
func statField(file string, number int) (string, error) {
	stat, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	_, rest, _ := strings.Cut(string(stat), ") ") // the name before may hold anything
	fields := strings.Fields(rest)
	if len(fields) <= number-3 {
		return "", fmt.Errorf("%s has no field %d: %s", file, number, stat)
	}
	return fields[number-3], nil
}

// statNumber is statField for a field of a process that is a number.
func statNumber(t testing.TB, pid, number int) int {
	t.Helper()
	field, err := statField(fmt.Sprintf("/proc/%d/stat", pid), number)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(field)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// alive reports whether a process that may be no child runs.
func alive(pid int) bool {
	state, err := statField(fmt.Sprintf("/proc/%d/stat", pid), 3)
	return err == nil && state != "Z"
}

// cpu is the processor time that the child has taken, to a hundredth of a second.
func (p *process) cpu(t testing.TB) time.Duration {
	t.Helper()
	const user, system = 14, 15 // in hundredths of a second
	ticks := statNumber(t, p.cmd.Process.Pid, user) + statNumber(t, p.cmd.Process.Pid, system)
	return time.Duration(ticks) * 10 * time.Millisecond
}

// files is the number of open file descriptors of the child.
func (p *process) files(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// await calls check until it succeeds. The test fails with its last error when that takes longer than within.
func await(t testing.TB, what string, within time.Duration, check func() error) time.Duration {
	t.Helper()
	began := time.Now()
	deadline := time.After(within)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return time.Since(began)
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: not within %s: %v", what, within, err)
		}
	}
}

// wait fails the test when c is not closed, or gives nothing, in time.
func wait[T any](t testing.TB, what string, within time.Duration, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(within):
		t.Fatalf("%s: not within %s", what, within)
	}
	return v
}

var heavy sync.Mutex

// parallel lets a test run beside others, except beside another one that keeps the processors busy, too.
func parallel(t *testing.T) {
	t.Parallel()
	heavy.Lock()
	t.Cleanup(heavy.Unlock)
}

var ports atomic.Int32

// freeAddress gives an address of 127.0.0.1 that nothing listens on, and that it gives to nobody else. The port is below those
// that the kernel gives to outgoing connections, and those that consultest draws from, so that a daemon can be restarted on it
// without finding it taken.
func freeAddress(t testing.TB) string {
	t.Helper()
	const low, high = 10000, 22000
	base := int32(os.Getpid() * 37 % (high - low))
	for range 1000 {
		port := low + (base+ports.Add(1))%(high-low)
		address := fmt.Sprintf("127.0.0.1:%d", port)
		l, err := net.Listen("tcp", address)
		if errors.Is(err, syscall.EADDRINUSE) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		return address
	}
	t.Fatal("no free port on 127.0.0.1")
	return ""
}

// isReset reports whether a connection was ended by the other side without saying so.
func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

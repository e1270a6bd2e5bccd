package e2e

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pikoproxy/piko/e2e/classic"
)

// systemd is the end of a notify socket that systemd has.
type systemd struct {
	path string
	mu   sync.Mutex
	told []string
}

func listenSystemd(t testing.TB) *systemd {
	t.Helper()
	s := &systemd{path: filepath.Join(t.TempDir(), "notify")}
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: s.path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := c.Read(b)
			if err != nil {
				return
			}
			s.mu.Lock()
			s.told = append(s.told, string(b[:n]))
			s.mu.Unlock()
		}
	}()
	return s
}

// count is how many messages have the text in them.
func (s *systemd) count(text string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, m := range s.told {
		n += strings.Count(m, text)
	}
	return n
}

// mainPID is the process that systemd has been told of last.
func (s *systemd) mainPID() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := len(s.told) - 1; i >= 0; i-- {
		if rest, ok := strings.CutPrefix(s.told[i], "MAINPID="); ok {
			first, _, _ := strings.Cut(rest, "\n")
			pid, _ := strconv.Atoi(first)
			return pid
		}
	}
	return 0
}

// handOver makes a process hand over, and returns the new one's id. The test ends the new one.
func handOver(t testing.TB, s *systemd, pid int) int {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	next := 0
	await(t, "another process takes over", settle, func() error {
		if next = s.mainPID(); next == 0 || next == pid {
			return fmt.Errorf("the main process is %d", next)
		}
		return nil
	})
	t.Cleanup(func() { endProcess(t, next) })
	return next
}

// endProcess ends a process that is no child.
func endProcess(t testing.TB, pid int) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGTERM, syscall.SIGKILL} {
		if !alive(pid) {
			return
		}
		_ = syscall.Kill(pid, sig)
		for deadline := time.Now().Add(settle); time.Now().Before(deadline); pause(10 * time.Millisecond) {
			if !alive(pid) {
				return
			}
		}
	}
	t.Errorf("process %d does not end", pid)
}

func awaitEnd(t testing.TB, pid int) {
	t.Helper()
	await(t, fmt.Sprintf("process %d ends", pid), settle, func() error {
		if alive(pid) {
			return fmt.Errorf("it runs")
		}
		return nil
	})
}

// TestHandoverFailsNothingAndHoldsUpNothing hands a node over again and again under load, with agents of both kinds. It is
// not parallel: it measures.
func TestHandoverFailsNothingAndHoldsUpNothing(t *testing.T) {
	const times = 3
	s := listenSystemd(t)
	n := startNode(t, nodeOptions{Env: []string{"NOTIFY_SOCKET=" + s.path}, More: "[cluster]\nnode_id = \"one\""})
	agent := startAgent(t, n, agentOptions{}, offer{Endpoint: "native", Addr: serve(t, echoAll)},
		offer{Endpoint: "slow", Addr: serve(t, slow(make(chan struct{}, times)))},
		offer{Endpoint: "tcp", Addr: serveTCP(t, echo), Protocol: "tcp"})
	startClassic(t, n, "classic", classic.V081, echoAll)
	startClassic(t, n, "classic", classic.V090, echoAll)
	native := startTraffic(t, n, trafficOptions{Endpoint: "native", Rate: 300})
	old := startTraffic(t, n, trafficOptions{Endpoint: "classic", Rate: 50})
	pid := n.cmd.Process.Pid
	for range times {
		c := n.client(t)
		running := inFlight(t, c, at("slow", "/early"))
		asked := native.asked.Load()
		await(t, "some traffic", settle, func() error {
			if native.asked.Load() < asked+100 {
				return fmt.Errorf("%d requests", native.asked.Load())
			}
			return nil
		})
		next := handOver(t, s, pid)
		if err := wait(t, "the request that was running", settle, running); err != nil {
			t.Errorf("it was cut off: %v", err)
		}
		awaitEnd(t, pid)
		pid = next
	}
	native.end()
	old.end()
	for _, f := range []*traffic{native, old} {
		if most := time.Duration(f.slowest.Load()); most >= bound(500*time.Millisecond) {
			t.Errorf("a request took %s: want less than %s", most, bound(500*time.Millisecond))
		}
	}
	if agent.ended() {
		t.Error("the agent has ended")
	}
	n.awaitEndpoint(t, "native", -1)
	if s.count("STOPPING=1") != 0 {
		t.Error("systemd was told that the service stops")
	}
	if out, code := run(t, nil, "pikod", "--reload", strconv.Itoa(pid)); code != 0 {
		t.Errorf("the last process can't be reloaded: %s", out)
	}
}

// TestStopBehindAHandoverCutsNothing tells a process to stop that has handed over already, as systemd does with all processes of
// a service: what it still answers goes on.
func TestStopBehindAHandoverCutsNothing(t *testing.T) {
	t.Parallel()
	s := listenSystemd(t)
	n := startNode(t, nodeOptions{Env: []string{"NOTIFY_SOCKET=" + s.path}})
	startAgent(t, n, agentOptions{}, offer{Endpoint: "slow", Addr: serve(t, slow(make(chan struct{}, 1)))})
	running := inFlight(t, n.client(t), at("slow", "/early"))
	next := handOver(t, s, n.cmd.Process.Pid)
	const ppid = 4
	if parent := statNumber(t, next, ppid); parent != os.Getpid() {
		t.Errorf("process %d is the parent of the new one: want %d, as systemd waits only for its own children", parent, os.Getpid())
	}
	await(t, "the process before has nothing more to hand over", settle, func() error {
		if !strings.Contains(n.output(t), "handed over, and stopping") {
			return fmt.Errorf("it has not said so")
		}
		return nil
	})
	for range 2 {
		n.signal(t, syscall.SIGTERM)
		pause(100 * time.Millisecond) // or the two would be one
	}
	if err := wait(t, "the request that was running", settle, running); err != nil {
		t.Errorf("it was cut off: %v", err)
	}
	if code := n.exit(t, settle); code != 0 {
		t.Errorf("the process that handed over ends with %d", code)
	}
}

// TestHandoverThatFailsChangesNothing tries a program that can't run, and settings that are wrong.
func TestHandoverThatFailsChangesNothing(t *testing.T) {
	t.Parallel()
	s := listenSystemd(t)
	n := &node{proxy: freeAddress(t), upstream: freeAddress(t), admin: freeAddress(t)}
	text := fmt.Sprintf("[proxy]\nlisten = %q\n[upstream]\nlisten = %q\n[admin]\nlisten = %q\n", n.proxy, n.upstream, n.admin)
	n.file = writeFile(t, "pikod.toml", text)
	dir := t.TempDir()
	program := filepath.Join(dir, "pikod")
	install := func(content []byte) {
		t.Helper()
		// Another test that forks in this moment would hold the file open for writing, and it could not be run.
		syscall.ForkLock.RLock()
		err := os.WriteFile(program+".new", content, 0o700)
		syscall.ForkLock.RUnlock()
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(program+".new", program); err != nil {
			t.Fatal(err)
		}
	}
	binary, err := os.ReadFile(filepath.Join(binaries, "pikod"))
	if err != nil {
		t.Fatal(err)
	}
	install(binary)
	n.process = start(t, []string{"NOTIFY_SOCKET=" + s.path}, program, "--config", n.file)
	n.awaitReady(t, n.admin)
	startAgent(t, n, agentOptions{}, offer{Endpoint: "e", Addr: serve(t, say("ok"))})
	refused := func(times int) {
		t.Helper()
		n.signal(t, syscall.SIGUSR2)
		await(t, "the refusal", settle, func() error {
			if have := strings.Count(n.output(t), "not handed over"); have != times {
				return fmt.Errorf("%d refusals", have)
			}
			return nil
		})
		if a := get(t, n.client(t), at("e", "/")); a.StatusCode != http.StatusOK {
			t.Errorf("status %d", a.StatusCode)
		}
	}
	install([]byte("no program"))
	refused(1)
	install([]byte("#!/bin/sh\nexit 3\n"))
	refused(2)
	install(binary)
	mustWriteFile(t, n.file, "drain_timeout = 5\n"+text)
	refused(3)
	mustWriteFile(t, n.file, text)
	if s.mainPID() != 0 {
		t.Error("systemd was told of another process")
	}
	awaitPID := n.cmd.Process.Pid
	next := handOver(t, s, awaitPID)
	awaitEnd(t, awaitPID)
	if code := n.exit(t, settle); code != 0 {
		t.Errorf("the old process ends with %d", code)
	}
	if a := get(t, n.client(t), at("e", "/")); a.StatusCode != http.StatusOK || !alive(next) {
		t.Errorf("status %d from the new process", a.StatusCode)
	}
}

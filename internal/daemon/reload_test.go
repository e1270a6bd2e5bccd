package daemon

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/pikoproxy/piko/internal/config"
)

// node is settings of pikod and an assembly that only notes what it is given.
type node struct {
	config.Pikod
	life *life
}

func (n *node) Log() config.Log           { return n.Pikod.Log }
func (n *node) Check() error              { return nil }
func (n *node) Source() config.Source     { return n.Pikod.Source }
func (n *node) DrainLimit() time.Duration { return time.Duration(n.DrainTimeout) }
func (n *node) Changes(next Settings) []config.Change {
	return config.Diff(n.Pikod, next.(*node).Pikod)
}

func (n *node) Run(ctx context.Context, p *Process) error {
	n.life.commit(n)
	n.life.process <- p
	p.Ready()
	p.Status("1 endpoint")
	p.Reloads(n.life.Prepare)
	<-ctx.Done()
	return nil
}

// life is one run of the shell.
type life struct {
	file    string
	stderr  *buffer
	process chan *Process
	p       *Process

	mu      sync.Mutex
	refuse  error // of Prepare
	inUse   *node
	commits []string // drain timeouts, one for each commit
	retired int
}

func (l *life) Prepare(next Settings) (Change, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.refuse != nil {
		return Change{}, l.refuse
	}
	return Change{
		Commit: func() { l.commit(next.(*node)) },
		Retire: func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.retired++
		},
	}, nil
}

func (l *life) commit(n *node) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.inUse = n
	l.commits = append(l.commits, n.DrainTimeout.String())
}

func (l *life) drain() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.inUse.DrainTimeout.String()
}

// buffer is written to by one goroutine and read by another.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// begin runs the shell with a settings file until the test ends.
func begin(t *testing.T, text string) *life {
	t.Helper()
	l := &life{
		file: filepath.Join(t.TempDir(), "etc", "pikotestd.toml"), stderr: &buffer{}, process: make(chan *Process, 1),
	}
	if err := os.MkdirAll(filepath.Dir(l.file), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, l.file, text)
	l.run(t, l.file)
	return l
}

// run runs the shell with the file that the command line names.
func (l *life) run(t *testing.T, file string) {
	t.Helper()
	ended := make(chan int)
	p := l.program()
	go func() { ended <- run(&p, []string{"--config", file}, &bytes.Buffer{}, l.stderr) }()
	select {
	case l.p = <-l.process:
	case code := <-ended:
		t.Fatalf("ended with %d: %s", code, l.stderr)
	}
	t.Cleanup(func() {
		kill(t, syscall.SIGTERM)
		if code := <-ended; code != ExitOK {
			t.Errorf("exit code %d: %s", code, l.stderr)
		}
		if t.Failed() {
			t.Log(l.stderr.String())
		}
	})
}

// observe is begin without what a process has only one of, signals and its id, so that many can live at once.
func observe(t *testing.T, file, text string, change ...func(*reloads)) *life {
	t.Helper()
	t.Parallel()
	if file == "" {
		file = filepath.Join(t.TempDir(), "etc", "pikotestd.toml")
		do(t, os.MkdirAll(filepath.Dir(file), 0o755))
		write(t, file, text)
	}
	l := &life{file: file, stderr: &buffer{}, process: make(chan *Process, 1)}
	log, err := newLog(l.stderr, config.Log{Level: "debug", Format: "text"}, false)
	do(t, err)
	p := l.program()
	load := func(file string) (Settings, error) { return p.Load(file, nil) }
	s, err := load(file)
	do(t, err)
	l.p = NewProcess("pikotestd", "1", log)
	l.p.reload = newReloads(l.p, s, origin{file: file, load: load})
	for _, f := range change {
		f(l.p.reload)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { l.p.reload.run(ctx, ctx) })
	running.Go(func() { _ = s.Run(ctx, l.p) })
	<-l.process
	t.Cleanup(func() {
		cancel()
		running.Wait()
		if t.Failed() {
			t.Log(l.stderr.String())
		}
	})
	return l
}

func (l *life) program() Program {
	return Program{
		Name: "pikotestd", Summary: "Serves the tests", Flags: func(*flag.FlagSet) {},
		Load: func(file string, _ []string) (Settings, error) {
			c, err := config.LoadPikod(file)
			return &node{c, l}, err
		},
	}
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func do(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// await waits until the condition holds.
func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
		<-tick.C
	}
}

func drainOf(d string) string { return "drain_timeout = \"" + d + "\"\n[log]\nlevel = \"debug\"\n" }

// attempts returns how many reloads there have been.
func (l *life) attempts() uint64 { return l.p.LastReload().Count }

func TestEveryTriggerReloads(t *testing.T) {
	l := begin(t, drainOf("10s"))
	for i, trigger := range []struct {
		name string
		pull func() error
	}{
		{"SIGHUP", func() error { kill(t, syscall.SIGHUP); return nil }},
		{"request", func() error { return l.p.Reload(t.Context()) }},
		{"--reload", func() error {
			var out, problem bytes.Buffer
			p := l.program()
			if code := run(&p, []string{"--reload", strconv.Itoa(os.Getpid())}, &out, &problem); code != ExitOK {
				return fmt.Errorf("exit code %d: %s", code, &problem)
			}
			if want := "ok " + l.p.LastReload().Digest + "\n"; out.String() != want {
				return fmt.Errorf("printed %q, want %q", &out, want)
			}
			return nil
		}},
		{"the change itself", func() error { return nil }},
	} {
		want := fmt.Sprintf("%ds", 20+i)
		write(t, l.file, drainOf(want))
		if err := trigger.pull(); err != nil {
			t.Fatalf("%s: %v", trigger.name, err)
		}
		await(t, trigger.name+" changes drain_timeout", func() bool { return l.drain() == want })
	}
	await(t, "a line of the log that names the key", func() bool {
		return strings.Contains(l.stderr.String(), "changed=drain_timeout")
	})
}

// TestChangeTakesEffectBeforeFilesArePolled looks whether events of the file system lead to a reload: polls come later.
func TestChangeTakesEffectBeforeFilesArePolled(t *testing.T) {
	l := begin(t, drainOf("10s"))
	var took time.Duration
	for _, d := range []string{"11s", "12s", "13s"} { // a machine that stands still may hold one up
		start := time.Now()
		write(t, l.file, drainOf(d))
		await(t, "the change", func() bool { return l.drain() == d })
		if took = time.Since(start); took <= pollEvery*9/10 {
			return
		}
	}
	t.Errorf("took %v", took)
}

func TestBadFileChangesNothingAndTheNextGoodOneHeals(t *testing.T) {
	l := begin(t, drainOf("10s"))
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(l.p.Collector())
	expect := func(good, success, failure int) {
		t.Helper()
		want := fmt.Sprintf(`
# HELP piko_config_last_reload_successful Whether the last attempt to load the settings succeeded: 1 or 0.
# TYPE piko_config_last_reload_successful gauge
piko_config_last_reload_successful %d
# HELP piko_config_reloads_total Reloads of the settings, by whether they succeeded or were refused.
# TYPE piko_config_reloads_total counter
piko_config_reloads_total{result="failure"} %d
piko_config_reloads_total{result="success"} %d
`, good, failure, success)
		if err := testutil.GatherAndCompare(reg, strings.NewReader(want),
			"piko_config_last_reload_successful", "piko_config_reloads_total"); err != nil {
			t.Error(err)
		}
	}
	expect(1, 0, 0)
	write(t, l.file, "drain_timeout = 5\n[proxy]\nidle_timeuot = \"1s\"\n")
	await(t, "the refusal", func() bool { return l.attempts() == 1 })
	expect(0, 0, 1)
	for _, want := range []string{l.file + ":1: drain_timeout: want ", l.file + ":3: proxy.idle_timeuot: "} {
		await(t, "a line of the log with "+want, func() bool { return strings.Contains(l.stderr.String(), want) })
		if all := strings.Join(l.p.LastReload().Problems, "\n"); !strings.Contains(all, want) {
			t.Errorf("the outcome lacks %q: %s", want, all)
		}
	}
	var problem bytes.Buffer
	p := l.program()
	if code := run(&p, []string{"--reload", strconv.Itoa(os.Getpid())}, &problem, &problem); code != ExitFailure ||
		!strings.Contains(problem.String(), "pikotestd: "+l.file+":1: drain_timeout: ") {
		t.Errorf("--reload ends with %d and says %q", code, &problem)
	}
	if have := l.drain(); have != "10s" {
		t.Errorf("drain_timeout is %s after a refusal", have)
	}
	write(t, l.file, drainOf("10s")) // what it was: nothing changes, but all is well again
	await(t, "the end of the trouble", func() bool { return len(l.p.LastReload().Problems) == 0 })
	expect(1, 1, 2)
}

func TestKeyThatNeedsARestartRefuses(t *testing.T) {
	l := begin(t, drainOf("10s")+"[cluster]\nzone = \"a\"\nsecret = \"0123456789abcdef0123456789abcdef\"\n")
	write(t, l.file, drainOf("11s")+"[cluster]\nzone = \"b\"\nsecret = \"fedcba9876543210fedcba9876543210\"\n")
	err := l.p.Reload(t.Context())
	if err == nil {
		t.Fatal("reloaded")
	}
	for _, want := range []string{
		l.file + `:5: cluster.zone: want "a" until the process is restarted, have "b"`, l.file + ":6: cluster.secret: ",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %q", want, err)
		}
	}
	if all := err.Error() + l.stderr.String(); strings.Contains(all, "0123456789") || strings.Contains(all, "fedcba98") {
		t.Errorf("a secret shows: %s", all)
	}
	if have := l.drain(); have != "10s" {
		t.Errorf("drain_timeout is %s: half of a refused file was taken", have)
	}
}

func TestAssemblyMayRefuse(t *testing.T) {
	l := begin(t, drainOf("10s"))
	l.mu.Lock()
	l.refuse = config.Problem{Key: "drain_timeout", Want: "peace", Have: "war"}
	l.mu.Unlock()
	write(t, l.file, "# moved\n"+drainOf("11s"))
	err := l.p.Reload(t.Context())
	if want := l.file + ":2: drain_timeout: want peace, have war"; err == nil || err.Error() != want {
		t.Errorf("have %v, want %s", err, want)
	}
	if have := l.drain(); have != "10s" {
		t.Errorf("drain_timeout is %s", have)
	}
}

func TestSaveWithoutAChangeDoesNothing(t *testing.T) {
	l := begin(t, drainOf("10s"))
	write(t, l.file, drainOf("10s"))
	write(t, l.file, "# a comment\n"+drainOf("10s"))
	write(t, filepath.Join(filepath.Dir(l.file), "neighbour"), "noise")
	write(t, l.file, drainOf("10s")+"# another\ndrain_notice = \"0s\"\n"[:10])
	// A change that is seen proves that those before were looked at.
	await(t, "the looking", func() bool { return l.attempts() == 0 })
	write(t, l.file, drainOf("11s"))
	await(t, "the change", func() bool { return l.drain() == "11s" && l.attempts() >= 1 })
	if n := l.attempts(); n != 1 {
		t.Errorf("%d reloads, want 1", n)
	}
}

func TestBurstsCoalesce(t *testing.T) {
	l := begin(t, drainOf("10s"))
	start := time.Now()
	for i := range 200 {
		write(t, l.file, drainOf(fmt.Sprintf("%ds", 20+i)))
	}
	took := time.Since(start) // between two reloads there is time for two looks
	await(t, "the last change", func() bool { return l.drain() == "3m39s" })
	if n := l.attempts(); n > 3+uint64(took/settleAgain) {
		t.Errorf("%d reloads for 200 saves within %v", n, took)
	}
	before := l.attempts()
	var all sync.WaitGroup
	for range 100 {
		all.Go(func() {
			if err := l.p.Reload(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if n := l.attempts() - before; n == 0 || n > 100 {
		t.Errorf("%d reloads for 100 requests", n)
	}
}

func TestEmptiedFileIsRefusedUnlessAskedFor(t *testing.T) {
	l := begin(t, drainOf("10s"))
	write(t, l.file, "")
	await(t, "the refusal", func() bool { return l.attempts() == 1 })
	if all := strings.Join(l.p.LastReload().Problems, "\n"); !strings.Contains(all, "an empty file") {
		t.Errorf("refused for another reason: %s", all)
	}
	if have := l.drain(); have != "10s" {
		t.Errorf("drain_timeout is %s", have)
	}
	do(t, l.p.Reload(t.Context()))
	if have := l.drain(); have != "1m" {
		t.Errorf("drain_timeout is %s after a reload on demand, want the default", have)
	}
}

func TestReloadAfterTheEndIsRefused(t *testing.T) {
	l := &life{stderr: &buffer{}, process: make(chan *Process, 1)}
	t.Run("life", func(t *testing.T) { l.run(t, "") })
	if err := l.p.Reload(t.Context()); !errors.Is(err, errNoReload) {
		t.Errorf("have %v", err)
	}
	if err := NewProcess("x", "1", nil).Reload(t.Context()); !errors.Is(err, errNoReload) {
		t.Errorf("have %v of a process without a shell", err)
	}
	var problem bytes.Buffer
	p := l.program()
	if code := run(&p, []string{"--reload", "1"}, &problem, &problem); code != ExitFailure ||
		!strings.Contains(problem.String(), "process id 1 answers") {
		t.Errorf("--reload of a stranger ends with %d and says %q", code, &problem)
	}
}

// TestSystemdIsTold listens where systemd would (sd_notify(3)).
func TestSystemdIsTold(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	ear, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ear.Close() }()
	t.Setenv("NOTIFY_SOCKET", path)
	heard := func(prefixes ...string) {
		t.Helper()
		b := make([]byte, 4096)
		do(t, ear.SetReadDeadline(time.Now().Add(time.Minute)))
		n, err := ear.Read(b)
		lines := strings.Split(strings.TrimSuffix(string(b[:n]), "\n"), "\n")
		if err != nil || len(lines) != len(prefixes) {
			t.Fatalf("heard %q, %v; want %q", b[:n], err, prefixes)
		}
		for i, prefix := range prefixes {
			if !strings.HasPrefix(lines[i], prefix) {
				t.Errorf("heard %q, want %q", lines[i], prefix)
			}
		}
	}
	l := begin(t, drainOf("10s"))
	heard("READY=1")
	heard("STATUS=1 endpoint")
	write(t, l.file, drainOf("11s"))
	heard("RELOADING=1", "MONOTONIC_USEC=")
	heard("READY=1", "STATUS=1 endpoint; settings reloaded at ")
	write(t, l.file, "bad")
	do(t, func() error {
		if l.p.Reload(t.Context()) == nil {
			return errors.New("reloaded")
		}
		return nil
	}())
	heard("RELOADING=1", "MONOTONIC_USEC=")
	heard("READY=1", "STATUS=1 endpoint; reload FAILED: "+l.file+":1: ")
	l.p.Status("2 endpoints")
	heard("STATUS=2 endpoints; reload FAILED: ")
}

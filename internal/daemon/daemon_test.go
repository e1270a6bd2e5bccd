package daemon

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pikoproxy/piko/internal/config"
)

func TestMain(m *testing.M) {
	flag.Parse()
	// Most of what runs in parallel here waits for files to settle.
	if err := flag.Set("test.parallel", "16"); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

// fake is settings that do what the test says.
type fake struct {
	check error
	run   func(ctx context.Context, p *Process) error
}

func (fake) Log() config.Log { return config.Log{Level: "info", Format: "text"} }
func (fake) Dump() string    { return "key = 1\n" }
func (fake) Digest() string  { return "abc123" }
func (f fake) Check() error  { return f.check }

func (fake) Source() config.Source            { return config.Source{} }
func (fake) Changes(Settings) []config.Change { return nil }
func (fake) DrainLimit() time.Duration        { return time.Second }

func (f fake) Run(ctx context.Context, p *Process) error { return f.run(ctx, p) }

// program is one with a flag, a positional form and a command; what it was loaded with is in *loaded.
func program(s Settings, loadErr error, loaded *string) Program {
	var url string
	var verbose bool
	return Program{
		Name:     "pikotestd",
		Summary:  "Serves the tests",
		Synopsis: []string{"http ENDPOINT ADDR [--url URL]"},
		Flags:    func(fs *flag.FlagSet) { fs.StringVar(&url, "url", "http://localhost", "connect to `URL`") },
		Load: func(file string, args []string) (Settings, error) {
			if loaded != nil {
				*loaded = fmt.Sprintf("%s|%s|%s", file, url, strings.Join(args, ","))
			}
			return s, loadErr
		},
		Commands: []Command{{
			Name: "explain", Usage: "CODE [--verbose]", Summary: "Explain an error code",
			Flags: func(fs *flag.FlagSet) { fs.BoolVar(&verbose, "verbose", false, "say more") },
			Run: func(_ context.Context, env Env, args []string) int {
				if len(args) != 1 {
					return env.Usagef("explain: want one CODE, have %d", len(args))
				}
				fmt.Fprintf(env.Stdout, "%s %v\n", args[0], verbose)
				return 7
			},
		}},
	}
}

func TestCommandLine(t *testing.T) {
	problems := errors.New("a.toml:1:2: x: want y, have z\na.toml:3:1: unknown key \x1b[31m")
	for _, c := range []struct {
		name           string
		args           []string
		load, check    error
		code           int
		stdout, stderr string // must be part of it; "" means that nothing may be there
		loaded         string
	}{
		{name: "help", args: []string{"--help"}, stdout: "pikotestd http ENDPOINT ADDR"},
		{name: "short help", args: []string{"-h"}, stdout: "--url URL\n        connect to URL (default http://localhost)"},
		{name: "help lists commands", args: []string{"-h"}, stdout: "explain CODE [--verbose]\n"},
		{name: "version", args: []string{"--version"}, stdout: "pikotestd dev ("},
		{name: "check", args: []string{"--check-config"}, stdout: "ok abc123\n", loaded: "|http://localhost|"},
		{name: "dump", args: []string{"--dump-config"}, stdout: "key = 1\n"},
		{name: "check and dump", args: []string{"--dump-config", "--check-config"}, code: 2, stderr: "exclude"},
		{name: "file given", args: []string{"--config", "f.toml", "--check-config"}, stdout: "ok", loaded: "f.toml|http://localhost|"},
		{
			name: "flags between arguments", args: []string{"http", "--url", "u", "e", "--check-config", "3000"}, stdout: "ok",
			loaded: "|u|http,e,3000",
		},
		{name: "no flag after --", args: []string{"--check-config", "--", "--url", "u"}, stdout: "ok", loaded: "|http://localhost|--url,u"},
		{name: "-- as a value", args: []string{"--url", "--", "--check-config"}, stdout: "ok", loaded: "|--|"},
		{name: "unknown flag", args: []string{"--conifg"}, code: 2, stderr: "there is no flag --conifg; did you mean --config?\nTry 'pikotestd --help'.\n"},
		{name: "beginning of a flag", args: []string{"x", "-check=1"}, code: 2, stderr: "no flag --check; did you mean --check-config?"},
		{name: "flag of nobody", args: []string{"--listeners"}, code: 2, stderr: "there is no flag --listeners\n"},
		{name: "flag with a bad value", args: []string{"--reload", "x"}, code: 2, stderr: "invalid value \"x\" for flag -reload"},
		{name: "no flag", args: []string{"--=x"}, code: 2, stderr: "bad flag syntax"},
		{
			name: "unknown command", args: []string{"explian"}, load: Usagef("unexpected argument"), code: 2,
			stderr: "unexpected argument; did you mean explain?\n",
		},
		{name: "flag without value", args: []string{"--config"}, code: 2, stderr: "needs an argument"},
		{name: "arguments refused", load: Usagef("unknown argument %q", "x"), code: 2, stderr: "unknown argument \"x\"\nTry"},
		{
			name: "bad settings", load: problems, code: 78,
			stderr: "pikotestd: a.toml:1:2: x: want y, have z\npikotestd: a.toml:3:1: unknown key \\u001b[31m\n",
		},
		{name: "check finds a problem", args: []string{"--check-config"}, check: problems, code: 78, stderr: "a.toml:1:2"},
		{name: "no start with a problem", check: problems, code: 78, stderr: "a.toml:1:2"},
		{name: "dump needs no check", args: []string{"--dump-config"}, check: problems, stdout: "key = 1"},
		{name: "command", args: []string{"explain", "PIKO-E1", "--verbose"}, code: 7, stdout: "PIKO-E1 true\n"},
		{name: "command's usage", args: []string{"explain"}, code: 2, stderr: "want one CODE, have 0\nTry"},
		{name: "command's help", args: []string{"explain", "--help"}, stdout: "pikotestd explain: Explain an error code.\n\nUsage:\n  pikotestd explain CODE [--verbose]\n\nFlags:\n  --verbose\n        say more\n"},
		{name: "command's unknown flag", args: []string{"explain", "--x"}, code: 2, stderr: "explain: there is no flag --x\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			var loaded string
			p := program(fake{check: c.check}, c.load, &loaded)
			code := run(&p, c.args, &stdout, &stderr)
			if code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			for _, o := range []struct{ name, have, want string }{
				{"stdout", stdout.String(), c.stdout}, {"stderr", stderr.String(), c.stderr},
			} {
				if !strings.Contains(o.have, o.want) || (o.want == "" && o.have != "") {
					t.Errorf("%s is %q, want %q in it", o.name, o.have, o.want)
				}
			}
			if c.loaded != "" && loaded != c.loaded {
				t.Errorf("loaded %q, want %q", loaded, c.loaded)
			}
		})
	}
}

func TestConfigFileIsTheOneGiven(t *testing.T) {
	if have := (Env{Program: "no-such-program"}).ConfigFile("x.toml"); have != "x.toml" {
		t.Errorf("have %q", have)
	}
	if have := (Env{Program: "no-such-program"}).ConfigFile(""); have != "" {
		t.Errorf("have %q for a program without a file", have)
	}
}

// kill sends a signal to this process.
func kill(t *testing.T, sig syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(os.Getpid(), sig); err != nil {
		t.Fatal(err)
	}
}

func TestExitCodeOfRun(t *testing.T) {
	for _, c := range []struct {
		name string
		run  func(ctx context.Context, p *Process) error
		code int
		log  string
	}{
		{"ended by itself", func(context.Context, *Process) error { return nil }, 0, "stopped code=0"},
		{"failed", func(context.Context, *Process) error { return errors.New("no luck") }, 1, `err="no luck"`},
		{"settings to blame", func(context.Context, *Process) error {
			return fmt.Errorf("start: %w", &SettingsError{errors.New("conflict")})
		}, 78, `err="start: conflict"`},
		{"cancelled without a signal", func(context.Context, *Process) error { return context.Canceled }, 1, "canceled"},
		{"asked to stop", func(ctx context.Context, _ *Process) error {
			kill(t, syscall.SIGTERM)
			<-ctx.Done()
			return nil
		}, 0, "stopping signal=terminated"},
		{"asked to stop, passes on why", func(ctx context.Context, _ *Process) error {
			kill(t, syscall.SIGINT)
			<-ctx.Done()
			return fmt.Errorf("wait: %w", ctx.Err())
		}, 0, "stopping signal=interrupt"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var stderr bytes.Buffer
			p := program(fake{run: c.run}, nil, nil)
			if code := run(&p, nil, &bytes.Buffer{}, &stderr); code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			if !strings.Contains(stderr.String(), c.log) {
				t.Errorf("log is %q, want %q in it", stderr.String(), c.log)
			}
		})
	}
}

func TestSecondSignalEndsAtOnce(t *testing.T) {
	release := make(chan struct{})
	left := make(chan struct{})
	p := program(fake{run: func(ctx context.Context, _ *Process) error {
		defer close(left)
		kill(t, syscall.SIGTERM)
		<-ctx.Done()
		kill(t, syscall.SIGTERM)
		<-release
		return nil
	}}, nil, nil)
	var stderr bytes.Buffer
	if code := run(&p, nil, &bytes.Buffer{}, &stderr); code != ExitFailure {
		t.Errorf("exit code %d, want %d", code, ExitFailure)
	}
	if !strings.Contains(stderr.String(), "told twice") || !strings.Contains(stderr.String(), "stopped code=1") {
		t.Errorf("log not flushed: %q", stderr.String())
	}
	close(release)
	<-left
}

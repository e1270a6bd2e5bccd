// Package daemon is the shell of every Piko process: command line, exit codes, log, signals, sockets handed over by
// systemd or by the process before, and the notes systemd gets in return.
//
// An assembly describes itself as a [Program]; a main package passes that to [Main] and exits with the code it returns.
// Main loads the settings, has the assembly made of them as [Loaded] says, and runs it. A [Process] is all that an assembly
// sees of the shell. It knows nothing of what a program does, and it recovers from no panic: a panic is a bug of ours, and
// the process that has one should end and be started again.
//
// # One life
//
//	flags ── bad ──▶ 2
//	  │
//	load, check ── bad settings ──▶ 78
//	  │
//	Run(ctx) ── returns an error ──▶ 1
//	  │
//	  │ SIGTERM or SIGINT: ctx ends, Run drains and returns ──▶ 0
//	  │ a second one: the process ends at once ──▶ 1
//	  │ SIGUSR2: a new process takes over, ctx ends, Run drains and returns ──▶ 0
//
// What goes wrong before Run is printed on stderr, once, as plain text. From then on everything goes to the log, which
// is stderr too.
//
// # Reload
//
// An assembly that calls [Process.Reloads] gets new settings while it runs, by the three steps of [Prepare] and
// [Change]: prepare, which may fail and changes nothing; commit, which can't fail; retire. They are loaded at SIGHUP, when
// somebody calls [Process.Reload] or runs the program with --reload, and when the content of a file changes that the
// settings came from or name. What is wrong with them is logged, and everything stays as it is.
package daemon

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/pikoproxy/piko/internal/config"
)

// The exit codes of our processes. A command may return others if its manual says so.
const (
	ExitOK       = 0  // asked to stop, or a check passed
	ExitFailure  = 1  // failed while running, or told to stop twice
	ExitUsage    = 2  // the command line makes no sense
	ExitSettings = 78 // bad settings (EX_CONFIG of sysexits.h): starting again cannot help
)

// Program describes one of our processes. Flags is called once in a process, before Load.
type Program struct {
	// Name is the name of the binary, which is also that of the settings file: /etc/piko/NAME.toml.
	Name string
	// Summary says in one sentence, without a full stop, what the program is for.
	Summary string
	// Synopsis has one entry for each way of starting the program with arguments, without the program's name:
	// "http ENDPOINT ADDR [--url URL]". The way without arguments need not be listed.
	Synopsis []string
	// Flags registers flags beside those every program has. It may be nil.
	Flags func(*flag.FlagSet)
	// Load reads the settings. The file is "" when there is none; args are the arguments that are neither flags nor
	// their values. Its error is a [UsageError] if args make no sense, and is taken for bad settings otherwise; what it
	// returns beside that error may be nil, and else only its Source counts: when those files change, it is worth another
	// try. It is called again for each reload.
	Load func(file string, args []string) (Settings, error)
	// Commands are what the program can do beside running.
	Commands []Command
}

// Settings are a program's settings, loaded and immutable, and the way to run with them.
type Settings interface {
	// Log says how to log.
	Log() config.Log
	// Dump returns the settings in effect as TOML, with secrets masked.
	Dump() string
	// Digest returns a short text that differs when the settings differ.
	Digest() string
	// Check looks at what loading cannot see: certificates, keys, addresses. It touches no network and changes nothing.
	// Every problem is in the error.
	Check() error
	// Source tells where the settings came from.
	Source() config.Source
	// Changes returns what differs in next, which are settings of the same program, as config.Diff does.
	Changes(next Settings) []config.Change
	// DrainLimit is how long a drain may take, with all that comes before it.
	DrainLimit() time.Duration
	// Run does the program's work until ctx ends, which happens at the first SIGTERM or SIGINT; then it drains and
	// returns nil. It sets its own limit to the drain. An error means that the work could not be done.
	Run(ctx context.Context, p *Process) error
}

// Command is something a program can do beside running, such as "status". It is chosen by the first argument.
type Command struct {
	// Name is what is typed; Usage is what may follow it, "CODE" or "[--json]"; Summary is one line for the help.
	Name, Usage, Summary string
	// Flags registers the command's flags. It may be nil.
	Flags func(*flag.FlagSet)
	// Run gets the arguments that are neither flags nor their values, and returns the exit code. ctx ends at SIGTERM or
	// SIGINT.
	Run func(ctx context.Context, env Env, args []string) int
}

// Env is what a [Command] sees of its surroundings.
type Env struct {
	// Program is the name of the program, Version its version as in the answer to --version.
	Program, Version string
	// Stdout is for what was asked for, Stderr for what went wrong.
	Stdout, Stderr io.Writer
}

// Usagef prints why the command line makes no sense, and where to find help, and returns [ExitUsage].
func (e Env) Usagef(format string, args ...any) int {
	return usageHint(e.Stderr, e.Program, fmt.Sprintf(format, args...))
}

// Failf prints a problem on stderr and returns [ExitFailure].
func (e Env) Failf(format string, args ...any) int {
	fmt.Fprintf(e.Stderr, "%s: %s\n", e.Program, fmt.Sprintf(format, args...))
	return ExitFailure
}

// Refuse prints what is wrong with the settings, each problem on a line of its own, and returns [ExitSettings].
func (e Env) Refuse(err error) int { return badSettings(e, err) }

// ConfigFile returns the settings to read: the file given, or else the program's own file in /etc/piko if there is one, or
// else the directory beside that if there is one, or else "".
func (e Env) ConfigFile(given string) string { return configFile(e.Program, given) }

// UsageError says that the arguments make no sense. The process prints it with a hint and exits with [ExitUsage].
type UsageError struct{ Text string }

// Usagef makes a [UsageError].
func Usagef(format string, args ...any) error { return &UsageError{fmt.Sprintf(format, args...)} }

// Error returns the text, which starts in lower case and names the argument.
func (e *UsageError) Error() string { return e.Text }

// SettingsError marks an error that only a change of the settings can heal, found while running. The process exits with
// [ExitSettings], so that systemd does not start it again in vain.
type SettingsError struct{ Err error }

// Error returns the text of the error it marks.
func (e *SettingsError) Error() string { return e.Err.Error() }

// Unwrap returns the error it marks.
func (e *SettingsError) Unwrap() error { return e.Err }

// configDir is where the settings files are when the command line names none.
const configDir = "/etc/piko"

func configFile(program, given string) string {
	if given != "" {
		return given
	}
	file := filepath.Join(configDir, program+".toml")
	// Only a file that is not there counts as none: one that cannot be read must be reported by the loader.
	if _, err := os.Stat(file); !os.IsNotExist(err) {
		return file
	}
	// Without it the directory beside it counts all the same.
	dir := config.Beside(file)
	if _, err := os.Stat(dir); err == nil {
		return dir
	}
	return ""
}

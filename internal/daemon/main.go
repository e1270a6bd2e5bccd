package daemon

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/pikoproxy/piko/internal/config"
)

// Main runs a program with the arguments of its command line, without its name, and returns the exit code. It uses the
// process's standard streams, signals and environment, so it may be called once in a process.
func Main(p Program, args []string) int {
	return run(&p, args, os.Stdout, os.Stderr)
}

func run(p *Program, args []string, stdout, stderr io.Writer) int {
	env := Env{Program: p.Name, Version: Version(), Stdout: stdout, Stderr: stderr}
	if len(args) > 0 {
		for i := range p.Commands {
			if p.Commands[i].Name == args[0] {
				return runCommand(env, &p.Commands[i], args[1:])
			}
		}
	}
	var o options
	fs := newFlagSet(p.Name)
	o.register(fs)
	if p.Flags != nil {
		p.Flags(fs)
	}
	rest, err := parse(fs, args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		usage(stdout, p, fs)
		return ExitOK
	case err != nil:
		return usageHint(stderr, p.Name, err.Error())
	case o.version:
		fmt.Fprintf(stdout, "%s %s\n", p.Name, env.Version)
		return ExitOK
	case o.check && o.dump:
		return env.Usagef("--check-config and --dump-config exclude each other")
	case isSet(fs, "reload"):
		if o.reload <= 0 || o.check || o.dump || len(rest) > 0 {
			return env.Usagef("--reload: want the id of a process, and nothing else")
		}
		return askReload(env, o.reload)
	}
	load := func(file string) (Settings, error) { return p.Load(file, rest) }
	file := env.ConfigFile(o.config)
	s, err := load(file)
	if _, ok := errors.AsType[*UsageError](err); ok {
		return env.Usagef("%v%s", err, commandMeant(p, rest))
	}
	if err != nil {
		return badSettings(env, err)
	}
	if o.dump {
		fmt.Fprintln(stdout, strings.TrimSuffix(s.Dump(), "\n"))
		return ExitOK
	}
	if err := s.Check(); err != nil {
		return badSettings(env, err)
	}
	if o.check {
		fmt.Fprintf(stdout, "ok %s\n", s.Digest())
		return ExitOK
	}
	return serve(env, s, origin{file: file, optional: o.config == "", load: load})
}

// commandMeant says which command somebody may have meant whose arguments make no sense, or "".
func commandMeant(p *Program, args []string) string {
	if len(args) == 0 {
		return ""
	}
	var names []string
	for _, c := range p.Commands {
		names = append(names, c.Name)
	}
	if meant := config.Nearest(args[0], names); meant != "" {
		return "; did you mean " + meant + "?"
	}
	return ""
}

// isSet reports whether the command line has the flag.
func isSet(fs *flag.FlagSet, name string) bool {
	set := false
	fs.Visit(func(f *flag.Flag) { set = set || f.Name == name })
	return set
}

// runCommand runs one command until it returns. A signal ends its context; it decides what that means.
func runCommand(env Env, c *Command, args []string) int {
	fs := newFlagSet(c.Name)
	if c.Flags != nil {
		c.Flags(fs)
	}
	rest, err := parse(fs, args)
	if errors.Is(err, flag.ErrHelp) {
		commandUsage(env.Stdout, env.Program, c, fs)
		return ExitOK
	}
	if err != nil {
		return env.Usagef("%s: %v", c.Name, err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	return c.Run(ctx, env, rest)
}

// badSettings prints every problem on a line of its own and returns the exit code.
func badSettings(env Env, err error) int {
	text := strings.TrimSpace(err.Error())
	// House rule: the text is not matched, only printed line by line.
	for line := range strings.Lines(text) {
		fmt.Fprintf(env.Stderr, "%s: %s\n", env.Program, clean(strings.TrimRight(line, "\n")))
	}
	return ExitSettings
}

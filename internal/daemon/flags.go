package daemon

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"

	"github.com/pikoproxy/piko/internal/config"
)

// options are the flags every program has.
type options struct {
	config  string
	check   bool
	dump    bool
	version bool
	reload  int
}

func (o *options) register(fs *flag.FlagSet) {
	fs.StringVar(&o.config, "config", "", "read the settings from `FILE`")
	fs.BoolVar(&o.check, "check-config", false, "check the settings, print ok and their digest or all problems, and exit")
	fs.BoolVar(&o.dump, "dump-config", false, "print the settings in effect, with secrets masked, and exit")
	fs.IntVar(&o.reload, "reload", 0, "ask the running process `PID` to reload its settings, wait, and print the outcome")
	fs.BoolVar(&o.version, "version", false, "print the version and exit")
}

func newFlagSet(name string) *flag.FlagSet {
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	// What goes wrong is printed once, by us, with a hint instead of the whole help.
	fs.SetOutput(io.Discard)
	fs.Usage = func() {}
	return fs
}

// parse parses flags wherever they stand, and returns the other arguments. Behind "--" nothing is a flag. The error is
// flag.ErrHelp if help was asked for.
func parse(fs *flag.FlagSet, args []string) ([]string, error) {
	var rest []string
	for {
		if err := fs.Parse(args); err != nil {
			return nil, explain(fs, args, err)
		}
		left := fs.Args()
		if used := len(args) - len(left); used > 0 && args[used-1] == "--" && !isValue(fs, args, used-1) {
			return append(rest, left...), nil
		}
		if len(left) == 0 {
			return rest, nil
		}
		rest, args = append(rest, left[0]), left[1:]
	}
}

// explain returns what is wrong with the arguments: package flag's own words, except for a flag that there is not.
func explain(fs *flag.FlagSet, args []string, err error) error {
	at := len(args) - len(fs.Args()) - 1 // the parser stops behind it
	if errors.Is(err, flag.ErrHelp) || at < 0 {
		return err
	}
	name, _, _ := strings.Cut(strings.TrimLeft(args[at], "-"), "=")
	if !strings.HasPrefix(args[at], "-") || name == "" || fs.Lookup(name) != nil {
		return err
	}
	var known []string
	meant := ""
	fs.VisitAll(func(f *flag.Flag) {
		known = append(known, f.Name)
		if meant == "" && strings.HasPrefix(f.Name, name) {
			meant = f.Name
		}
	})
	if meant == "" {
		meant = config.Nearest(name, known)
	}
	if meant == "" {
		return fmt.Errorf("there is no flag --%s", name)
	}
	return fmt.Errorf("there is no flag --%s; did you mean --%s?", name, meant)
}

// isValue reports whether the argument at i is the value of the flag before it, as in "--config --".
func isValue(fs *flag.FlagSet, args []string, i int) bool {
	if i == 0 || !strings.HasPrefix(args[i-1], "-") || strings.Contains(args[i-1], "=") {
		return false
	}
	f := fs.Lookup(strings.TrimLeft(args[i-1], "-"))
	if f == nil {
		return false
	}
	b, ok := f.Value.(interface{ IsBoolFlag() bool })
	return !ok || !b.IsBoolFlag()
}

// usageHint prints why a command line makes no sense.
func usageHint(w io.Writer, program, text string) int {
	fmt.Fprintf(w, "%s: %s\nTry '%s --help'.\n", program, text, program)
	return ExitUsage
}

// usage writes the help of a program; fs has its flags.
func usage(w io.Writer, p *Program, fs *flag.FlagSet) {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s.\n\nUsage:\n  %s [--config FILE]\n", p.Name, p.Summary, p.Name)
	for _, s := range p.Synopsis {
		fmt.Fprintf(&b, "  %s %s\n", p.Name, s)
	}
	if len(p.Commands) > 0 {
		b.WriteString("\nCommands:\n")
		for _, c := range p.Commands {
			fmt.Fprintf(&b, "  %s\n        %s\n", strings.TrimSpace(c.Name+" "+c.Usage), c.Summary)
		}
	}
	b.WriteString("\nFlags:\n")
	flagHelp(&b, fs)
	b.WriteString("  --help\n        print this and exit\n")
	fmt.Fprintf(&b, "\nWithout --config the settings are those of %s/%s.toml if it exists, else the defaults.\n",
		configDir, p.Name)
	fmt.Fprintf(&b, "Exit status: %d asked to stop or check passed, %d failed while running, %d bad usage, %d bad settings.\n",
		ExitOK, ExitFailure, ExitUsage, ExitSettings)
	_, _ = io.WriteString(w, b.String())
}

// commandUsage writes the help of one command; fs has its flags.
func commandUsage(w io.Writer, program string, c *Command, fs *flag.FlagSet) {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s: %s.\n\nUsage:\n  %s %s\n", program, c.Name, c.Summary, program, strings.TrimSpace(c.Name+" "+c.Usage))
	if c.Flags != nil {
		b.WriteString("\nFlags:\n")
		flagHelp(&b, fs)
	}
	_, _ = io.WriteString(w, b.String())
}

func flagHelp(b *strings.Builder, fs *flag.FlagSet) {
	fs.VisitAll(func(f *flag.Flag) {
		arg, text := flag.UnquoteUsage(f)
		if arg != "" {
			arg = " " + arg
		}
		fmt.Fprintf(b, "  --%s%s\n        %s", f.Name, arg, text)
		if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "0" {
			fmt.Fprintf(b, " (default %s)", f.DefValue)
		}
		b.WriteByte('\n')
	})
}

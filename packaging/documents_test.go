package packaging

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/pikoproxy/piko/internal/agent"
	"github.com/pikoproxy/piko/internal/daemon"
	"github.com/pikoproxy/piko/internal/forward"
	"github.com/pikoproxy/piko/internal/server"
)

// programs are our programs with the section of their manual page and the words that a protocol adds to the commands.
var programs = map[string]struct {
	program func() daemon.Program
	section string
	words   []string
}{
	"pikod":        {server.Program, "8", nil},
	"piko-agent":   {agent.Program, "8", []string{"http", "tcp"}},
	"piko-forward": {forward.Program, "1", nil},
}

// help returns what a program prints for the arguments and --help.
func help(t *testing.T, p daemon.Program, args ...string) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "help"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	stdout := os.Stdout
	os.Stdout = f
	code := daemon.Main(p, append(args, "--help"))
	os.Stdout = stdout
	if code != daemon.ExitOK {
		t.Fatalf("%s %v --help: exit code %d", p.Name, args, code)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// found returns the first group of each match, without repetition, in order.
func found(pattern, text string) []string {
	var all []string
	for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
		all = append(all, m[1])
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func read(t *testing.T, elem ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(elem...))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func same(t *testing.T, where string, have, want []string) {
	t.Helper()
	slices.Sort(have)
	slices.Sort(want)
	if !slices.Equal(have, want) {
		t.Errorf("%s: have %q, want %q", where, have, want)
	}
}

// Every flag and command of --help stands in the manual page and in the completions, and these have no others.
func TestDocumentsNameEveryFlagAndCommand(t *testing.T) {
	for name, c := range programs {
		p := c.program()
		text := help(t, p)
		commands := slices.Clone(c.words)
		for _, command := range p.Commands {
			commands = append(commands, command.Name)
			text += help(t, p, command.Name)
		}
		flags := found(`--([a-z][a-z-]*)`, text)
		if len(flags) < 5 {
			t.Fatalf("%s: only the flags %q in the help", name, flags)
		}

		page := read(t, "..", "man", name+"."+c.section)
		same(t, "flags in the manual page of "+name, found(`Fl -([a-z][a-z-]*)`, page), flags)
		same(t, "flags explained in the manual page of "+name, found(`(?m)^\.It Fl -([a-z][a-z-]*)`, page), flags)
		_, section, _ := strings.Cut(page, "\n.Sh COMMANDS\n")
		section, _, _ = strings.Cut(section, "\n.Sh ")
		same(t, "commands in the manual page of "+name, found(`(?m)^\.It Cm ([a-z]+)`, section), commands)

		bash := read(t, "completions", "bash", name)
		same(t, "flags in bash for "+name, found(`--([a-z][a-z-]*)`, bash), flags)
		zsh := read(t, "completions", "zsh", "_"+name)
		same(t, "flags in zsh for "+name, found(`'--([a-z][a-z-]*)`, zsh), flags)
		fish := read(t, "completions", "fish", name+".fish")
		same(t, "flags in fish for "+name, found(`complete .* -l ([a-z][a-z-]*)`, fish), flags)
		same(t, "commands in fish for "+name, found(` -a ([a-z]+) -d`, fish), commands)
		for _, command := range commands {
			if !strings.Contains(zsh, command) {
				t.Errorf("zsh does not know %s %s", name, command)
			}
		}
	}
}

// What bash offers is what the program takes, at the top and behind each command.
func TestBashCompletes(t *testing.T) {
	for name, c := range programs {
		p := c.program()
		commands := slices.Clone(c.words)
		for _, command := range p.Commands {
			commands = append(commands, command.Name)
			flags := found(`(?m)^  (--[a-z-]+)`, help(t, p, command.Name))
			same(t, name+" "+command.Name+" --", complete(t, name, command.Name, "x", "--"), append(flags, "--help"))
		}
		same(t, name, complete(t, name, ""), commands)
		same(t, name+" --", complete(t, name, "--"), found(`(?m)^  (--[a-z-]+)`, help(t, p)))
	}
}

// complete returns what bash offers in place of the last word.
func complete(t *testing.T, words ...string) []string {
	t.Helper()
	const script = `source "completions/bash/$1"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_${1//-/_}; printf '%s\n' "${COMPREPLY[@]}"`
	out, err := exec.CommandContext(t.Context(), "bash", append([]string{"-euc", script, "bash"}, words...)...).Output()
	if err != nil {
		t.Fatalf("%q: %v", words, err)
	}
	return strings.Fields(string(out))
}

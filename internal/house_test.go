package internal

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// excuse is what a comment says, on the line or the one above, where a rule of the house does not fit, with the reason.
const excuse = "house rule"

const (
	maxFileLines     = 400
	maxFunctionLines = 70
	maxMainLines     = 40
)

// lineRule is a rule that one line can break.
type lineRule struct {
	says    string
	pattern *regexp.Regexp
	tests   bool     // the rule is for test files; else for all others
	except  []string // folders it does not bind, with what is in them
}

func lineRules() []lineRule {
	return []lineRule{
		{"no init function", regexp.MustCompile(`^func init\(\)`), false, nil},
		{
			"contexts come from the caller", regexp.MustCompile(`\bcontext\.(Background|TODO)\(\)`), false,
			[]string{"internal/daemon", "internal/demo", "internal/pikotest"},
		},
		{"say what was tried, not that it failed", regexp.MustCompile(`"(failed to|unable to|error )`), false, nil},
		{"wrap errors with %w", regexp.MustCompile(`Errorf\(.*%v[^%]*", .*\berr\)`), false, nil},
		{"finish it or file an issue", regexp.MustCompile(`//.*\b(TODO|FIXME|XXX|HACK)\b`), false, nil},
		{"a client needs limits", regexp.MustCompile(`\bhttp\.(DefaultClient|Get|Post|Head)\b`), false, nil},
		{"tests wait for events", regexp.MustCompile(`\btime\.Sleep\(`), true, nil},
		{"tests are not skipped", regexp.MustCompile(`\bt\.Skip`), true, nil},
	}
}

// houseFaults says where the tree breaks a rule of the house that can be seen without understanding the code.
func houseFaults(tree fs.FS) ([]string, error) {
	rules := lineRules()
	var faults []string
	err := fs.WalkDir(tree, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return skipDir(tree, name)
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		source, err := fs.ReadFile(tree, name)
		if err != nil {
			return err
		}
		lines := strings.Split(strings.TrimSuffix(string(source), "\n"), "\n")
		faults = append(faults, lineFaults(name, lines, rules)...)
		if strings.HasSuffix(name, "_test.go") {
			return nil
		}
		sizes, err := sizeFaults(name, source, len(lines))
		faults = append(faults, sizes...)
		return err
	})
	return sorted(faults), err
}

func lineFaults(name string, lines []string, rules []lineRule) []string {
	var faults []string
	for _, r := range rules {
		unbound := func(folder string) bool { return strings.HasPrefix(name, folder+"/") }
		if r.tests != strings.HasSuffix(name, "_test.go") || slices.ContainsFunc(r.except, unbound) {
			continue
		}
		for i, line := range lines {
			if r.pattern.MatchString(line) && !excused(lines, i) {
				faults = append(faults, fmt.Sprintf("%s:%d: %s", name, i+1, r.says))
			}
		}
	}
	return faults
}

func excused(lines []string, i int) bool {
	return strings.Contains(lines[i], excuse) || i > 0 && strings.Contains(lines[i-1], excuse)
}

func sizeFaults(name string, source []byte, lines int) ([]string, error) {
	var faults []string
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, name, source, parser.ParseComments)
	if err != nil || ast.IsGenerated(file) {
		return nil, err
	}
	if lines > maxFileLines {
		faults = append(faults, fmt.Sprintf("%s: %d lines, at most %d", name, lines, maxFileLines))
	}
	if daemons := []string{"pikod", "piko-agent", "piko-forward"}; slices.Contains(daemons, path.Dir(name)) && lines > maxMainLines {
		faults = append(faults, fmt.Sprintf("%s: %d lines, at most %d in a main package", name, lines, maxMainLines))
	}
	for _, decl := range file.Decls {
		f, ok := decl.(*ast.FuncDecl)
		if !ok {
			continue
		}
		first, last := files.Position(f.Pos()).Line, files.Position(f.End()).Line
		if n := last - first + 1; n > maxFunctionLines {
			faults = append(faults, fmt.Sprintf("%s:%d: %s has %d lines, at most %d", name, first, f.Name.Name, n, maxFunctionLines))
		}
	}
	return faults, nil
}

func TestRulesOfTheHouse(t *testing.T) {
	faults, err := houseFaults(os.DirFS(".."))
	if err != nil {
		t.Fatal(err)
	}
	report(t, faults)
}

// The fixtures that sleep and skip are put together from two parts, so that no search for the words finds them here.
func TestHouseRulesSeeTheirFaults(t *testing.T) {
	long := "package p\n\nfunc f() {\n" + strings.Repeat("\t_ = 0\n", 69) + "}\n"
	for name, c := range map[string]struct{ file, source, want string }{
		"init":           {"a/a.go", "package a\n\nfunc init() {}\n", "a/a.go:3: no init function"},
		"context":        {"a/a.go", "package a\n\nvar _ = context.Background()\n", "a/a.go:3: contexts come from the caller"},
		"failed to":      {"a/a.go", "package a\n\nvar _ = errors.New(\"failed to x\")\n", "a/a.go:3: say what was tried, not that it failed"},
		"wrapped with v": {"a/a.go", "package a\n\nvar _ = fmt.Errorf(\"x: %v\", err)\n", "a/a.go:3: wrap errors with %w"},
		"unfinished":     {"a/a.go", "package a\n\n// TODO later\n", "a/a.go:3: finish it or file an issue"},
		"default client": {"a/a.go", "package a\n\nvar _ = http.DefaultClient\n", "a/a.go:3: a client needs limits"},
		"sleep":          {"a/a_test.go", "package a\n\nvar _ = time." + "Sleep(1)\n", "a/a_test.go:3: tests wait for events"},
		"skip":           {"a/a_test.go", "package a\n\nvar _ = t." + "Skipf\n", "a/a_test.go:3: tests are not skipped"},
		"long file":      {"a/a.go", "package a\n" + strings.Repeat("\n", 399) + "// end\n", "a/a.go: 401 lines, at most 400"},
		"long function":  {"a/a.go", long, "a/a.go:3: f has 71 lines, at most 70"},
		"long main":      {"pikod/main.go", "package main\n" + strings.Repeat("\n", 39) + "// end\n", "pikod/main.go: 41 lines, at most 40 in a main package"},

		"daemon's context": {"internal/daemon/a.go", "package daemon\n\nvar _ = context.Background()\n", ""},
		"sleep in code":    {"a/a.go", "package a\n\nvar _ = time." + "Sleep(1)\n", ""},
		"excused":          {"a/a.go", "package a\n\n// The house rule on contexts does not fit: why.\nvar _ = context.Background()\n", ""},
		"generated":        {"a/a.go", "// Code generated by x. DO NOT EDIT.\n\npackage a\n" + strings.Repeat("\n", 500), ""},
	} {
		have, err := houseFaults(fstest.MapFS{c.file: &fstest.MapFile{Data: []byte(c.source)}})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var want []string
		if c.want != "" {
			want = []string{c.want}
		}
		if !slices.Equal(have, want) {
			t.Errorf("%s: have %q, want %q", name, have, want)
		}
	}
}

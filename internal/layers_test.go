package internal

import (
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
)

const module = "github.com/pikoproxy/piko"

// anyLower stands for every package of a lower layer: an assembly's trade is to know all the parts.
const anyLower = "*"

// room is one package of ours: imports go strictly downwards, to a lower layer, and only where mayImport leads.
type room struct {
	layer     int
	mayImport []string
}

// layers is the law. The package at the module root, the SDK, is ".". ARCHITECTURE.md repeats the table for people, and
// TestArchitectureTable keeps the two equal.
var layers = map[string]room{
	"internal/backoff":             {0, nil},
	"internal/endpoint":            {0, nil},
	"internal/fault":               {0, nil},
	"internal/guard":               {0, nil},
	"internal/logline":             {0, nil},
	"internal/socket":              {0, nil},
	"internal/syntax":              {0, nil},
	"internal/h2":                  {1, []string{"internal/syntax"}},
	"internal/relay":               {1, []string{"internal/socket"}},
	"internal/websocket":           {1, []string{"internal/socket"}},
	"internal/config":              {2, []string{"internal/endpoint"}},
	"internal/limit":               {2, []string{"internal/fault", "internal/socket"}},
	"internal/tunnel":              {2, []string{"internal/socket", "internal/websocket"}},
	".":                            {3, []string{"internal/backoff", "internal/endpoint", "internal/relay", "internal/tunnel", "internal/websocket"}},
	"internal/acme":                {3, []string{"internal/config"}},
	"internal/admin":               {3, []string{"internal/config"}},
	"internal/auth":                {3, []string{"internal/config", "internal/endpoint"}},
	"internal/daemon/daemontest":   {3, []string{"internal/config"}},
	"internal/cluster":             {3, []string{"internal/backoff", "internal/endpoint", "internal/guard", "internal/relay", "internal/tunnel"}},
	"internal/config/reference":    {3, []string{"internal/config"}},
	"internal/tlsconf":             {3, []string{"internal/config"}},
	"internal/pikotest/ports":      {0, nil},
	"internal/pikotest/fakenode":   {3, []string{"internal/pikotest/ports", "internal/relay", "internal/tunnel", "internal/websocket"}},
	"internal/pikotest/consultest": {0, nil},
	"internal/pikotest/corpus":     {0, nil},
	"internal/pikotest/pebbletest": {0, nil},
	"internal/consul":              {4, []string{"internal/backoff", "internal/cluster", "internal/config", "internal/endpoint"}},
	"internal/router":              {4, []string{"internal/backoff", "internal/cluster", "internal/endpoint", "internal/tunnel"}},
	"internal/console":             {5, []string{"internal/admin", "internal/auth", "internal/config", "internal/fault", "internal/guard", "internal/limit", "internal/tlsconf"}},
	"internal/daemon":              {5, []string{"internal/config", "internal/logline"}},
	"internal/proxy": {5, []string{
		"internal/auth", "internal/config", "internal/endpoint", "internal/fault", "internal/guard", "internal/h2", "internal/limit", "internal/logline",
		"internal/relay", "internal/router", "internal/socket", "internal/syntax", "internal/tunnel", "internal/websocket",
	}},
	"internal/diagnose": {5, []string{"internal/config", "internal/tlsconf", "internal/tunnel", "internal/websocket"}},
	"internal/agent":    {6, []string{anyLower}},
	"internal/forward":  {6, []string{anyLower}},
	"internal/server":   {6, []string{anyLower}},
	"piko-agent":        {7, []string{"internal/agent", "internal/config", "internal/daemon"}},
	"piko-forward":      {7, []string{"internal/config", "internal/daemon", "internal/forward"}},
	"pikod":             {7, []string{"internal/config", "internal/daemon", "internal/server"}},
	"internal/demo":     {8, nil},
	"internal/pikotest": {8, []string{anyLower}},
}

// homes says which packages alone may import a module of others: what one package wraps, no second one should know.
var homes = map[string][]string{
	"github.com/BurntSushi/toml":       {"internal/config"},
	"github.com/caddyserver/certmagic": {"internal/acme"},
	"github.com/coreos/go-systemd":     {"internal/daemon"},
	"github.com/fsnotify/fsnotify":     {"internal/daemon"},
	"github.com/go-jose/go-jose":       {"internal/auth"},
	"github.com/golang-jwt/jwt":        {"internal/auth"},
	"github.com/hashicorp/consul/api":  {"internal/consul", "internal/pikotest"},
	"github.com/hashicorp/yamux":       {"internal/tunnel"},
	"github.com/pires/go-proxyproto":   {"internal/agent"},
	"go.uber.org/zap":                  {"internal/acme"},
}

// notInSDK lists what a program that imports the SDK must not get with it, and why.
var notInSDK = map[string]string{
	"github.com/BurntSushi/toml":      "settings files are the daemons' business",
	"github.com/coreos":               "a library does not talk to systemd",
	"github.com/fsnotify":             "a library watches no files",
	"github.com/golang-jwt":           "an agent passes its token on and never looks inside",
	"github.com/go-jose":              "an agent passes its token on and never looks inside",
	"github.com/hashicorp/consul":     "only nodes know the directory",
	"github.com/pion":                 "no second transport comes with the SDK",
	"github.com/prometheus":           "the program chooses its own metrics",
	"github.com/sirupsen/logrus":      "the program passes a *slog.Logger",
	"google.golang.org":               "gRPC and protocol buffers are the program's choice",
	module + "/internal/config":       "settings files are the daemons' business",
	module + "/internal/daemon":       "the shell belongs to our processes",
	"github.com/caddyserver":          "certificates are ordered by nodes",
	"go.uber.org/zap":                 "the program passes a *slog.Logger",
	"github.com/stretchr":             "tests bring their own tools",
	"github.com/rogpeppe/go-internal": "tests bring their own tools",
}

func report(t *testing.T, faults []string) {
	t.Helper()
	for _, f := range faults {
		t.Error(f)
	}
}

func tree(t *testing.T) map[string]*pkg {
	t.Helper()
	pkgs, err := load(os.DirFS(".."))
	if err != nil {
		t.Fatal(err)
	}
	return pkgs
}

func TestTableLeadsDownwards(t *testing.T)      { report(t, tableFaults(layers)) }
func TestImportsFollowTheTable(t *testing.T)    { report(t, importFaults(tree(t), layers)) }
func TestModulesHaveOneHome(t *testing.T)       { report(t, homeFaults(tree(t), homes)) }
func TestPackagesHaveOneComment(t *testing.T)   { report(t, docFaults(tree(t))) }
func TestArchitectureTable(t *testing.T)        { report(t, tableTextFaults(readArchitecture(t), layers)) }
func TestSDKBringsInNothingBanned(t *testing.T) { report(t, bannedFaults(sdkDeps(t), notInSDK)) }

// sdkDeps returns the import paths of everything a program gets with the SDK.
func sdkDeps(t *testing.T) []string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", module)
	cmd.Dir = ".."
	var problem strings.Builder
	cmd.Stderr = &problem
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, &problem)
	}
	deps := strings.Fields(string(out))
	if !slices.Contains(deps, module) {
		t.Fatalf("go list names %d packages, and the SDK is not among them", len(deps))
	}
	return deps
}

func readArchitecture(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("../ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestRulesSeeTheirFaults proves each rule by a tree that breaks it: a rule that finds nothing may just be blind.
func TestRulesSeeTheirFaults(t *testing.T) {
	rooms := map[string]room{
		"internal/low": {0, nil}, "internal/mid": {1, []string{"internal/low"}}, "internal/top": {2, []string{anyLower}},
	}
	const low, mid, top = "internal/low/a.go", "internal/mid/a.go", "internal/top/a.go"
	source := func(doc, name string, imports ...string) *fstest.MapFile {
		text := doc + "package " + name + "\n"
		for _, i := range imports {
			text += "import _ " + strconv.Quote(i) + "\n"
		}
		return &fstest.MapFile{Data: []byte(text)}
	}
	const doc = "// Package x is.\n"
	good := func() fstest.MapFS {
		return fstest.MapFS{
			low:                      source(doc, "low", "fmt"),
			mid:                      source(doc, "mid", module+"/internal/low"),
			top:                      source(doc, "top", module+"/internal/mid", module+"/internal/low"),
			"internal/low/a_test.go": source("", "low", module+"/internal/top"),
			"e2e/go.mod":             &fstest.MapFile{},
			"e2e/a.go":               source("", "e2e", module+"/internal/top"),
			"internal/testdata/a.go": source("", "x", module+"/internal/top"),
		}
	}
	homes := map[string][]string{"example.com/mux": {"internal/low"}}
	faults := func(tree fs.FS) []string {
		pkgs, err := load(tree)
		if err != nil {
			t.Fatal(err)
		}
		return slices.Concat(importFaults(pkgs, rooms), homeFaults(pkgs, homes), docFaults(pkgs))
	}
	if f := faults(good()); len(f) > 0 {
		t.Errorf("faults in a good tree: %q", f)
	}
	for name, c := range map[string]struct {
		path string
		file *fstest.MapFile
		want string
	}{
		"upwards":         {low, source(doc, "low", module+"/internal/mid"), "internal/low/a.go: internal/low may not import internal/mid"},
		"assembly upward": {top, source(doc, "top", module+"/internal/other"), "internal/top/a.go: internal/top may not import internal/other"},
		"unknown package": {"internal/new/a.go", source(doc, "new"), "internal/new: not in the table of layers"},
		"the SDK":         {"sdk.go", source(doc, "piko"), ".: not in the table of layers"},
		"gone":            {top, nil, "internal/top: in the table of layers, but not in the tree"},
		"foreign module":  {mid, source(doc, "mid", "example.com/mux/v2"), "internal/mid/a.go: only internal/low may import example.com/mux"},
		"no comment":      {mid, source("", "mid"), "internal/mid: want one file with a package comment, have 0 []"},
		"two comments": {
			"internal/mid/b.go", source(doc, "mid"),
			"internal/mid: want one file with a package comment, have 2 [internal/mid/a.go internal/mid/b.go]",
		},
	} {
		bad := good()
		if bad[c.path] = c.file; c.file == nil {
			delete(bad, c.path)
		}
		if f := faults(bad); !slices.Contains(f, c.want) {
			t.Errorf("%s: have %q, want %q among them", name, f, c.want)
		}
	}
}

func TestTableAndTextRulesSeeTheirFaults(t *testing.T) {
	rooms := map[string]room{"a": {0, []string{"b"}}, "b": {0, nil}, "c": {1, []string{"nowhere"}}}
	want := []string{
		"the table lets a import b, which is not below it", "the table lets c import nowhere, which is not below it",
	}
	if have := tableFaults(rooms); !slices.Equal(have, want) {
		t.Errorf("have %q, want %q", have, want)
	}
	rooms = map[string]room{"internal/a": {1, []string{"internal/b"}}, "internal/b": {0, nil}, "internal/c": {0, nil}}
	text := "| layer | package | for | may import |\n|---|---|---|---|\n| 1 | `internal/a` | x | nothing |\n" +
		"| 0 | `internal/b` | x | nothing |\n| 0 | `internal/d` | x | nothing |\n"
	want = []string{
		`ARCHITECTURE.md: internal/a: want "1 b", have "1 nothing"`, "ARCHITECTURE.md: internal/c is missing",
		"ARCHITECTURE.md: internal/d is not in the table of layers",
	}
	if have := tableTextFaults(text, rooms); !slices.Equal(have, want) {
		t.Errorf("have %q, want %q", have, want)
	}
	banned := map[string]string{"example.com/heavy": "it is heavy"}
	want = []string{"the SDK brings in example.com/heavy/part: it is heavy"}
	if have := bannedFaults([]string{"fmt", "example.com/heavyweight", "example.com/heavy/part"}, banned); !slices.Equal(have, want) {
		t.Errorf("have %q, want %q", have, want)
	}
}

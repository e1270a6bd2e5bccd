package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/pikoproxy/piko/internal/config"
)

const root = "../../.."

// settings is what the three settings structs have in common.
type settings interface {
	Dump() string
	IsSet(key string) bool
}

// daemon is one daemon: how its file is loaded, what it means, and its keys.
type daemon struct {
	load func(file string) (settings, error)
	want settings
	keys []config.Key
}

func daemons() map[string]daemon {
	return map[string]daemon{
		"pikod": {
			func(file string) (settings, error) { return config.LoadPikod(file) },
			config.DefaultPikod(), config.Keys(config.DefaultPikod()),
		},
		"piko-agent": {
			func(file string) (settings, error) { return config.LoadAgent(file) },
			config.DefaultAgent(), config.Keys(config.DefaultAgent()),
		},
		"piko-forward": {
			func(file string) (settings, error) { return config.LoadForward(file) },
			config.DefaultForward(), config.Keys(config.DefaultForward()),
		},
	}
}

func put(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func get(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestGeneratedFilesAreFresh(t *testing.T) {
	var out bytes.Buffer
	if run(root, true, &out) != 0 {
		t.Error(out.String())
	}
}

func TestCheckFindsAStaleFile(t *testing.T) {
	copied := t.TempDir()
	if err := os.CopyFS(filepath.Join(copied, "internal/config"), os.DirFS("..")); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if run(copied, true, &out) != 1 || strings.Count(out.String(), "is stale") != 6 {
		t.Errorf("files that are not there are not stale: %s", &out)
	}
	out.Reset()
	if run(copied, false, &out) != 0 || run(copied, true, &out) != 0 {
		t.Errorf("files just written are stale: %s", &out)
	}
	page := filepath.Join(copied, "man/pikod.toml.5")
	if err := os.WriteFile(page, []byte(get(t, "man/pikod.toml.5")+"x"), 0o600); err != nil {
		t.Fatal(err)
	}
	out.Reset()
	if run(copied, true, &out) != 1 || out.String() != "reference: man/pikod.toml.5 is stale: run make generate\n" {
		t.Errorf("a changed file is not stale: %s", &out)
	}
}

func TestSampleAsShippedMeansTheDefaults(t *testing.T) {
	for name, d := range daemons() {
		got, err := d.load(put(t, name+".toml", get(t, "configs/"+name+".toml")))
		if err != nil {
			t.Fatal(err)
		}
		if got.Dump() != d.want.Dump() {
			t.Errorf("%s.toml means\n%s", name, got.Dump())
		}
		for _, k := range d.keys {
			if k.Kind == config.Value && got.IsSet(k.Name) {
				t.Errorf("%s.toml sets %s", name, k.Name)
			}
		}
	}
}

func TestSampleWithEveryKeyInUseMeansTheDefaults(t *testing.T) {
	header, value := regexp.MustCompile(`^#?\[`), regexp.MustCompile(`^#([a-z0-9_]+ = .*)$`)
	for name, d := range daemons() {
		lines := strings.Split(get(t, "configs/"+name+".toml"), "\n")
		list := false // inside a list of tables, whose keys mean nothing without its header
		for i, line := range lines {
			if header.MatchString(line) {
				list = line[0] == '#'
			}
			if !list {
				lines[i] = value.ReplaceAllString(line, "$1")
			}
		}
		got, err := d.load(put(t, name+".toml", strings.Join(lines, "\n")))
		if err != nil {
			t.Fatal(err)
		}
		if got.Dump() != d.want.Dump() {
			t.Errorf("%s.toml means\n%s", name, got.Dump())
		}
		for _, k := range d.keys {
			if k.Kind == config.Value && !strings.Contains(k.Name, "[]") && !got.IsSet(k.Name) {
				t.Errorf("%s.toml does not set %s", name, k.Name)
			}
		}
	}
}

func TestSampleWithEverythingInUseIsUnderstood(t *testing.T) {
	// What a sample cannot have: files, and keys of tenants.
	lacking := regexp.MustCompile(`: want a readable file, have |tenants\[0\]\.auth: want a key `)
	for name, d := range daemons() {
		text := regexp.MustCompile(`(?m)^#([a-z0-9_]+ = |\[)`).ReplaceAllString(get(t, "configs/"+name+".toml"), "$1")
		got, err := d.load(put(t, name+".toml", text))
		if err != nil {
			for line := range strings.SplitSeq(err.Error(), "\n") {
				if !lacking.MatchString(line) {
					t.Error(line)
				}
			}
		}
		for _, k := range d.keys {
			if key := strings.ReplaceAll(k.Name, "[]", "[0]"); k.Kind == config.Value && !got.IsSet(key) {
				t.Errorf("%s.toml does not show %s", name, key)
			}
		}
	}
}

func TestPageShowsEveryKeyAndDefault(t *testing.T) {
	for name, d := range daemons() {
		sections := strings.Split(get(t, "man/"+name+".toml.5"), "\n.Ss ")
		for _, k := range d.keys {
			if k.Kind != config.Value {
				continue
			}
			full := strings.ReplaceAll(k.Name, "[]", "")
			dot := strings.LastIndexByte(full, '.')
			section, key := full[:max(dot, 0)], full[dot+1:]
			found := false
			for _, s := range sections {
				title, _, _ := strings.Cut(s, "\n")
				in := strings.Trim(strings.TrimSuffix(title, `\&`), "[]") == section || section == "" && strings.Contains(s, ".Sh KEYS")
				_, entry, ok := strings.Cut(s, "\n.It Ic "+key+"\n")
				entry, _, _ = strings.Cut(entry, "\n.It ")
				text := strings.ReplaceAll(entry, "\n", " ")
				found = found || in && ok && (strings.Contains(text, " Default: "+k.Default+".") || strings.Contains(text, " Must be given.")) &&
					strings.Contains(text, "needs a restart") == !k.Live
			}
			if !found {
				t.Errorf("%s.toml.5 does not describe %s with its default %s", name, k.Name, k.Default)
			}
		}
	}
}

func TestExamplesAreGood(t *testing.T) {
	for _, b := range books() {
		for _, e := range b.examples {
			file := put(t, b.daemon+".toml", e.toml)
			for _, name := range []string{"upstream.key", "cluster.secret", "agent.token", "client.token"} {
				if err := os.WriteFile(filepath.Join(filepath.Dir(file), name), []byte(strings.Repeat("x", 32)+"\n"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := daemons()[b.daemon].load(file); err != nil {
				t.Errorf("%s\n%v", e.title, err)
			}
			if !strings.Contains(get(t, "man/"+b.daemon+".toml.5"), strings.Split(strings.Trim(e.toml, "\n"), "\n")[0]) {
				t.Errorf("%s is not on the page", e.title)
			}
		}
	}
}

func TestSentencesBeginLines(t *testing.T) {
	got := strings.Join(sentences(`One of "a.b" and 1.2. Two: e.g. this. "Three". 4`), "|")
	if want := `One of "a.b" and 1.2.|Two: e.g. this.|"Three".|4`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

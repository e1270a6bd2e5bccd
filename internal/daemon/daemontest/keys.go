package daemontest

import (
	"bytes"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pikoproxy/piko/internal/config"
)

// Values are settings by key, as TOML: "proxy.idle_timeout": `"5s"`. Of lists of tables there is one entry each, whose keys
// are written "listeners[].addr".
type Values map[string]string

// Text is the settings file.
func (v Values) Text() string {
	var top, lists strings.Builder
	entries := map[string][]string{}
	for _, key := range slices.Sorted(maps.Keys(v)) {
		list, rest, ok := strings.Cut(key, "[].")
		if ok {
			entries[list] = append(entries[list], rest+" = "+v[key]+"\n")
			continue
		}
		top.WriteString(key + " = " + v[key] + "\n")
	}
	for _, list := range slices.Sorted(maps.Keys(entries)) {
		lists.WriteString("[[" + list + "]]\n" + strings.Join(entries[list], ""))
	}
	return top.String() + lists.String()
}

// with returns the values with some changed.
func (v Values) with(more Values) Values {
	out := maps.Clone(v)
	maps.Copy(out, more)
	return out
}

// Reload describes how to try the reload of every key of a program's settings.
type Reload struct {
	Program string
	Keys    []config.Key
	// Base is what the program runs with.
	Base Values
	// Special has for keys what to set where no value could be guessed, or where others must change with it.
	Special map[string]Values
	// Digest is that of the settings in a file.
	Digest func(file string) (string, error)
}

// EveryKey changes one key after the other in a running daemon. One that is live must be in the settings in use afterwards;
// another must be refused by its name.
func EveryKey(t *testing.T, r Reload) {
	t.Helper()
	file := filepath.Join(t.TempDir(), r.Program+".toml")
	write(t, file, r.Base.Text())
	cmd := exec.Command(r.Program, "--config", file) // ends in Cleanup, when the test's context has ended already
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil || t.Failed() {
			t.Errorf("%s ends with %v:\n%s", r.Program, err, &log)
		}
	})
	reload := func() (string, bool) {
		out, err := exec.CommandContext(t.Context(), r.Program, "--reload", strconv.Itoa(cmd.Process.Pid)).CombinedOutput()
		return strings.TrimSpace(string(out)), err == nil
	}
	deadline := time.Now().Add(appearLimit)
	for _, ok := reload(); !ok; _, ok = reload() {
		if time.Now().After(deadline) {
			t.Fatalf("%s does not reload", r.Program)
		}
	}
	base := digest(t, r, file)
	for _, k := range r.Keys {
		if k.Kind != config.Value {
			continue
		}
		t.Run(k.Name, func(t *testing.T) {
			write(t, file, r.Base.with(r.value(t, k)).Text())
			want := digest(t, r, file)
			out, ok := reload()
			switch {
			case want == base && !strings.HasSuffix(k.Name, "_key") && !strings.HasSuffix(k.Name, "token"):
				t.Errorf("the file that changes it means the same:\n%s", r.Base.with(r.value(t, k)).Text())
			case k.Live && (!ok || out != "ok "+want):
				t.Errorf("have %q, want the settings %s in use", out, want)
			case !k.Live && (ok || !strings.Contains(out, k.Name+": ") || !strings.Contains(out, "restart")):
				t.Errorf("have %q, want a refusal that names it", out)
			}
			write(t, file, r.Base.Text())
			if out, ok := reload(); !ok || out != "ok "+base {
				t.Fatalf("the way back: %s", out)
			}
		})
	}
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func digest(t *testing.T, r Reload, file string) string {
	t.Helper()
	d, err := r.Digest(file)
	if err != nil {
		t.Fatalf("%v\n", err)
	}
	return d
}

// value returns what to set to change a key.
func (r *Reload) value(t *testing.T, k config.Key) Values {
	t.Helper()
	if v, ok := r.Special[k.Name]; ok {
		return v
	}
	if len(k.OneOf) > 0 {
		for _, word := range k.OneOf {
			if v := strconv.Quote(word); v != k.Default && word != "" {
				return Values{k.Name: v}
			}
		}
	}
	for kind, v := range map[string]string{
		"a duration": `"7s"`, "a size": `"64KiB"`, "a whole": "7", "a number": "0.4", "a list of networks": `["10.0.0.0/8"]`,
		"a list of texts": `["x.example"]`,
	} {
		if strings.HasPrefix(k.Type, kind) {
			return Values{k.Name: v}
		}
	}
	if k.Type == "true or false" {
		return Values{k.Name: strconv.FormatBool(k.Default == "false")}
	}
	t.Fatalf("no value known for a key that is %s: add it to Special", k.Type)
	return nil
}

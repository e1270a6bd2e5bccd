package daemontest

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/pikoproxy/piko/internal/config"
)

// EveryEffect finds live keys of which no test sees what a change of them does in a running process. seen are keys that the
// caller tries itself. elsewhere names, by the beginning of keys, tests of any package of ours, where the longest beginning
// counts; each must be needed by a key, and exist. It runs in a folder beside those packages.
func EveryEffect(t *testing.T, keys []config.Key, seen []string, elsewhere map[string]string) {
	t.Helper()
	used := map[string]bool{}
	for _, key := range seen {
		used[key] = true
	}
	for _, k := range keys {
		if k.Kind != config.Value || !k.Live {
			continue
		}
		best := ""
		for prefix := range elsewhere {
			if strings.HasPrefix(k.Name, prefix) && len(prefix) > len(best) {
				best = prefix
			}
		}
		if best == "" && !used[k.Name] {
			t.Errorf("%s: nothing sees what a change of it does: add it to one of the lists", k.Name)
		}
		used[best] = true
	}
	text := tests(t)
	for prefix, name := range elsewhere {
		if !used[prefix] {
			t.Errorf("%s: no key needs this line", prefix)
		}
		if !regexp.MustCompile(`(?m)^func ` + regexp.QuoteMeta(name) + `\(`).MatchString(text) {
			t.Errorf("%s: there is no test %s", prefix, name)
		}
	}
}

// tests returns the source of all tests of the module.
func tests(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, pattern := range []string{"../*/*_test.go", "../../*_test.go", "../../e2e/*_test.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			all.Write(b)
		}
	}
	return all.String()
}

package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/BurntSushi/toml"
)

// seeds are texts that have little in common.
func seeds(f *testing.F) []string {
	f.Helper()
	out := []string{
		"", "a=1", "\ufeff a.b.'c d'.\"e\\u0041\" = [1, [2, {x.y = 'z'}],\n# c\n3]", "[a.b]\nc=1\n[[d]]\n[d.e]\n[[d]]\n[a]\n",
		"x = '''\n'''' \ny = \"\"\"a\\\"\"\"\"\"\"\nz = 1979-05-27 07:32:00Z # c\r\n", "t = {a=1,\n b={},}", "a='\nb=2", "[a\nb=", "a=1\na=2\n[b]\n[b]",
		"[[listeners]]\nendpoint='a'\naddr='1'\nhealth.type='tcp'\n[listeners.tls]\nca='x'\n[[listeners]]\nendpoint='A'\naddr=2",
		"[proxy.auth]\nhmac_secret_key = '${A:-b}$$'\nhmac_secret_key_file='/dev/zero'\n[consul]\naddress=['a:1','https://b']\n",
		"connect={url='ws://[::1]:1/x', token='t', proxy_url='socks5://u:p@h:1'}\n[[forwards]]\nlisten=':1'\nendpoint='x'",
	}
	files, err := filepath.Glob("../../configs/*.toml")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		out = append(out, string(data))
	}
	return out
}

// FuzzIndex checks that the index knows every key of every text that the parser takes, and no other.
func FuzzIndex(f *testing.F) {
	for _, s := range seeds(f) {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		text, err := plainText(text)
		x := indexText(text)
		if err != nil || x.err != nil {
			return // the parser does not see such texts
		}
		var values map[string]any
		if _, err := toml.Decode(text, &values); err != nil {
			return
		}
		if n := len(x.statements); n > 0 && !x.statements[n-1].whole {
			t.Fatalf("the index stopped at %+v", x.statements[n-1])
		}
		same(t, values, x.root, strings.Count(text, "\n")+1)
	})
}

// same fails unless n has the keys of values and lines of a file of so many lines.
func same(t *testing.T, value any, n *node, lines int) {
	t.Helper()
	if n == nil || n.line < 1 || n.line > lines {
		t.Fatalf("%v has the node %+v", value, n)
	}
	switch v := value.(type) {
	case map[string]any:
		if len(n.keys) != len(v) {
			t.Fatalf("keys of %v are indexed as %v", v, n.keys)
		}
		for key := range v {
			same(t, v[key], n.keys[key], lines)
		}
	case []map[string]any:
		if len(n.list) != len(v) {
			t.Fatalf("%v is indexed as %d entries", v, len(n.list))
		}
		for i := range v {
			same(t, v[i], n.list[i], lines)
		}
	case []any:
		if len(n.list) != len(v) {
			t.Fatalf("%v is indexed as %d entries", v, len(n.list))
		}
		for i := range v {
			same(t, v[i], n.list[i], lines)
		}
	}
}

// FuzzLoad checks that no text brings the load down, that good settings survive being written and read again, and that
// no error repeats a secret.
func FuzzLoad(f *testing.F) {
	for _, s := range seeds(f) {
		f.Add(s)
	}
	env := func(name string) (string, bool) { return "canary", name == "SECRET" }
	f.Fuzz(func(t *testing.T, text string) {
		p, a, w := DefaultPikod(), DefaultAgent(), DefaultForward()
		lp, la, lw := newLoader(&p, env), newLoader(&a, env), newLoader(&w, env)
		lp.loadText(text, func() { lp.checkPikod(&p) })
		la.loadText(text, func() { la.checkAgent(&a) })
		lw.loadText(text, func() { lw.checkForward(&w) })
		for _, err := range []error{lp.err(), la.err(), lw.err()} {
			var problems *Problems
			if err != nil && (!errors.As(err, &problems) || len(problems.List) == 0) {
				t.Fatalf("not a list of problems: %v", err)
			}
			if err != nil && strings.Contains(err.Error(), "canary") && strings.Contains(text, "token") {
				t.Fatalf("a secret is shown: %v", err)
			}
		}
		if lp.err() == nil {
			again(t, p.Dump(), func(l *loader, p *Pikod) { l.checkPikod(p) })
		}
		if la.err() == nil {
			again(t, a.Dump(), func(l *loader, a *Agent) { l.checkAgent(a) })
		}
		if lw.err() == nil {
			again(t, w.Dump(), func(l *loader, w *Forward) { l.checkForward(w) })
		}
	})
}

// loadText loads one text without touching the file system for anything but the files that it names.
func (l *loader) loadText(text string, check func()) {
	l.text("fuzz.toml", text)
	l.load("", nil, check)
}

// again loads what was dumped and fails unless it is what the dump says.
func again[S Settings](t *testing.T, text string, check func(*loader, *S)) {
	t.Helper()
	into := defaults[S]()
	l := newLoader(&into, func(string) (string, bool) { return "", false })
	l.loadText(text, func() { check(l, &into) })
	for _, p := range l.problems {
		if !strings.Contains(p.Key, "secret") && !strings.Contains(p.Key, "token") && !strings.Contains(p.Key, "proxy_url") {
			t.Fatalf("%v in\n%s", p, text)
		}
	}
	if got := any(into).(interface{ Dump() string }).Dump(); l.err() == nil && got != text {
		t.Fatalf("dumped\n%s\nand again\n%s", text, got)
	}
}

func defaults[S Settings]() S {
	var s S
	switch p := any(&s).(type) {
	case *Pikod:
		*p = DefaultPikod()
	case *Agent:
		*p = DefaultAgent()
	case *Forward:
		*p = DefaultForward()
	}
	return s
}

func FuzzDuration(f *testing.F) {
	for _, s := range []string{"5s", "1m30s", "0s", "5", "", "-1s", "1.5h", "+3ms", "9999999h", "1h0m0s", "0", "µs", ".s", "1e3s"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseDuration(s)
		if err != nil {
			return
		}
		if again, err := ParseDuration(d.String()); d < 0 || err != nil || again != d {
			t.Fatalf("ParseDuration(%q) = %d, and of %q = %d, %v", s, d, d.String(), again, err)
		}
	})
}

func FuzzSize(f *testing.F) {
	for _, s := range []string{"1MiB", "64KiB", "0B", "1", "", "-1B", "1.5MiB", "9223372036854775807B", "9999999999TiB", "3kB", "B", "1MiBB"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseSize(s)
		if err != nil {
			return
		}
		if again, err := ParseSize(n.String()); n < 0 || err != nil || again != n {
			t.Fatalf("ParseSize(%q) = %d, and of %q = %d, %v", s, n, n.String(), again, err)
		}
	})
}

func FuzzAddress(f *testing.F) {
	for _, s := range []string{":8000", "127.0.0.1:0", "[::1]:1", "unix:/a", "unix:a", "8000", "a:b", "http://h", "https://[::1]", "*:1",
		"fe80::1%eth0:1", "[fe80::1%eth0]:1", "::ffff:127.0.0.1:1", "https://h:1/", "http://u@h", "h:99999", "localhost:3000"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if a, err := ParseAddress(s); err == nil {
			if network, address := a.Split(); address == "" || network != "tcp" && network != "unix" {
				t.Fatalf("ParseAddress(%q) splits into %q %q", s, network, address)
			}
			a.Local()
		}
		if a, err := ParseServiceAddress(s); err == nil {
			scheme, network, address := a.Split()
			if network == "tcp" {
				if _, err := ParseAddress(address); err != nil {
					t.Fatalf("ParseServiceAddress(%q) leads to %q: %v", s, address, err)
				}
			}
			if scheme != "" && network != "tcp" {
				t.Fatalf("ParseServiceAddress(%q) splits into %q %q %q", s, scheme, network, address)
			}
		}
		if p, err := ParseProxyURL(s); err == nil && (p.URL() == nil) != (s == "") {
			t.Fatalf("ParseProxyURL(%q) gives no URL", s)
		}
		if p, err := ParseCIDR(s); err == nil {
			if again, err := ParseCIDR(p.String()); err != nil || again != p {
				t.Fatalf("ParseCIDR(%q) = %v, and again %v, %v", s, p, again, err)
			}
		}
	})
}

func FuzzExpand(f *testing.F) {
	for _, s := range []string{"", "a", "$$", "$", "${A}", "${B:-c}", "${A:-}", "${", "${}", "${1}", "$${A}", "a${A}b${A}", "${A:-${A}}"} {
		f.Add(s)
	}
	env := func(name string) (string, bool) { return "<$>", name == "A" }
	f.Fuzz(func(t *testing.T, s string) {
		out, err := expand(s, env)
		if err == nil && !strings.Contains(s, "$") && out != s {
			t.Fatalf("expand(%q) = %q", s, out)
		}
		if doubled, err := expand(strings.ReplaceAll(s, "$", "$$"), env); err != nil || doubled != s {
			t.Fatalf("doubling the dollars of %q gives %q, %v", s, doubled, err)
		}
	})
}

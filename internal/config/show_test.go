package config

import (
	"fmt"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

func TestEveryFieldSaysWhatItIs(t *testing.T) {
	name := regexp.MustCompile(`^[a-z0-9_]+$`)
	var walk func(reflect.Type)
	walk = func(typ reflect.Type) {
		for i := range typ.NumField() {
			f := typ.Field(i)
			where := typ.Name() + "." + f.Name
			tag := f.Tag.Get("toml")
			if tag == "-" {
				continue
			}
			if !name.MatchString(tag) {
				t.Errorf("%s has the name %q", where, tag)
			}
			if reload := f.Tag.Get("reload"); !isTable(f.Type) && reload != "live" && reload != "restart" {
				t.Errorf("%s does not say whether it can be reloaded: %q", where, reload)
			}
			low, high := bound(f.Type, f.Tag.Get("min"), 0), bound(f.Type, f.Tag.Get("max"), 1e300)
			if f.Tag.Get("min")+f.Tag.Get("max") != "" && !(low < high) {
				t.Errorf("%s has the bounds %q and %q", where, f.Tag.Get("min"), f.Tag.Get("max"))
			}
			if into, ok := f.Tag.Lookup("into"); ok {
				target, found := typ.FieldByName(into)
				if !found || f.Type != reflect.TypeFor[File]() || tag != target.Tag.Get("toml")+"_file" {
					t.Errorf("%s is no file for %q", where, into)
				}
			}
			switch {
			case isTable(f.Type):
				walk(f.Type)
			case isTables(f.Type):
				if _, ok := fieldOf(f.Type.Elem(), f.Tag.Get("key")); !ok {
					t.Errorf("%s has entries without the key %q", where, f.Tag.Get("key"))
				}
				walk(f.Type.Elem())
			}
		}
	}
	walk(reflect.TypeFor[Pikod]())
	walk(reflect.TypeFor[Agent]())
	walk(reflect.TypeFor[Forward]())
}

func TestDefaultsKeepTheRules(t *testing.T) {
	for _, load := range []func() error{
		func() error { _, err := LoadPikod(""); return err },
		func() error { _, err := LoadAgent(""); return err },
		func() error { _, err := LoadForward(""); return err },
	} {
		if err := load(); err != nil {
			t.Error(err)
		}
	}
	for _, k := range Keys(DefaultPikod()) {
		if k.Kind == Value && k.Name == "balance.policy" && (k.Default != `"p2c"` || len(k.OneOf) != 3 || !k.Live) {
			t.Errorf("%+v", k)
		}
		if k.Name == "cluster.listen" && k.Live {
			t.Errorf("%+v", k)
		}
	}
}

func load[S Settings](t *testing.T, loader func(string, ...Override) (S, error), text string) S {
	t.Helper()
	s, err := loader(write(t, t.TempDir(), "x.toml", text))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestDigestIsThatOfTheMeaning(t *testing.T) {
	one := load(t, LoadAgent, `
connect.connections = 3
[[listeners]]
endpoint = "a"
addr = "1"
[[listeners]]
endpoint = "b"
addr = "2"
weight = 1
`)
	same := load(t, LoadAgent, `
# other words
listeners = [ { endpoint = "B", addr = "2" }, { addr = "1", endpoint = "a" } ]
[connect]
connections = 0x3
url = "http://localhost:8001"
`)
	other := load(t, LoadAgent, `
connect.connections = 3
listeners = [ { endpoint = "B", addr = "2" }, { addr = "3", endpoint = "a" } ]
`)
	if one.Digest() != same.Digest() || one.Digest() == other.Digest() || len(one.Digest()) != 16 {
		t.Errorf("digests %s, %s and %s", one.Digest(), same.Digest(), other.Digest())
	}
	if d := Diff(one, same); len(d) != 0 {
		t.Errorf("Diff = %v", d)
	}
	if got := fmt.Sprint(Diff(one, other)); got != `[{listeners[a].addr "1" "3" true}]` {
		t.Errorf("Diff = %s", got)
	}
}

func TestDiffFindsEveryChange(t *testing.T) {
	dir := t.TempDir()
	cert := write(t, dir, "cert", "one")
	write(t, dir, "key", "x")
	secret := write(t, dir, "secret", "0123456789abcdef")
	text := `
proxy.tls = { cert = "` + cert + `", key = "` + dir + `/key" }
cluster.secret_file = "` + secret + `"
[[upstream.tenants]]
id = "gone"
auth.hmac_secret_key = "x"
[[upstream.tenants]]
id = "kept"
auth.hmac_secret_key = "x"
`
	old := load(t, LoadPikod, text)
	write(t, dir, "cert", "two")
	write(t, dir, "secret", "0123456789abcdef2")
	now := load(t, LoadPikod, strings.NewReplacer(`"gone"`, `"new"`, `"kept"`+"\nauth.hmac_secret_key = \"x\"", `"kept"`+"\nauth.hmac_secret_key = \"y\"").Replace(text)+
		"[log]\nlevel = 'warn'\n[cluster]\nzone='z'\n[proxy]\ndomains=['a.b']\n")
	want := []string{
		`{log.level "info" "warn" true}`,
		`{proxy.domains [] ["a.b"] true}`,
		`{proxy.tls.cert "` + cert + `" "` + cert + `" true}`,
		`{upstream.tenants[gone] "gone"  true}`,
		`{upstream.tenants[kept].auth.hmac_secret_key "[redacted]" "[redacted]" true}`,
		`{upstream.tenants[new]  "new" true}`,
		`{cluster.zone "" "z" false}`,
		`{cluster.secret "[redacted]" "[redacted]" false}`,
	}
	var got []string
	for _, c := range Diff(old, now) {
		got = append(got, fmt.Sprint(c))
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestDumpCanBeLoadedAgain(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "token", "x")
	one := load(t, LoadAgent, `
connect = { token_file = "`+dir+`/token", tenant_id = "t" }
[[listeners]]
endpoint = "a"
addr = "unix:/run/$$x\"y.sock"
health = { type = "tcp" }
[[listeners]]
endpoint = "b"
addr = "2"
protocol = "tcp"
proxy_protocol = "v2"
`)
	two := load(t, LoadAgent, one.Dump())
	if d := Diff(one, two); len(d) != 0 || one.Dump() != two.Dump() {
		t.Errorf("Diff = %v of\n%s\nand\n%s", d, one.Dump(), two.Dump())
	}
}

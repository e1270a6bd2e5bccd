package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// write puts a file into dir and returns its path.
func write(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// lines returns the problems of an error with the directory of the test taken out.
func lines(err error, dir string) []string {
	if err == nil {
		return nil
	}
	return strings.Split(strings.ReplaceAll(err.Error(), dir+"/", ""), "\n")
}

func TestNoFileAndAnEmptyFileMeanTheDefaults(t *testing.T) {
	empty := write(t, t.TempDir(), "pikod.toml", "")
	for _, file := range []string{"", empty} {
		p, err := LoadPikod(file)
		if err != nil {
			t.Fatalf("LoadPikod(%q): %v", file, err)
		}
		if got, want := p.Dump(), DefaultPikod().Dump(); got != want {
			t.Errorf("LoadPikod(%q) is not the default:\n%s", file, got)
		}
		if d := Diff(DefaultPikod(), p); len(d) > 0 {
			t.Errorf("Diff with the defaults = %v", d)
		}
	}
	if _, err := LoadAgent(empty); err != nil {
		t.Error(err)
	}
	if _, err := LoadForward(empty); err != nil {
		t.Error(err)
	}
}

func TestEveryKindOfValueIsRead(t *testing.T) {
	t.Setenv("ZONE", "eu-1")
	file := write(t, t.TempDir(), "pikod.toml", `
drain_timeout = "90s"
balance.policy = "local-first"
cluster = { zone = "${ZONE}", node_id = "${NODE:-n1}" }
[proxy]
domains = [
  "Piko.Example.com.",
]
max_header_bytes = "64KiB"
trusted_proxies = ["10.0.0.0/8", "192.0.2.1"]
access_log = false
[proxy.auth]
issuer = """
a$$b"""
[upstream.rebalance]
threshold = 1
[[upstream.tenants]]
id = "acme"
auth.hmac_secret_key = "0123456789abcdef0123456789abcdef"
`)
	p, err := LoadPikod(file)
	if err != nil {
		t.Fatal(err)
	}
	for name, ok := range map[string]bool{
		"duration":        time.Duration(p.DrainTimeout) == 90*time.Second,
		"dotted key":      p.Balance.Policy == "local-first",
		"default":         p.Proxy.Listen == ":8000",
		"inline table":    p.Cluster.Zone == "eu-1" && p.Cluster.NodeID == "n1",
		"canonical":       len(p.Proxy.Domains) == 1 && p.Proxy.Domains[0] == "piko.example.com",
		"size":            p.Proxy.MaxHeaderBytes == 64<<10,
		"networks":        len(p.Proxy.TrustedProxies) == 2 && p.Proxy.TrustedProxies[1].Bits() == 32,
		"bool":            !p.Proxy.AccessLog,
		"multi-line":      p.Proxy.Auth.Issuer == "a$b",
		"integer float":   p.Upstream.Rebalance.Threshold == 1,
		"list of tables":  len(p.Upstream.Tenants) == 1 && p.Upstream.Tenants[0].ID == "acme",
		"entry's default": p.Upstream.Tenants[0].Auth.DisconnectOnExpiry,
		"is set":          p.IsSet("drain_timeout") && p.IsSet("upstream.tenants[0].auth.hmac_secret_key"),
		"is not set":      !p.IsSet("proxy.listen") && !p.IsSet("log.level"),
	} {
		if !ok {
			t.Errorf("%s: wrong in\n%s", name, p.Dump())
		}
	}
}

func TestDirectoryIsMergedInOrder(t *testing.T) {
	dir := t.TempDir()
	file := write(t, dir, "piko-agent.toml", `
drain_timeout = "1s"
[connect]
url = "http://a:8001"
connections = 3
[[listeners]]
endpoint = "one"
addr = "1"
weight = 5
[[listeners]]
endpoint = "two"
addr = "2"
`)
	write(t, dir, "piko-agent.d/20-b.toml", "[connect]\nurl = 'http://c:8001'")
	write(t, dir, "piko-agent.d/10-a.toml", `
connect.url = "http://b:8001"
[[listeners]]
endpoint = "ONE"
addr = "11"
[[listeners]]
endpoint = "three"
addr = "3"
`)
	write(t, dir, "piko-agent.d/.hidden.toml", "nonsense")
	write(t, dir, "piko-agent.d/30.toml.bak", "nonsense")
	write(t, dir, "piko-agent.d/40.toml/x", "nonsense")
	a, err := LoadAgent(file, Override{From: "--url", Key: "connect.url", Value: "http://d:8001"})
	if err != nil {
		t.Fatal(err)
	}
	if a.Connect.URL != "http://d:8001" || a.Connect.Connections != 3 {
		t.Errorf("connect = %+v", a.Connect)
	}
	var got []string
	for _, l := range a.Listeners {
		got = append(got, l.Endpoint+"="+string(l.Addr))
	}
	if s := strings.Join(got, " "); s != "one=11 two=2 three=3" {
		t.Errorf("listeners = %s", s)
	}
	if a.Listeners[0].Weight != 1 {
		t.Error("a replaced entry kept a key of the old one")
	}
	want := Problem{Key: "listeners[0].addr", File: filepath.Join(dir, "piko-agent.d/10-a.toml"), Line: 5}
	if p := a.At(Problem{Key: "listeners[0].addr"}); p != want {
		t.Errorf("At = %+v", p)
	}
	if a, err = LoadAgent(file, Offer("tcp", "four", "4")); err != nil || len(a.Listeners) != 1 || a.Listeners[0].Protocol != "tcp" {
		t.Errorf("the command line must replace the listeners: %+v, %v", a.Listeners, err)
	}
	for _, name := range []string{file, filepath.Join(dir, "piko-agent.d"), filepath.Join(dir, "piko-agent.d/10-a.toml")} {
		if !strings.Contains(strings.Join(a.Files(), " ")+" ", name+" ") {
			t.Errorf("Files lacks %s: %v", name, a.Files())
		}
	}
}

func TestProblems(t *testing.T) {
	for name, tc := range map[string]struct {
		text string
		want []string
	}{
		"unknown key": {"[proxy]\nidle_timout = '5s'", []string{
			`f.toml:2: proxy.idle_timout: there is no such key; did you mean idle_timeout?`}},
		"key of another section": {"shed_rate = 1", []string{
			`f.toml:1: shed_rate: there is no such key; did you mean upstream.rebalance.shed_rate?`}},
		"key of many sections": {"listen = ':1'", []string{
			`f.toml:1: listen: there is no such key; did you mean proxy.listen or another of that name?`}},
		"section of the agent": {"[[listeners]]\nendpoint = 'a'", []string{
			`f.toml:1: listeners: there is no such key; it belongs in piko-agent.toml`}},
		"section of others": {"[connect]\nurl = 'http://a'", []string{
			`f.toml:1: connect: there is no such key; it belongs in piko-agent.toml or piko-forward.toml`}},
		"YAML": {"proxy:\n  listen: :80\n", []string{
			`f.toml:1: want TOML, which is [section] and key = value, have "proxy:"`,
			`f.toml:2: want TOML, which is [section] and key = value, have "listen:"`}},
		"JSON":            {"{\"proxy\": {}}", []string{`f.toml:1: want TOML, which is [section] and key = value, have "{"`}},
		"unknown section": {"[nonsense]\na.b = 1", []string{`f.toml:1: nonsense: there is no such key`}},
		"bare number": {"\ndrain_timeout = 5", []string{`f.toml:2: drain_timeout: want a duration such as "5s", "1m30s" or ` +
			`"250ms", have the number 5; write "5s" if these are seconds`}},
		"bare number in quotes": {"drain_timeout = '5'", []string{
			`f.toml:1: drain_timeout: want a duration such as "5s", "1m30s" or "250ms", have "5"`}},
		"negative duration": {"drain_timeout = '-5s'", []string{
			`f.toml:1: drain_timeout: want a duration such as "5s", "1m30s" or "250ms", have "-5s"`}},
		"no quotes": {"drain_timeout = 5s # five", []string{
			`f.toml:1: drain_timeout: want a value, have 5s; a text stands in quotes`}},
		"duplicate": {"drain_timeout = '5s'\ndrain_timeout = '6s'", []string{
			`f.toml:2: drain_timeout: is set a second time, first in line 1`}},
		"section twice": {"[log]\n[proxy]\n[log]\nlevel = 3\n[admin]\nlisten = 3", []string{
			`f.toml:3: log: is set a second time, first in line 1`,
			`f.toml:6: admin.listen: want an address such as "127.0.0.1:8000", ":8000" or "unix:/run/piko.sock", ` +
				`have the number 3; write ":3" or "127.0.0.1:3"`}},
		"section as value": {"log = 'info'", []string{`f.toml:1: log: want a table [log], have "info"`}},
		"value as section": {"[drain_timeout]", []string{
			`f.toml:1: drain_timeout: want a duration such as "5s", "1m30s" or "250ms", have a table`}},
		"inline table": {"proxy = { listen = ':8000', auth = { isuer = '' } }", []string{
			`f.toml:1: proxy.auth.isuer: there is no such key; did you mean issuer?`}},
		"multi-line list": {"[proxy]\ndomains = [\n 'a.b',\n 3,\n]\naccess_log = 'yes'", []string{
			`f.toml:4: proxy.domains[1]: want a text in quotes, have the number 3; write "3"`,
			`f.toml:6: proxy.access_log: want true or false, have "yes"; write it without quotes`}},
		"after a multi-line string": {"[proxy.auth]\nissuer = '''\na\n\"\"\" # [x]\n'''\naud = ''", []string{
			`f.toml:6: proxy.auth.aud: there is no such key`}},
		"list entries": {"[[upstream.tenants]]\nid='a'\nauth.issuer=1\n[[upstream.tenants]]\nid='b'\nauth.issuer=2", []string{
			`f.toml:3: upstream.tenants[0].auth.issuer: want a text in quotes, have the number 1; write "1"`,
			`f.toml:6: upstream.tenants[1].auth.issuer: want a text in quotes, have the number 2; write "2"`}},
		"entry twice": {"[[upstream.tenants]]\nid='a'\nauth.hmac_secret_key='x'\n[[upstream.tenants]]\nid='a'\nauth.hmac_secret_key='x'",
			[]string{`f.toml:5: upstream.tenants[0].id: "a" is listed a second time, first in line 1`}},
		"word": {"[balance]\npolicy = 'best'", []string{
			`f.toml:2: balance.policy: want "p2c", "local-first" or "round-robin", have "best"`}},
		"bounds": {"[balance]\nretry_budget = nan\neject_after = -1\n[proxy]\nmax_header_bytes = '1B'\nread_header_timeout = '0s'", []string{
			`f.toml:2: balance.retry_budget: want a number from 0 to 1, have the number NaN`,
			`f.toml:3: balance.eject_after: want a whole number from 0 to 1000000, have the number -1`,
			`f.toml:5: proxy.max_header_bytes: want a size from 1KiB to 1MiB, have "1B"`,
			`f.toml:6: proxy.read_header_timeout: want a duration of at least 1ms, have "0s"`}},
		"variables": {"[cluster]\nname = '${NOPE}'\nzone = '$x'\nnode_id = '${a'", []string{
			`f.toml:2: cluster.name: the environment variable NOPE is not set; set it, or write ${NOPE:-default}`,
			`f.toml:3: cluster.zone: a $ stands alone; write ${NAME} for a variable of the environment, or $$ for a dollar`,
			`f.toml:4: cluster.node_id: a ${ has no }`}},
		"open to strangers": {"upstream.listen = ':8001'\nadmin.listen = '0.0.0.0:8002'", []string{
			`f.toml:1: upstream.listen: want an address that only this host reaches, such as "127.0.0.1:8001", have ":8001" and no ` +
				`authentication; or set a key in [upstream.auth], or client_ca in [upstream.tls], or upstream.allow_unauthenticated = true`,
			`f.toml:2: admin.listen: want an address that only this host reaches, such as "127.0.0.1:8002", have "0.0.0.0:8002" and no ` +
				`authentication; or set a key in [admin.auth], or client_ca in [admin.tls], or admin.allow_unauthenticated = true`}},
		"same address": {"proxy.listen = ':8002'", []string{
			`f.toml:1: proxy.listen: want an address of its own, have ":8002", which overlaps with admin.listen = "127.0.0.1:8002"`}},
		"missing files": {"[proxy.tls]\ncert = '/nope/c'\nkey = 'k'", []string{
			`f.toml:2: proxy.tls.cert: want a readable file, have "/nope/c": no such file or directory`,
			`f.toml:3: proxy.tls.key: want a readable file, have "k": no such file or directory`}},
		"half a pair": {"[proxy.tls]\nclient_ca = 'f.toml'\n[upstream.tls]\ncert = 'f.toml'", []string{
			`f.toml:2: proxy.tls.client_ca: want proxy.tls.cert and proxy.tls.key beside it, have none`,
			`f.toml:4: upstream.tls.cert: want upstream.tls.key beside it, have none`}},
		"cluster without secret": {"[consul]\naddress = 'localhost:8500'", []string{
			`f.toml:2: consul.address: want cluster.secret_file or [cluster.tls] beside it, have neither; nodes must know each other`}},
		"tenant without key": {"[[upstream.tenants]]\nid = 'a/b'", []string{
			`f.toml:1: upstream.tenants[0].auth: want a key or a key set of the tenant, have none`,
			`f.toml:2: upstream.tenants[0].id: want letters, digits, '-', '_' and '.', at most 63, have "a/b"`}},
		"empty": {"[cluster]\nname = ''\n[[upstream.tenants]]\nauth.hmac_secret_key = 'x'", []string{
			`f.toml:2: cluster.name: want a text in quotes, have nothing`,
			`f.toml:3: upstream.tenants[0].id: want a text in quotes, have nothing`}},
		"both": {"[cluster]\nsecret = '0123456789abcdef'\nsecret_file = 'f.toml'", []string{
			`f.toml:3: cluster.secret_file: stands beside secret; keep one of the two`}},
		"too deep":         {"a = " + strings.Repeat("[", 20) + strings.Repeat("]", 20), []string{`f.toml:1: nested deeper than 16 levels`}},
		"too deep by dots": {"x=1\n[" + strings.Repeat("a.", 20) + "a]", []string{`f.toml:2: nested deeper than 16 levels`}},
		"open string": {"x = 1\n[log]\nlevel = \"info\nformat = 3", []string{
			`f.toml:1: x: there is no such key`,
			`f.toml:3: log.level: strings cannot contain newlines`,
			`f.toml:4: log.format: want "text" or "json", have the number 3`}},
		"open long string": {"[log]\nlevel = \"\"\"info\nformat = 3", []string{
			`f.toml:2: log.level: unexpected EOF; expected '"""'`}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			file := write(t, dir, "f.toml", tc.text)
			_, err := LoadPikod(file)
			got := lines(err, dir)
			if strings.Join(got, "\n") != strings.Join(tc.want, "\n") {
				t.Errorf("problems of\n%s\n\ngot\n\t%s\nwant\n\t%s", tc.text, strings.Join(got, "\n\t"), strings.Join(tc.want, "\n\t"))
			}
		})
	}
}

func TestTheDirectoryCountsWithoutTheFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pikod.d")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "10-drain.toml"), []byte("drain_timeout = \"7s\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := LoadPikod(dir)
	if err != nil || p.DrainTimeout != Duration(7*time.Second) {
		t.Errorf("have %v, %v", p.DrainTimeout, err)
	}
	// The file may come later.
	if !slices.Contains(p.Files(), strings.TrimSuffix(dir, ".d")+".toml") {
		t.Errorf("files are %q", p.Files())
	}
}

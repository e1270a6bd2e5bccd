package config

import (
	"strings"
	"testing"
)

// loaders are the loads of the three daemons, without their settings.
func loaders() map[string]func(string) error {
	return map[string]func(string) error{
		"pikod":   func(file string) error { _, err := LoadPikod(file); return err },
		"agent":   func(file string) error { _, err := LoadAgent(file); return err },
		"forward": func(file string) error { _, err := LoadForward(file); return err },
	}
}

const listener = "[[listeners]]\nendpoint = 'a'\naddr = '1'\n"

func TestRules(t *testing.T) {
	const long = "0123456789abcdef0123456789abcdef"
	for _, tc := range []struct {
		daemon, text string
		want         string // of the only problem; empty: none
	}{
		// Listeners.
		{"pikod", "proxy.listen = '127.0.0.1:0'\nadmin.listen = '127.0.0.1:0'\nupstream.listen = '127.0.0.1:0'", ""},
		{"pikod", "proxy.listen = '127.0.0.1:1'\nadmin.listen = '127.0.0.2:1'", ""},
		{"pikod", "proxy.listen = '127.0.0.1:1'\nadmin.listen = '0.0.0.0:1'\nadmin.allow_unauthenticated = true", "f.toml:2: admin.listen: want an address of its own"},
		{"pikod", "proxy.listen = 'unix:/a'\nadmin.listen = 'unix:/a'", "f.toml:2: admin.listen: want an address of its own"},
		{"pikod", "proxy.listen = ':8003'", ""}, // there is no cluster listener without Consul
		{"pikod", "proxy.listen = ''", "f.toml:1: proxy.listen: want an address such as"},
		{"pikod", "admin.listen = ''", ""},
		{"pikod", "upstream.listen = ':1'\nupstream.allow_unauthenticated = true", ""},
		{"pikod", "upstream.listen = ':1'\nupstream.auth.jwks.url = 'https://a/b'", ""},
		{"pikod", "upstream.listen = 'localhost:1'", ""},
		{"pikod", "upstream.listen = ':1'\nproxy.auth.hmac_secret_key = '" + long + "'", "f.toml:1: upstream.listen: want an address that only this host reaches"},
		{"pikod", "upstream.listen = ':1'\n[[upstream.tenants]]\nid = 'a'\nauth.hmac_secret_key = '" + long + "'", ""},
		{"agent", "admin.listen = '192.0.2.1:1'", "f.toml:1: admin.listen: want an address that only this host reaches"},
		// TLS and tokens.
		{"pikod", "[proxy.tls]\nkey = 'f.toml'", "f.toml:2: proxy.tls.key: want proxy.tls.cert beside it"},
		{"pikod", "[[proxy.tls.certificates]]\ncert = 'f.toml'", "f.toml:1: proxy.tls.certificates[0].key: want the path of a file, have nothing"},
		{"agent", "[connect.tls]\ncert = 'f.toml'", "f.toml:2: connect.tls.cert: want connect.tls.key beside it"},
		{"agent", "[connect.tls]\nserver_name = 'a b'", "f.toml:2: connect.tls.server_name: want a host name"},
		{"pikod", "proxy.auth.jwks.url = 'http://127.0.0.1:1/keys'", ""},
		{"pikod", "proxy.auth.jwks.url = 'http://example.com/keys'", "f.toml:1: proxy.auth.jwks.url: want https://"},
		{"pikod", "proxy.auth.jwks.url = 'file:///keys'", ""},
		{"pikod", "proxy.auth.jwks.url = 'file://host/keys'", "f.toml:1: proxy.auth.jwks.url: want https://"},
		{"pikod", "proxy.auth.jwks.url = 'keys.json'", "f.toml:1: proxy.auth.jwks.url: want https://"},
		{"agent", "connect.token = 'a b'", "f.toml:1: connect.token: want one line of letters"},
		// Names.
		{"pikod", "proxy.domains = ['*.a.b']", `f.toml:1: proxy.domains: want a domain, have "*.a.b"; write "a.b", which covers its subdomains`},
		{"pikod", "proxy.domains = ['127.0.0.1']", `f.toml:1: proxy.domains: want a domain such as`},
		{"pikod", "proxy.domains = ['a.b', 'A.B.']", `f.toml:1: proxy.domains: want each domain once, have "A.B." again`},
		{"pikod", "cluster.name = 'a/b'", "f.toml:1: cluster.name: want letters"},
		{"pikod", "cluster.node_id = '..'", "f.toml:1: cluster.node_id: want letters"},
		{"pikod", "consul.prefix = 'a//b'", "f.toml:1: consul.prefix: want names joined by single slashes"},
		{"pikod", "consul.prefix = 'a/b'", ""},
		{"agent", "connect.tenant_id = 'a/b'", "f.toml:1: connect.tenant_id: want letters"},
		// Cluster.
		{"pikod", "cluster.secret = 'short'", "f.toml:1: cluster.secret: want 16 bytes or more, have 5"},
		{"pikod", "cluster.listen = 'unix:/x'", "f.toml:1: cluster.listen: want"},
		{"pikod", "cluster.advertise = '0.0.0.0:1'", "f.toml:1: cluster.advertise: want"},
		{"pikod", "cluster.advertise = ':1'", "f.toml:1: cluster.advertise: want"},
		{"pikod", "cluster.advertise = '[::1]:1'", ""},
		{"pikod", "cluster.advertise = 'node-1'", ""},
		{"pikod", "[cluster.tls]\nca = 'f.toml'", "f.toml:1: cluster.tls.cert: want a certificate beside"},
		{"pikod", "[cluster.tls]\ncert = 'f.toml'\nkey = 'f.toml'", "f.toml:1: cluster.tls.ca: want the CA"},
		{"pikod", "consul.address = ['a:1', 'unix:///x', 'https://[::1]:1/']\ncluster.secret = '" + long + "'", ""},
		{"pikod", "consul.address = 'ftp://a'\ncluster.secret = '" + long + "'", "f.toml:1: consul.address: want host:port"},
		{"pikod", "consul.address = 'a:b'\ncluster.secret = '" + long + "'", "f.toml:1: consul.address: want host:port"},
		{"pikod", "consul.address = 'a:1'\nproxy.listen = ':8003'\ncluster.secret = '" + long + "'", "f.toml:2: proxy.listen: want an address of its own"},
		// Where agents and forwarders connect to.
		{"agent", "connect.url = 'wss://a.b:1/base'", ""},
		{"agent", "connect.url = 'localhost:8001'", `have "localhost:8001"; perhaps "http://localhost:8001"`},
		{"agent", "connect.url = ''", "f.toml:1: connect.url: want a text in quotes, have nothing"},
		{"agent", "connect.url = 'ftp://a'", "f.toml:1: connect.url: want http://host:port"},
		{"agent", "connect.url = 'http://'", "f.toml:1: connect.url: want http://host:port"},
		{"agent", "connect.url = 'http://u:p@a'", "a token goes into connect.token_file"},
		{"agent", "connect.url = 'http://a?b'", "leave out what follows the path"},
		{"forward", "connect.url = 'http://a:99999'", "f.toml:1: connect.url: want http://host:port"},
		{"agent", "connect.proxy_url = 'socks5://u:p@a:1'", ""},
		{"agent", "connect.proxy_url = 'a:1'", "f.toml:1: connect.proxy_url: want http://host:port, https://host:port or socks5://host:port"},
		// Listeners of an agent, and forwards.
		{"agent", listener, ""},
		{"agent", "[[listeners]]\nendpoint = 'a'", "f.toml:1: listeners[0].addr: want a port"},
		{"agent", "[[listeners]]\naddr = '1'", "f.toml:1: listeners[0].endpoint: want"},
		{"agent", "[[listeners]]\nendpoint = 'a b'\naddr = '1'", `f.toml:2: listeners[0].endpoint: want letters, digits and inner '-', '_' or '.', at most 63, have "a b"`},
		{"agent", listener + "[[listeners]]\nendpoint = 'A'\naddr = '2'", `f.toml:5: listeners[0].endpoint: "a" is listed a second time, first in line 1`},
		{"agent", "[[listeners]]\nendpoint = 'a'\naddr = 'https://x'\nprotocol = 'tcp'", "f.toml:3: listeners[0].addr: want"},
		{"agent", listener + "protocol = 'tcp'\nhost_header = 'x'", "f.toml:5: listeners[0].host_header: want protocol"},
		{"agent", listener + "host_header = 'x y'", "f.toml:4: listeners[0].host_header: want host or host:port"},
		{"agent", listener + "proxy_protocol = 'v1'", "f.toml:4: listeners[0].proxy_protocol: want protocol"},
		{"agent", listener + "protocol = 'tcp'\nproxy_protocol = 'v2'", ""},
		{"agent", listener + "health = { type = 'http', path = 'x' }", "f.toml:4: listeners[0].health.path: want a path"},
		{"agent", listener + "weight = 0", "f.toml:4: listeners[0].weight: want a whole number from 1 to 1000, have the number 0"},
		{"forward", "[[forwards]]\nlisten = ':1'\nendpoint = 'a'\n[[forwards]]\nlisten = '127.0.0.1:1'\nendpoint = 'b'", "f.toml:5: forwards[1].listen: want an address of its own"},
		{"forward", "[[forwards]]\nlisten = '1'\nendpoint = 'a'", "f.toml:2: forwards[0].listen: want an address such as"},
		// A mistake in the notation hides no setting that a rule then misses.
		{"pikod", "upstream.listen = ':1'\nupstream.allow_unauthenticated = yes", "f.toml:2: upstream.allow_unauthenticated: want a value, have yes"},
		// A value from a file is blamed on the key that names the file.
		{"agent", "[connect]\ntoken_file = 'f.toml'", "f.toml:2: connect.token_file: want one line of letters"},
		{"pikod", "cluster.secret_file = 'short'", "f.toml:1: cluster.secret_file: want 16 bytes or more, have 5"},
		{"agent", "[[listeners]]\nendpoint = a\naddr = '1'", "f.toml:2: listeners.endpoint: want a value, have a"},
	} {
		dir := t.TempDir()
		write(t, dir, "short", "short")
		got := lines(loaders()[tc.daemon](write(t, dir, "f.toml", tc.text)), dir)
		if tc.want == "" && len(got) > 0 || tc.want != "" && (len(got) != 1 || !strings.Contains(got[0], tc.want)) {
			t.Errorf("%s\n%s\ngot\n\t%s\nwant\n\t%s", tc.daemon, tc.text, strings.Join(got, "\n\t"), tc.want)
		}
	}
}

func TestRulesShowNoPasswordOfAURL(t *testing.T) {
	for _, text := range []string{"u:" + canary + "@h:1", "http://u:" + canary + "@h:x", "http://u:" + canary + "@h:1", "x://u:" + canary + "@h",
		"http://u:%zz" + canary + "@h"} {
		_, err := LoadAgent("", Override{From: "--url", Key: "connect.url", Value: text})
		if err == nil || strings.Contains(err.Error(), canary) {
			t.Errorf("%v", err)
		}
	}
}

func TestOverridesAreCheckedLikeFiles(t *testing.T) {
	_, err := LoadAgent("", Offer("tcp", "a b", "x"), Override{From: "--url", Key: "connect.url", Value: "${HOME}"},
		Override{From: "--nope", Key: "connect.nope", Value: true})
	want := []string{
		`command line: listeners[0].addr: want a port, "host:port", "unix:/path", "http://host:port" or "https://host:port", have "x"; ` +
			`a host and a port are joined by one colon, IPv6 addresses stand in brackets`,
		`command line: listeners[0].endpoint: want letters, digits and inner '-', '_' or '.', at most 63, have "a b"`,
		`--nope: connect.nope: there is no such key`,
		`--url: connect.url: want http://host:port or https://host:port, have "${HOME}"; perhaps "http://${HOME}"`,
	}
	if got := lines(err, "no directory"); strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	f, err := LoadForward("", Reach("3000", "A"), Override{From: "--url", Key: "connect.url", Value: "http://x"})
	if err != nil || f.Forwards[0] != (ForwardEntry{"127.0.0.1:3000", "a"}) || f.Connect.URL != "http://x" {
		t.Errorf("%+v, %v", f.Forwards, err)
	}
}

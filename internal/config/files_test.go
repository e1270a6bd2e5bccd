package config

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestSecretsComeFromFiles(t *testing.T) {
	dir, credentials := t.TempDir(), t.TempDir()
	t.Setenv("CREDENTIALS_DIRECTORY", credentials)
	write(t, credentials, "from.systemd", "credential\r\n")
	write(t, dir, "beside", "beside\n\n")
	write(t, dir, "key.pem", "-----BEGIN PUBLIC KEY-----\nx\n-----END PUBLIC KEY-----\n")
	file := write(t, dir, "pikod.toml", `
[consul]
token_file = "from.systemd"
[cluster]
secret = "file: 0123456789abcdef"
[proxy.auth]
hmac_secret_key_file = "beside"
rsa_public_key_file = "`+dir+`/key.pem"
`)
	write(t, dir, "pikod.d/a.toml", "cluster.secret_file = '../cluster.secret'")
	write(t, dir, "cluster.secret", "directory: 0123456789abcdef")
	p, err := LoadPikod(file)
	if err != nil {
		t.Fatal(err)
	}
	for want, got := range map[string]string{
		"credential":                  p.Consul.Token.Reveal(),
		"beside":                      p.Proxy.Auth.HMACSecretKey.Reveal(),
		"directory: 0123456789abcdef": p.Cluster.Secret.Reveal(),
		"-----BEGIN PUBLIC KEY-----\nx\n-----END PUBLIC KEY-----": p.Proxy.Auth.RSAPublicKey,
		credentials + "/from.systemd":                             string(p.Consul.TokenFile),
	} {
		if got != want {
			t.Errorf("have %q, want %q", got, want)
		}
	}
	for _, name := range []string{credentials + "/from.systemd", dir + "/beside", dir + "/key.pem", dir + "/cluster.secret"} {
		if !strings.Contains(strings.Join(p.Files(), "\n")+"\n", name+"\n") {
			t.Errorf("Files lacks %s", name)
		}
	}
	if p.IsSet("cluster.secret") {
		t.Error("a secret that a later file replaced is still set")
	}
}

func TestLaterSecretBeatsEarlierFile(t *testing.T) {
	dir := t.TempDir()
	file := write(t, dir, "a.toml", "connect.token_file = 'gone'")
	write(t, dir, "a.d/1.toml", "connect.token = 'inline'")
	a, err := LoadAgent(file)
	if err != nil || a.Connect.Token.Reveal() != "inline" || a.Connect.TokenFile != "" {
		t.Errorf("token %q, file %q: %v", a.Connect.Token.Reveal(), a.Connect.TokenFile, err)
	}
	a, err = LoadAgent(file, Override{From: "--token-file", Key: "connect.token_file", Value: write(t, dir, "t", "flag")})
	if err != nil || a.Connect.Token.Reveal() != "flag" {
		t.Errorf("token %q: %v", a.Connect.Token.Reveal(), err)
	}
}

func TestFilesThatCannotBeReadAreNamed(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "empty", "\n")
	write(t, dir, "large", strings.Repeat("x", maxSecret+1))
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"nope":  `f.toml:1: connect.token_file: want a readable file, have "nope": no such file or directory`,
		"empty": `f.toml:1: connect.token_file: want a file with something in it, have "empty", which is empty`,
		"large": `f.toml:1: connect.token_file: want a readable file, have "large": more than 64KiB`,
		"pipe":  `f.toml:1: connect.token_file: want a readable file, have "pipe": something that is not a file`,
		".":     `f.toml:1: connect.token_file: want a readable file, have "` + dir + `": something that is not a file`,
	} {
		_, err := LoadAgent(write(t, dir, "f.toml", "connect.token_file = '"+name+"'"))
		if got := lines(err, dir); len(got) != 1 || got[0] != want {
			t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), want)
		}
	}
}

func TestSettingsFileItselfMustBeThere(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "large.toml", strings.Repeat("#", maxFile+1))
	write(t, dir, "utf16.toml", "\xff\xfea\x00")
	write(t, dir, "latin1.toml", "a=1\nb='\xe9'")
	for name, want := range map[string]string{
		"nope.toml":   `nope.toml: want a readable file, have no such file or directory`,
		"large.toml":  `large.toml: want a readable file, have more than 1MiB`,
		"utf16.toml":  `utf16.toml:1: is not UTF-8 text`,
		"latin1.toml": `latin1.toml:2: is not UTF-8 text`,
	} {
		_, err := LoadPikod(filepath.Join(dir, name))
		if got := lines(err, dir); len(got) != 1 || got[0] != want {
			t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), want)
		}
	}
}

func TestOpenSecretsAreRefused(t *testing.T) {
	dir := t.TempDir()
	token := write(t, dir, "token", "x")
	file := write(t, dir, "a.toml", "connect.token_file = 'token'")
	for mode, want := range map[os.FileMode]string{
		0o600: "", 0o640: "", 0o440: "",
		0o644: `a.toml:1: connect.token_file: want a file that other users of this host can't open, ` +
			`have "token" with mode 0644; chmod o= token`,
	} {
		if err := os.Chmod(token, mode); err != nil {
			t.Fatal(err)
		}
		_, err := LoadAgent(file)
		if got := strings.Join(lines(err, dir), "\n"); got != want {
			t.Errorf("mode %v: got %q, want %q", mode, got, want)
		}
	}
}

func TestDenylistIsReadFromItsFile(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "denied", "# stolen\nt1\n\n  alice@example.com  \n")
	write(t, dir, "empty", "")
	p, err := LoadPikod(write(t, dir, "p.toml", "proxy.auth.denylist_file = 'denied'\nupstream.auth.denylist_file = 'empty'"))
	if err != nil {
		t.Fatal(err)
	}
	if got := p.Proxy.Auth.Denylist; len(got) != 2 || got[0] != "t1" || got[1] != "alice@example.com" {
		t.Errorf("denylist is %q", got)
	}
	if got := p.Upstream.Auth.Denylist; len(got) != 0 {
		t.Errorf("an empty file denies %q", got)
	}
}

func TestOpenListenersAreWarnedOf(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "token", "x")
	a, err := LoadAgent(write(t, dir, "a.toml", `
connect.url = "http://example.com"
connect.token_file = "token"
connect.tls.ca = "token"
admin.listen = ":8002"
admin.allow_unauthenticated = true
[[listeners]]
endpoint = "x"
addr = "169.254.169.254:80"
`))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, w := range a.Warnings() {
		got = append(got, strings.ReplaceAll(w.String(), dir+"/", ""))
	}
	want := []string{
		`a.toml:2: connect.url: the token travels unencrypted; use https://`,
		`a.toml:4: connect.tls: is not used; it needs https:// in connect.url`,
		`a.toml:6: admin.allow_unauthenticated: everybody who reaches ":8002" is let in without authentication`,
		`a.toml:9: listeners[0].addr: "169.254.169.254:80" is a link-local address, where clouds keep credentials`,
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// canary is what must appear nowhere.
const canary = "canary-in-the-mine"

func TestSecretsAreNeverShown(t *testing.T) {
	s := NewSecret(canary)
	u, err := ParseProxyURL("http://user:" + canary + "@proxy:1")
	if err != nil {
		t.Fatal(err)
	}
	p := PrivateURL("https://user:" + canary + "@keys:1/set?key=" + canary)
	for _, v := range []any{s, &s, u, &u, p, &p, struct{ S Secret }{s}, struct{ U ProxyURL }{u}, []any{s, u}} {
		encoded, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{string(encoded), fmt.Sprint(v), fmt.Sprintf("%v %+v %#v %s %q %x %d", v, v, v, v, v, v, v)} {
			if strings.Contains(text, canary) {
				t.Errorf("%T is shown as %s", v, text)
			}
		}
	}
	if s.Reveal() != canary || u.URL().User.String() != "user:"+canary || (Secret{}).String() != "" || (ProxyURL{}).URL() != nil {
		t.Error("who asks for the secret itself does not get it")
	}
}

func TestErrorsAndDumpsShowNoSecret(t *testing.T) {
	t.Setenv("CANARY", canary)
	for name, text := range map[string]string{
		"good":           "[connect]\ntoken = '${CANARY}'\nproxy_url = 'http://u:${CANARY}@h:1'",
		"no quotes":      "[connect]\ntoken = " + canary,
		"half a quote":   "[connect]\ntoken = '" + canary,
		"extra":          "[connect]\ntoken = 'a' " + canary,
		"bad characters": "[connect]\ntoken = '${CANARY} x'",
		"bad escape":     `connect.token = "\q` + canary + `"`,
		"bad variable":   "[connect]\ntoken = '${CANARY}$" + canary + "'",
		"list":           "[connect]\ntoken = ['" + canary + "']",
		"bad proxy":      "connect.proxy_url = 'ftp://u:${CANARY}@h:1'",
		"broken proxy":   "connect.proxy_url = 'http://u:${CANARY}@h:1:2'",
		"user in url":    "connect.url = 'http://u:${CANARY}@h:1'",
		"twice":          "[connect]\ntoken = '" + canary + "'\ntoken = '" + canary + "'",
		"url":            "connect.url = 'x://u:${CANARY}@h:1'",
	} {
		t.Run(name, func(t *testing.T) {
			a, err := LoadAgent(write(t, t.TempDir(), "a.toml", text))
			if (err == nil) != (name == "good") {
				t.Errorf("error is %v", err)
			}
			for _, shown := range []string{fmt.Sprint(err), a.Dump(), a.Digest(), fmt.Sprint(a.Warnings()), fmt.Sprintf("%+v", a),
				fmt.Sprint(Diff(DefaultAgent(), a))} {
				if strings.Contains(shown, canary) {
					t.Errorf("it shows in %s", shown)
				}
			}
		})
	}
}

func TestFileOfAnotherUserIsExplained(t *testing.T) {
	file := write(t, t.TempDir(), "x", "")
	got := access(file, &fs.PathError{Op: "open", Path: file, Err: syscall.EACCES})
	want := fmt.Sprintf("it has mode 0600, user %d and group %d, and this process is user %d and group %d",
		os.Geteuid(), os.Getegid(), os.Geteuid(), os.Getegid())
	if got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if other := access(file, syscall.EIO); other != "" {
		t.Errorf("another error is explained as %q", other)
	}
}

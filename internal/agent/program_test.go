package agent

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/daemon"
)

// load does what the shell does with a command line.
func load(t *testing.T, file string, flags []string, args ...string) (config.Agent, daemon.Settings, error) {
	t.Helper()
	p := Program()
	fs := flag.NewFlagSet("", flag.ContinueOnError)
	p.Flags(fs)
	if err := fs.Parse(flags); err != nil {
		t.Fatal(err)
	}
	s, err := p.Load(file, args)
	if err != nil {
		return config.Agent{}, nil, err
	}
	return s.(daemon.Loaded[config.Agent]).Values, s, nil
}

func TestShortForms(t *testing.T) {
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, s, err := load(t, "", []string{"--url", "https://piko.test", "--token-file", token}, "tcp", "my-redis", "6379")
	if err != nil {
		t.Fatal(err)
	}
	l := c.Listeners
	if len(l) != 1 || l[0].Protocol != "tcp" || l[0].Endpoint != "my-redis" || l[0].Addr != "6379" || l[0].Weight != 1 {
		t.Errorf("listeners are %+v", l)
	}
	if c.Connect.URL != "https://piko.test" || c.Connect.Token.Reveal() != "secret" {
		t.Errorf("connect is %+v", c.Connect)
	}
	if err := s.Check(); err != nil {
		t.Error(err)
	}
	if strings.Contains(s.Dump(), "secret\n") {
		t.Error("the dump holds the token")
	}
}

func TestArgumentsThatMakeNoSense(t *testing.T) {
	for _, args := range [][]string{{"udp", "e", "1"}, {"http"}, {"http", "e"}, {"http", "e", "1", "2"}, {"e", "1"}} {
		_, _, err := load(t, "", nil, args...)
		if _, ok := errors.AsType[*daemon.UsageError](err); !ok {
			t.Errorf("%q gives %v", args, err)
		}
	}
	for _, args := range [][]string{{"http", "not/a/name", "1"}, {"tcp", "e", "nowhere"}} {
		_, _, err := load(t, "", nil, args...)
		if _, usage := errors.AsType[*daemon.UsageError](err); err == nil || usage {
			t.Errorf("%q gives %v", args, err)
		}
	}
}

func TestCheckNamesThePlaceOfEveryBadCertificate(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.pem")
	if err := os.WriteFile(bad, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "agent.toml")
	if err := os.WriteFile(file, []byte(`[connect]
url = "https://piko.test"
[connect.tls]
ca = "`+bad+`"
[[listeners]]
endpoint = "e"
addr = "https://localhost:1"
[listeners.tls]
ca = "`+bad+`"
`), 0o600); err != nil {
		t.Fatal(err)
	}
	_, s, err := load(t, file, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = s.Check()
	if err == nil {
		t.Fatal("bad certificates are accepted")
	}
	for _, want := range []string{file + ":4: connect.tls.ca", file + ":9: listeners[0].tls.ca"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error lacks %s:\n%v", want, err)
		}
	}
}

package server_test

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/daemon"
	"github.com/pikoproxy/piko/internal/server"
)

// command runs a command of pikod as the shell does.
func command(t *testing.T, flags []string, name string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	for _, c := range server.Program().Commands {
		if c.Name != name {
			continue
		}
		fs := flag.NewFlagSet(name, flag.ContinueOnError)
		fs.SetOutput(io.Discard)
		if c.Flags != nil {
			c.Flags(fs)
		}
		if err := fs.Parse(flags); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var out, problem bytes.Buffer
		code = c.Run(t.Context(), daemon.Env{Program: "pikod", Stdout: &out, Stderr: &problem}, args)
		return code, out.String(), problem.String()
	}
	t.Fatalf("no command %s", name)
	return 0, "", ""
}

func TestStatusCommand(t *testing.T) {
	n := start(t, nil)
	n.agent("a1\x1b[31m", "web")
	at := []string{"--admin", n.url("admin", "")}
	for name, tc := range map[string]struct {
		flags []string
		args  []string
		code  int
		out   string
		err   string
	}{
		"nodes":         {at, []string{"nodes"}, 0, "n1", ""},
		"endpoints":     {at, []string{"endpoints"}, 0, "ENDPOINT  UPSTREAMS\nweb       1\n", ""},
		"sessions":      {at, []string{"sessions"}, 0, "a1?[31m", ""},
		"routes":        {at, []string{"routes"}, 0, "web       1\n", ""},
		"route":         {at, []string{"routes", "web"}, 0, "web: one of 1 healthy upstreams", ""},
		"tenant's":      {at, []string{"routes", "t1/web"}, 0, "t1/web: nobody offers", ""},
		"bad route":     {at, []string{"routes", "a b"}, 1, "", "knows of no such thing"},
		"json":          {append([]string{"--json"}, at...), []string{"endpoints"}, 0, `{"web":1}`, ""},
		"nothing":       {at, nil, 2, "", "want nodes, endpoints, sessions or routes"},
		"other":         {at, []string{"x"}, 2, "", "want nodes, endpoints, sessions or routes"},
		"too much":      {at, []string{"nodes", "x"}, 2, "", `unexpected argument "x"`},
		"bad URL":       {[]string{"--admin", "x"}, []string{"nodes"}, 1, "", "--admin"},
		"no node there": {[]string{"--admin", "http://127.0.0.1:1"}, []string{"nodes"}, 1, "", "is pikod running"},
		"no token file": {append([]string{"--token-file", "/nowhere"}, at...), []string{"nodes"}, 1, "", "read the token"},
	} {
		t.Run(name, func(t *testing.T) {
			code, out, problem := command(t, tc.flags, "status", tc.args...)
			if code != tc.code || !strings.Contains(out, tc.out) || !strings.Contains(problem, tc.err) {
				t.Errorf("exit %d\n%s%s\nwant exit %d, %q and %q", code, out, problem, tc.code, tc.out, tc.err)
			}
			if strings.Contains(out, "\x1b") {
				t.Error("what an agent sent reaches the terminal as it is")
			}
		})
	}
}

func TestStatusWithAToken(t *testing.T) {
	n := start(t, func(c *config.Pikod) { c.Admin.Auth = keyed(secret) })
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token(t, secret, inAnHour())+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	at := []string{"--admin", n.url("admin", "")}
	if code, _, problem := command(t, at, "status", "nodes"); code != 1 || !strings.Contains(problem, "--token-file") {
		t.Errorf("exit %d, %q; want 1 and the way out", code, problem)
	}
	if code, out, problem := command(t, append(at, "--token-file", file), "status", "nodes"); code != 0 || !strings.Contains(out, "n1") {
		t.Errorf("exit %d, %q %q", code, out, problem)
	}
}

func TestHealthcheckCommand(t *testing.T) {
	n := start(t, nil)
	at := []string{"--admin", n.url("admin", "")}
	for _, flags := range [][]string{at, append([]string{"--ready"}, at...)} {
		if code, out, problem := command(t, flags, "healthcheck"); code != 0 || out != "ok\n" {
			t.Errorf("%v: exit %d, %q %q", flags, code, out, problem)
		}
	}
	n.stop()
	await(t, "the end", n.ended)
	if code, _, _ := command(t, at, "healthcheck"); code != 1 {
		t.Errorf("without a node: exit %d, want 1", code)
	}
}

func TestExplainCommand(t *testing.T) {
	for _, code := range []string{"PIKO-E3001", "piko-e3001", "E3001", "3001"} {
		if exit, out, _ := command(t, nil, "explain", code); exit != 0 || !strings.Contains(out, "no available upstreams") {
			t.Errorf("%s: exit %d, %q", code, exit, out)
		}
	}
	if exit, _, problem := command(t, nil, "explain", "PIKO-E0000"); exit != 1 || problem == "" {
		t.Errorf("an unknown code: exit %d, %q", exit, problem)
	}
	if exit, out, _ := command(t, nil, "explain"); exit != 0 || strings.Count(out, "PIKO-E") < 30 {
		t.Errorf("the list: exit %d, %q", exit, out)
	}
	if exit, _, _ := command(t, nil, "explain", "a", "b"); exit != 2 {
		t.Errorf("two codes: exit %d", exit)
	}
}

// TestProblemsSayWhereTheyAre loads a file as the shell does.
func TestProblemsSayWhereTheyAre(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pikod.toml")
	settings := fmt.Sprintf("[upstream.tls]\ncert = %q\nkey = %q\n", file, file) // which is no certificate
	if err := os.WriteFile(file, []byte(settings), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := server.Program().Load(file, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Check(); err == nil || !strings.Contains(err.Error(), file+":2: upstream.tls.cert") {
		t.Errorf("check = %v, want file and line", err)
	}
	log := logrus.New()
	log.SetOutput(io.Discard)
	if err := s.Run(t.Context(), daemon.NewProcess("pikod", "test", log)); err == nil {
		t.Error("it ran all the same")
	}
	if _, err := server.Program().Load("", []string{"x"}); err == nil {
		t.Error("an argument was taken")
	}
}

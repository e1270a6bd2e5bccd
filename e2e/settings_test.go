package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// run starts a daemon that is expected to end by itself.
func run(t testing.TB, env []string, name string, args ...string) (output string, code int) {
	t.Helper()
	p := start(t, env, name, args...)
	code = p.exit(t, settle)
	return p.output(t), code
}

func TestBadSettingsAreNamedOneByOne(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, daemon, toml string
		want               []string // "line: key" or words
	}{
		{"wrong key", "pikod", "[proxy]\nlissten = \":8000\"\n", []string{":2:", "proxy.lissten"}},
		{"bare number as duration", "pikod", "drain_timeout = 60\n", []string{":1:", "drain_timeout", "60"}},
		{"bare number as size", "pikod", "[proxy]\n\nmax_header_bytes = 4096\n", []string{":3:", "proxy.max_header_bytes"}},
		{"bad address", "pikod", "[proxy]\nlisten = \"nonsense\"\n", []string{":2:", "proxy.listen", "nonsense"}},
		{"bad port", "pikod", "[admin]\nlisten = \"127.0.0.1:99999\"\n", []string{":2:", "admin.listen", "99999"}},
		{"wrong type", "pikod", "[admin]\npprof = \"yes\"\n", []string{":2:", "admin.pprof"}},
		{"no TOML", "pikod", "[proxy]\nlisten = \n", []string{":2:"}},
		{"duplicate", "pikod", "[proxy]\nlisten = \":1\"\nlisten = \":2\"\n", []string{":3:", "listen"}},
		{"bad network", "pikod", "[proxy]\ntrusted_proxies = [\"10.0.0.0/8\", \"ten\"]\n",
			[]string{":2:", "proxy.trusted_proxies", "ten"}},
		{"unset variable", "pikod", "[proxy]\nlisten = \"${E2E_IS_NOT_SET}\"\n",
			[]string{":2:", "proxy.listen", "E2E_IS_NOT_SET"}},
		{"missing certificate", "pikod", "[proxy.tls]\ncert = \"/absent.pem\"\nkey = \"/absent.key\"\n",
			[]string{"/absent.pem", "proxy.tls"}},
		{"open to the network", "pikod", "[upstream]\nlisten = \":8001\"\n",
			[]string{":2:", "upstream.listen", "allow_unauthenticated", "auth"}},
		{"several at once", "pikod", "drain_timeout = 5\n[proxy]\nlisten = \"x\"\nwrong = 1\n[log]\nlevel = \"loud\"\n",
			[]string{":1:", "drain_timeout", ":3:", "proxy.listen", ":4:", "proxy.wrong", ":6:", "log.level", "loud"}},
		{"bad service", "piko-agent", "[[listeners]]\nendpoint = \"e\"\naddr = \"ftp://x:1\"\n",
			[]string{":3:", "listeners", "addr"}},
		{"bad endpoint", "piko-agent", "[[listeners]]\nendpoint = \"no spaces\"\naddr = \"3000\"\n",
			[]string{":2:", "endpoint"}},
		{"bad URL", "piko-agent", "[connect]\nurl = \"localhost\"\n[[listeners]]\nendpoint = \"e\"\naddr = \"1\"\n",
			[]string{":2:", "connect.url"}},
		{"missing token file", "piko-agent",
			"[connect]\ntoken_file = \"/absent\"\n[[listeners]]\nendpoint = \"e\"\naddr = \"1\"\n",
			[]string{":2:", "connect.token_file", "/absent"}},
		{"wrong key of a list", "piko-forward",
			"[[forwards]]\nlisten = \"127.0.0.1:1\"\nendpoint = \"e\"\n[[forwards]]\nport = 3\n",
			[]string{":5:", "port"}},
	} {
		for _, mode := range []string{"", "--check-config"} {
			t.Run(test.name+" "+mode, func(t *testing.T) {
				t.Parallel()
				file := writeFile(t, test.daemon+".toml", test.toml)
				args := []string{"--config", file}
				if mode != "" {
					args = append(args, mode)
				}
				out, code := run(t, nil, test.daemon, args...)
				if code != 78 {
					t.Errorf("exit %d: want 78", code)
				}
				for _, w := range test.want {
					if strings.HasPrefix(w, ":") {
						w = filepath.Base(file) + w
					}
					if !strings.Contains(out, w) {
						t.Errorf("no %q in:\n%s", w, out)
					}
				}
			})
		}
	}
}

func TestMissingFileIsBadSettings(t *testing.T) {
	t.Parallel()
	for _, daemon := range []string{"pikod", "piko-agent", "piko-forward"} {
		out, code := run(t, nil, daemon, "--config", "/absent/x.toml")
		if code != 78 || !strings.Contains(out, "/absent/x.toml") {
			t.Errorf("%s exits %d: want 78 and the name of the file:\n%s", daemon, code, out)
		}
	}
}

func TestBadUsageIsTwo(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"pikod", "--no-such-flag"}, {"pikod", "status", "nonsense"}, {"pikod", "nonsense"},
		{"piko-agent", "http", "only-endpoint"}, {"piko-agent", "udp", "e", "1"},
		{"piko-forward", "3000"}, {"piko-forward", "3000", "e", "extra"},
	} {
		if out, code := run(t, nil, args[0], args[1:]...); code != 2 || out == "" {
			t.Errorf("%s exits %d: want 2 and a reason:\n%s", strings.Join(args, " "), code, out)
		}
	}
}

func TestAskingWhatADaemonIs(t *testing.T) {
	t.Parallel()
	for _, daemon := range []string{"pikod", "piko-agent", "piko-forward"} {
		for flag, want := range map[string]string{"--version": daemon, "--help": "--config"} {
			if out, code := run(t, nil, daemon, flag); code != 0 || !strings.Contains(out, want) {
				t.Errorf("%s %s exits %d: want 0 and %q in:\n%s", daemon, flag, code, want, out)
			}
		}
	}
}

func TestEffectiveSettingsAreShownAndTakenBack(t *testing.T) {
	t.Parallel()
	token := writeFile(t, "token", "canary-token")
	for daemon, toml := range map[string]string{
		"pikod": "[proxy]\nlisten = \"${E2E_LISTEN:-127.0.0.1:8123}\"\n" +
			"auth.hmac_secret_key = \"canary-of-more-than-32-bytes-in-all\"\n",
		"piko-agent": fmt.Sprintf("[connect]\ntoken_file = %q\n[[listeners]]\nendpoint = \"e\"\naddr = \"8123\"\n", token),
		"piko-forward": fmt.Sprintf("[connect]\ntoken_file = %q\n"+
			"[[forwards]]\nlisten = \"127.0.0.1:8123\"\nendpoint = \"e\"\n", token),
	} {
		file := writeFile(t, daemon+".toml", toml)
		out, code := run(t, nil, daemon, "--config", file, "--dump-config")
		if code != 0 || !strings.Contains(out, "8123") || strings.Contains(out, "canary") {
			t.Errorf("%s --dump-config exits %d: want the settings without secrets:\n%s", daemon, code, out)
		}
		out, code = run(t, nil, daemon, "--config", file, "--check-config")
		if code != 0 || !strings.HasPrefix(out, "ok") || strings.Contains(out, "canary") {
			t.Errorf("%s --check-config exits %d: want 0 and ok:\n%s", daemon, code, out)
		}
	}
}

func TestSettingsAreMergedInOrder(t *testing.T) {
	t.Parallel()
	file := writeFile(t, "pikod.toml",
		"[log]\nlevel = \"warn\"\n[proxy]\nlisten = \"127.0.0.1:8111\"\nidle_timeout = \"1m\"\n")
	dir := strings.TrimSuffix(file, ".toml") + ".d"
	mustMkdir(t, dir)
	mustWriteFile(t, filepath.Join(dir, "10-first.toml"), "[proxy]\nlisten = \"127.0.0.1:8222\"\n")
	mustWriteFile(t, filepath.Join(dir, "20-second.toml"), "[proxy]\nlisten = \"${E2E_HOST}:8333\"\n")
	mustWriteFile(t, filepath.Join(dir, "ignored.bak"), "nonsense")
	out, code := run(t, []string{"E2E_HOST=127.0.0.1"}, "pikod", "--config", file, "--dump-config")
	if code != 0 || !strings.Contains(out, "127.0.0.1:8333") || strings.Contains(out, "8222") ||
		!strings.Contains(out, `"1m"`) && !strings.Contains(out, `"1m0s"`) || !strings.Contains(out, `"warn"`) {
		t.Errorf("exit %d: want the later files to win:\n%s", code, out)
	}
}

func TestAddressThatIsTakenIsAFailureWhileRunning(t *testing.T) {
	t.Parallel()
	l := listen(t)
	file := writeFile(t, "pikod.toml", fmt.Sprintf("[proxy]\nlisten = %q\n[upstream]\nlisten = %q\n[admin]\nlisten = %q\n",
		l.Addr(), freeAddress(t), freeAddress(t)))
	out, code := run(t, nil, "pikod", "--config", file)
	if code != 1 || contains(out, l.Addr().String(), "address already in use") != nil {
		t.Errorf("exit %d: want 1 and the address:\n%s", code, out)
	}
}

func TestLogsAreLinesWithoutSecrets(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{Proxy: withKey, More: "[log]\nlevel = \"debug\"\nformat = \"json\""})
	startAgent(t, n, agentOptions{}, offer{Endpoint: "e", Addr: serve(t, say("ok"))})
	token := sign(t, claims{})
	out, _, code := curl(t, "-H", "Authorization: Bearer "+token, "-H", "x-piko-endpoint: e",
		"http://"+n.proxy+"/path?key=canary-query")
	if code != 0 || out != "ok" {
		t.Fatalf("curl exits %d with %s", code, out)
	}
	await(t, "the request is in the access log", settle, func() error { return contains(n.output(t), `"/path`) })
	for line := range strings.Lines(n.output(t)) {
		if !strings.HasPrefix(line, "{") || !strings.HasSuffix(line, "}\n") {
			t.Errorf("a line that is not JSON: %q", line)
		}
	}
	for _, unwanted := range []string{token, secret} {
		if strings.Contains(n.output(t), unwanted) {
			t.Errorf("the log has %q in it", unwanted)
		}
	}
}

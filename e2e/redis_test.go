package e2e

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// startRedis runs the real server on a free port.
func startRedis(t testing.TB) string {
	t.Helper()
	path, err := exec.LookPath("redis-server")
	if err != nil {
		t.Fatal(err)
	}
	address := freeAddress(t)
	_, port, _ := strings.Cut(address, ":")
	p := start(t, nil, path, "--bind", "127.0.0.1", "--port", port, "--save", "", "--appendonly", "no",
		"--dir", filepath.Dir(writeFile(t, "dir", "")))
	p.awaitListen(t, "tcp", address)
	return address
}

func redis(t testing.TB, address, stdin string, args ...string) string {
	t.Helper()
	host, port, _ := strings.Cut(address, ":")
	cmd := exec.CommandContext(t.Context(), "redis-cli", append([]string{"-h", host, "-p", port}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("redis-cli %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(bytes.TrimSpace(out))
}

func TestRedisThroughForwardAndAgent(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{})
	startAgent(t, n, agentOptions{}, offer{Endpoint: "my-tcp", Addr: startRedis(t), Protocol: "tcp"})
	address, _ := startForward(t, n, "my-tcp")

	if got := redis(t, address, "", "PING"); got != "PONG" {
		t.Errorf("PING: %q: want PONG", got)
	}
	value := strings.Repeat("0123456789abcdef", 1<<18)
	if got := redis(t, address, value, "-x", "SET", "large"); got != "OK" {
		t.Errorf("SET of 4 MiB: %q: want OK", got)
	}
	if got := redis(t, address, "", "GET", "large"); got != value {
		t.Errorf("GET gives %d bytes: want the %d set", len(got), len(value))
	}
	var commands strings.Builder
	for range 20_000 {
		commands.WriteString("INCR counter\r\n")
	}
	if got := redis(t, address, commands.String(), "--pipe"); !strings.Contains(got, "errors: 0, replies: 20000") {
		t.Errorf("20,000 commands in a pipe: %q: want as many replies", got)
	}
	if got := redis(t, address, "", "GET", "counter"); got != "20000" {
		t.Errorf("counter is %q: want 20000", got)
	}
}

func TestTheTwoLinesOfTheManual(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{})
	web, cache := serve(t, say("from the service")), startRedis(t)
	start(t, nil, "piko-agent", "http", "my-endpoint", web, "--url", "http://"+n.upstream)
	start(t, nil, "piko-agent", "tcp", "my-tcp", cache, "--url", "http://"+n.upstream)
	n.awaitEndpoint(t, "my-endpoint", -1)
	n.awaitEndpoint(t, "my-tcp", -1)
	for _, header := range []string{"x-piko-endpoint: my-endpoint", "Host: my-endpoint.piko.example.com"} {
		if out, errs, code := curl(t, "-H", header, "http://"+n.proxy); code != 0 || out != "from the service" {
			t.Errorf("curl -H %q exits %d with %q %s", header, code, out, errs)
		}
	}
	address, _ := startForward(t, n, "my-tcp")
	if got := redis(t, address, "", "PING"); got != "PONG" {
		t.Errorf("PING: %q: want PONG", got)
	}
}

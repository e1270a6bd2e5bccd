//go:build security

package e2e

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// tool finds a program that `make test-security` builds into the folder of the binaries, or that is installed.
func tool(t *testing.T, name string) string {
	t.Helper()
	for _, path := range []string{filepath.Join(binaries, name), filepath.Join("..", "bin", name), name} {
		if found, err := exec.LookPath(path); err == nil {
			if absolute, err := filepath.Abs(found); err == nil && strings.Contains(path, "/") {
				return absolute
			}
			return found
		}
	}
	t.Fatalf("%s is needed: run make test-security, which gets it", name)
	return ""
}

// knownDeviations are the tests of h2spec that Go's server fails: it answers 400 where a reset of the stream would do,
// and closes the connection where it could go on.
var knownDeviations = map[string]bool{
	"8.1.2.2. Connection-Specific Header Fields / 1": true,
	"8.1.2.2. Connection-Specific Header Fields / 2": true,
	"6.5.3. Settings Synchronization / 1":            true,
}

var failedCase = regexp.MustCompile(`^\s+× (\d+): `)

// h2spec names its endpoint by the host that it connects to, which a file of hosts of its own leads to the node.
func TestSecurityH2Spec(t *testing.T) {
	a := newAuthority(t)
	cert, key := a.issue(t, "web.piko.test")
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("tls %v", secure), func(t *testing.T) {
			o := nodeOptions{}
			args := []string{"-o", "5", "-h", "web.piko.test"}
			if secure {
				o.Proxy = fmt.Sprintf("tls = {cert = %q, key = %q}", cert, key)
				args = append(args, "-t", "-k")
			}
			n := startNode(t, o)
			startAgent(t, n, agentOptions{}, offer{Endpoint: "web", Addr: serve(t, say(strings.Repeat("x", 1000)))}) // some tests need a body
			_, port, _ := strings.Cut(n.proxy, ":")
			args = append(args, "-p", port)
			hosts := writeFile(t, "hosts", "127.0.0.1 localhost web.piko.test\n")
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			out, _ := exec.CommandContext(ctx, "unshare", append([]string{
				"--map-root-user", "--mount", "sh", "-c", `mount --bind "$0" /etc/hosts && exec "$@"`, hosts, tool(t, "h2spec"),
			}, args...)...).CombinedOutput() // it ends with 1 for the known ones
			summary := regexp.MustCompile(`\d+ tests, .*`).FindString(string(out))
			t.Log(summary)
			if !strings.HasPrefix(summary, "145 tests") {
				t.Fatalf("h2spec did not run:\n%s", out)
			}
			section, seen := "", false
			for line := range strings.Lines(string(out)) {
				line = strings.TrimRight(line, "\n")
				if strings.HasPrefix(line, "Failures:") {
					seen = true
				}
				if m := regexp.MustCompile(`^\s+(\d[\d.]*\. .+)$`).FindStringSubmatch(line); m != nil {
					section = m[1]
				}
				if m := failedCase.FindStringSubmatch(line); m != nil && seen {
					if name := section + " / " + m[1]; !knownDeviations[name] {
						t.Errorf("fails: %s: %s", name, strings.TrimSpace(line))
					}
				}
			}
			if strings.Contains(summary, " failed") && !seen {
				t.Errorf("failures without a list:\n%s", out)
			}
		})
	}
}

// secured is a node whose four listeners speak TLS, by name. It knows of no Consul, so it is never ready.
func secured(t *testing.T) map[string]string {
	t.Helper()
	a := newAuthority(t)
	cert, key := a.issue(t, "localhost")
	addrs := map[string]string{}
	var text strings.Builder
	for _, name := range []string{"proxy", "upstream", "admin", "cluster"} {
		addrs[name] = freeAddress(t)
		fmt.Fprintf(&text, "[%s]\nlisten = %q\n", name, addrs[name])
		if name == "cluster" {
			fmt.Fprintf(&text, "secret = %q\n", clusterSecret)
		} else {
			fmt.Fprintf(&text, "tls = {cert = %q, key = %q}\n", cert, key)
		}
	}
	fmt.Fprintf(&text, "[consul]\naddress = %q\n", "http://"+freeAddress(t))
	p := start(t, nil, "pikod", "--config", writeFile(t, "pikod.toml", text.String()))
	for name, addr := range addrs {
		p.awaitListen(t, "tcp", addr)
		t.Logf("%s: %s", name, addr)
	}
	return addrs
}

// No listener speaks anything older than TLS 1.2, nodes among themselves nothing older than 1.3, none a cipher that is broken
// or without forward secrecy.
func TestSecurityTLSIsModern(t *testing.T) {
	for name, addr := range secured(t) {
		// shake reports whether the server goes on with this. What it says of our certificate, which it may want, is no refusal.
		shake := func(version uint16, suites ...uint16) bool {
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			_ = conn.SetDeadline(time.Now().Add(settle))
			return tls.Client(conn, &tls.Config{
				InsecureSkipVerify: true, MinVersion: version, MaxVersion: version, CipherSuites: suites,
			}).Handshake() == nil
		}
		for version, want := range map[uint16]bool{
			tls.VersionTLS10: false, tls.VersionTLS11: false, tls.VersionTLS12: name != "cluster", tls.VersionTLS13: true,
		} {
			if have := shake(version); have != want {
				t.Errorf("%s: %s: %v, want %v", name, tls.VersionName(version), have, want)
			}
		}
		for _, suite := range tls.InsecureCipherSuites() {
			if slices.Contains(suite.SupportedVersions, tls.VersionTLS12) && shake(tls.VersionTLS12, suite.ID) {
				t.Errorf("%s: takes %s", name, suite.Name)
			}
		}
	}
}

// A tool of others sees the same, and that no client can ask for another handshake.
func TestSecurityTestSSL(t *testing.T) {
	for name, addr := range secured(t) {
		if name != "proxy" && name != "cluster" {
			continue // they are like proxy, as TestSecurityTLSIsModern sees, and it takes a while
		}
		ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
		defer cancel()
		args := []string{"--quiet", "--color", "0", "--warnings", "off", "--ip", "127.0.0.1", "-p"}
		if name == "proxy" { // TLS 1.3 has no renegotiation
			args = append(args, "-R")
		}
		out, err := exec.CommandContext(ctx, "testssl", append(args, addr)...).CombinedOutput()
		if err != nil && !strings.Contains(string(out), "TLS 1.3") {
			t.Fatalf("%s: testssl: %v\n%s", name, err, out)
		}
		wanted := map[string]string{
			"SSLv2": "not offered", "SSLv3": "not offered", "TLS 1": "not offered", "TLS 1.1": "not offered",
			"TLS 1.2": "offered", "TLS 1.3": "offered",
		}
		if name == "cluster" {
			wanted["TLS 1.2"] = "not offered"
		}
		if name == "proxy" && !regexp.MustCompile(`Secure Client-Initiated Renegotiation\s+not vulnerable`).Match(out) {
			t.Errorf("%s: a client may ask for another handshake\n%s", name, out)
		}
		for version, want := range wanted {
			m := regexp.MustCompile(`(?m)^\s*` + regexp.QuoteMeta(version) + `\s+((?:not )?offered)`).FindStringSubmatch(string(out))
			if m == nil || m[1] != want {
				t.Errorf("%s: %s is %q, want %q\n%s", name, version, m, want, out)
			}
		}
	}
}

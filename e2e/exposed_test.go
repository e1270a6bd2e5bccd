package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// A node without settings offers the network nothing but its proxy listener. It runs in a network of its own, where its
// usual ports are free.
func TestSecurityANodeWithoutSettingsExposesOnlyItsProxyListener(t *testing.T) {
	t.Parallel()
	p := start(t, nil, "/usr/bin/unshare", "--net", "sh", "-c", "ip link set lo up && exec "+filepath.Join(binaries, "pikod"))
	want := []string{"00000000000000000000000000000000:1F40", "0100007F:1F41", "0100007F:1F42"} // ports 8000, 8001, 8002
	await(t, "the three listeners", settle, func() error {
		if p.ended() {
			t.Fatalf("it ended:\n%s", p.output(t))
		}
		have, err := listening(p.cmd.Process.Pid)
		if err == nil && !slices.Equal(have, want) {
			err = fmt.Errorf("it listens on %v, want %v", have, want)
		}
		return err
	})
}

// listening gives the addresses, as the kernel writes them, on which processes in the network of one listen.
func listening(pid int) ([]string, error) {
	var all []string
	for _, table := range []string{"tcp", "tcp6", "udp", "udp6"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, table))
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) > 3 && (f[3] == "0A" || strings.HasPrefix(table, "udp") && f[3] == "07") {
				all = append(all, f[1])
			}
		}
	}
	slices.Sort(all)
	return all, nil
}

func TestSecurityAnOpenListenerIsRefusedWithTheWaysOut(t *testing.T) {
	t.Parallel()
	for listener, toml := range map[string]string{
		"upstream": "[upstream]\nlisten = \":8001\"\n",
		"admin":    "[admin]\nlisten = \"0.0.0.0:8002\"\n",
	} {
		out, code := run(t, nil, "pikod", "--config", writeFile(t, "pikod.toml", toml))
		if err := contains(out, listener+".listen", "127.0.0.1", "["+listener+".auth]", "client_ca",
			listener+".allow_unauthenticated = true"); code != 78 || err != nil {
			t.Errorf("%s: code %d, %v", listener, code, err)
		}
	}
}

func TestSecurityAnOpenListenerThatIsWantedIsLoggedAndCounted(t *testing.T) {
	t.Parallel()
	_, port, _ := strings.Cut(freeAddress(t), ":")
	n := startNode(t, nodeOptions{Upstream: "allow_unauthenticated = true"})
	n.signal(t, syscall.SIGTERM)
	n.exit(t, settle)
	b, err := os.ReadFile(n.file)
	if err != nil {
		t.Fatal(err)
	}
	mustWriteFile(t, n.file, strings.Replace(string(b), fmt.Sprintf("listen = %q", n.upstream), `listen = ":`+port+`"`, 1))
	n.run(t)
	_, metrics, err := fetch("http://" + n.admin + "/metrics")
	if err == nil {
		err = contains(string(metrics), `piko_insecure{listener="upstream"} 1`)
	}
	if err != nil {
		t.Error(err)
	}
	await(t, "the log says so", settle, func() error { return contains(n.output(t), "without authentication", "listener=upstream") })
}

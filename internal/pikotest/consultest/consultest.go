// Package consultest runs real Consul servers for tests: on loopback, with ports of their own and their data in a
// directory of the test, and ended with it.
//
// The program is found by PIKO_CONSUL, or at bin/consul of the module, where `make bin/consul` puts it.
package consultest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// startTime is how long a server may take until it has a leader.
const startTime = 2 * time.Minute

// Consul is one server. It is for the goroutine of its test.
type Consul struct {
	// HTTP is where its API is, DNS where it answers names over UDP and TCP; host:port.
	HTTP, DNS string
	// Token is the management token, if access control is on; use it to make others.
	Token string

	t       testing.TB
	place   Place
	program string
	dir     string
	kept    []net.PacketConn // what keeps the ports while no process runs
	cmd     *exec.Cmd
	done    chan struct{} // closed when the process has ended
}

// Options change a server from what a developer would start.
type Options struct {
	// ACL denies everything that no token allows.
	ACL bool
	// Settings are merged into the configuration, as Consul's documentation names them; nil takes one out.
	Settings map[string]any
	// Place is where the server runs: by default here, on loopback.
	Place Place
}

// Place is where a server runs and how it is reached, when that is not this host's loopback: in a network namespace.
type Place struct {
	// Addr is the address that it binds to, without a port.
	Addr string
	// Enter is put before the command line.
	Enter []string
	// Dial reaches the address from the test.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Start runs one server and waits until it leads itself.
func Start(t testing.TB, o Options) *Consul {
	t.Helper()
	for {
		c := newConsul(t, o, 0)
		c.Run()
		if c.await() {
			return c
		}
	}
}

// Cluster runs n servers and waits until each knows the leader.
func Cluster(t testing.TB, n int) []*Consul {
	t.Helper()
	return ClusterAt(t, make([]Place, n)...)
}

// ClusterAt is Cluster with one server in each place.
func ClusterAt(t testing.TB, places ...Place) []*Consul {
	t.Helper()
	for {
		servers, ok := tryCluster(t, places)
		if ok {
			return servers
		}
		for _, c := range servers {
			c.Kill()
		}
	}
}

// tryCluster reports false if another process was faster to take a port.
func tryCluster(t testing.TB, places []Place) (servers []*Consul, ok bool) {
	t.Helper()
	servers = make([]*Consul, len(places))
	var join []string
	for i := range servers {
		servers[i] = newConsul(t, Options{Place: places[i]}, len(places))
		join = append(join, servers[i].Serf())
	}
	for _, c := range servers {
		c.change(func(settings map[string]any) { settings["retry_join"] = join })
		c.Run()
	}
	for _, c := range servers {
		if !c.await(servers...) {
			return servers, false
		}
	}
	return servers, true
}

// newConsul writes the configuration of a server of a cluster of n; with 0 it is alone.
func newConsul(t testing.TB, o Options, n int) *Consul {
	t.Helper()
	c := &Consul{t: t, place: o.Place, program: program(t), dir: t.TempDir()}
	if c.place.Addr == "" {
		c.place.Addr = "127.0.0.1"
	}
	ports := freePorts(t, 6)
	c.HTTP = fmt.Sprintf("%s:%d", c.place.Addr, ports[0])
	c.DNS = fmt.Sprintf("%s:%d", c.place.Addr, ports[1])
	settings := map[string]any{
		"server": true, "bootstrap_expect": max(n, 1), "data_dir": filepath.Join(c.dir, "data"), "bind_addr": c.place.Addr,
		"client_addr": c.place.Addr, "log_level": "warn", "disable_update_check": true, "datacenter": "dc1",
		"node_name":          "server-" + strings.NewReplacer(":", "-", ".", "-").Replace(c.HTTP),
		"leave_on_terminate": false, "skip_leave_on_interrupt": true,
		"performance": map[string]any{"raft_multiplier": 1},
		"ports": map[string]any{
			"http": ports[0], "dns": ports[1], "serf_lan": ports[2], "serf_wan": ports[3], "server": ports[4], "grpc": ports[5],
			"grpc_tls": -1, "https": -1,
		},
		"connect": map[string]any{"enabled": false},
	}
	if o.ACL {
		c.Token = "11111111-2222-3333-4444-555555555555"
		settings["acl"] = map[string]any{
			"enabled": true, "default_policy": "deny", "tokens": map[string]any{"initial_management": c.Token, "agent": c.Token},
		}
	}
	for name, value := range o.Settings {
		settings[name] = value
		if value == nil {
			delete(settings, name)
		}
	}
	c.write(settings)
	t.Cleanup(func() {
		c.Stop()
		c.release()
	})
	return c
}

// program finds Consul.
func program(t testing.TB) string {
	t.Helper()
	if p := os.Getenv("PIKO_CONSUL"); p != "" {
		return p
	}
	dir, err := os.Getwd()
	for ; err == nil && dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			p := filepath.Join(dir, "bin", "consul")
			if _, err := os.Stat(p); err == nil {
				return p
			}
		}
	}
	t.Fatal("these tests need a Consul: run `make bin/consul` first, or name one by PIKO_CONSUL")
	return ""
}

func (c *Consul) file() string { return filepath.Join(c.dir, "consul.json") }

func (c *Consul) write(settings map[string]any) {
	c.t.Helper()
	b, err := json.MarshalIndent(settings, "", "  ")
	if err == nil {
		err = os.WriteFile(c.file(), b, 0o600)
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *Consul) read() map[string]any {
	c.t.Helper()
	settings := map[string]any{}
	b, err := os.ReadFile(c.file())
	if err == nil {
		err = json.Unmarshal(b, &settings)
	}
	if err != nil {
		c.t.Fatal(err)
	}
	return settings
}

func (c *Consul) change(f func(settings map[string]any)) {
	settings := c.read()
	f(settings)
	c.write(settings)
}

// Serf is the address that others join the server by.
func (c *Consul) Serf() string { return c.port("serf_lan") }

func (c *Consul) port(name string) string {
	return fmt.Sprintf("%s:%.0f", c.place.Addr, c.read()["ports"].(map[string]any)[name])
}

// command is one that runs Consul where the server is.
func (c *Consul) command(args ...string) *exec.Cmd {
	line := append(append(slices.Clone(c.place.Enter), c.program), args...)
	return exec.Command(line[0], line[1:]...)
}

// Run starts the process, at first or again after Stop or Kill, with the data it had.
func (c *Consul) Run() {
	c.t.Helper()
	c.release()
	cmd := c.command("agent", "-config-file="+c.file())
	log, err := os.OpenFile(filepath.Join(c.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		c.t.Fatal(err)
	}
	defer func() { _ = log.Close() }() // the process has it
	cmd.Stdout, cmd.Stderr = log, log
	// A test that is killed takes its servers with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	done := make(chan struct{})
	c.cmd, c.done = cmd, done
	go func() { // ends with the process; Stop waits for it
		defer close(done)
		_ = cmd.Wait()
	}()
}

// Restart runs the process again and waits until there is a leader.
func (c *Consul) Restart() {
	c.t.Helper()
	c.Run()
	if !c.await() {
		c.t.Fatal("consul: another process has taken a port of its meanwhile")
	}
}

// Stop ends the process as an operator would. Its data stay.
func (c *Consul) Stop() { c.end(syscall.SIGTERM) }

// Kill ends the process as a crash would.
func (c *Consul) Kill() { c.end(syscall.SIGKILL) }

func (c *Consul) end(signal os.Signal) {
	if c.cmd == nil {
		return
	}
	_ = c.cmd.Process.Signal(signal) // it may have ended already
	timer := time.AfterFunc(20*time.Second, func() { _ = c.cmd.Process.Kill() })
	<-c.done
	timer.Stop()
	c.cmd = nil
	c.keep()
}

// Suspend has the process answer nothing until Resume.
func (c *Consul) Suspend() { _ = c.cmd.Process.Signal(syscall.SIGSTOP) }

// Resume ends Suspend.
func (c *Consul) Resume() { _ = c.cmd.Process.Signal(syscall.SIGCONT) }

// Leads reports whether this server is the leader.
func (c *Consul) Leads() bool {
	return c.leader() == c.port("server")
}

// CLI runs a command of Consul, such as kv delete, and returns what it prints.
func (c *Consul) CLI(args ...string) string {
	c.t.Helper()
	cmd := c.command(args...)
	cmd.Env = append(os.Environ(), "CONSUL_HTTP_ADDR="+c.HTTP, "CONSUL_HTTP_TOKEN="+c.Token)
	out, err := cmd.CombinedOutput()
	if err != nil {
		c.t.Fatalf("consul %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// leader returns the address of the leader, or "".
func (c *Consul) leader() string {
	body, err := c.Ask(http.MethodGet, "/v1/status/leader", "", 5*time.Second)
	var leader string
	if err != nil || json.Unmarshal(body, &leader) != nil {
		return ""
	}
	return leader
}

// Ask sends a request to the API and returns the answer, if it is one of success.
func (c *Consul) Ask(method, path, body string, within time.Duration) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, "http://"+c.HTTP+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("X-Consul-Token", c.Token)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: c.place.Dial}}
	resp, err := client.Do(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s: status %d: %s", method, path, resp.StatusCode, answer)
	}
	return answer, err
}

// await waits until the server knows a leader and the leader takes writes. It reports false if it, or one of those that it
// needs for that, has ended because another process was faster to take one of its ports.
func (c *Consul) await(needs ...*Consul) bool {
	c.t.Helper()
	deadline := time.Now().Add(startTime)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for c.write1() != nil {
		if time.Now().After(deadline) {
			c.t.Fatalf("consul has no leader after %v:\n%s", startTime, c.log())
		}
		<-tick.C
		for _, n := range append(needs, c) {
			if !n.ended() {
				continue
			}
			if log := n.log(); !strings.Contains(log, "address already in use") {
				c.t.Fatalf("consul has ended:\n%s", log)
			}
			return false
		}
	}
	return true
}

func (c *Consul) ended() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// log is what the process has printed.
func (c *Consul) log() string {
	log, _ := os.ReadFile(filepath.Join(c.dir, "log")) // if there is none, there is nothing to show
	return string(log)
}

// write1 makes a write that changes nothing anybody looks at.
func (c *Consul) write1() error {
	if c.leader() == "" {
		return errors.New("no leader")
	}
	_, err := c.Ask(http.MethodPut, "/v1/kv/consultest", "x", 5*time.Second)
	return err
}

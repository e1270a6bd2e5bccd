package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pikoproxy/piko/internal/pikotest/consultest"
)

// wires are hosts joined by one switch: network namespaces and a bridge. Nothing of it is in the namespace of the tests.
type wires struct {
	t     testing.TB
	id    string // first part of the names of all namespaces
	hosts []*host
}

// host is a network namespace with an address that the other hosts reach.
type host struct {
	wires      *wires
	name, addr string
}

// namespacePrefix and the id of the process that made it begin the name of every namespace, so that what a killed test left
// behind can be told from what another uses.
const namespacePrefix = "piko-fault-"

// newWires makes the switch. The test fails where there can be none.
func newWires(t testing.TB) *wires {
	t.Helper()
	for program, pkg := range map[string]string{"ip": "iproute2", "nft": "nftables"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatalf("these tests cut wires and need %s: run `make tools`, or install %s: %v", program, pkg, err)
		}
	}
	w := &wires{t: t, id: fmt.Sprintf("%s%d-%d-", namespacePrefix, os.Getpid(), processes.Add(1))}
	w.sweep()
	t.Cleanup(func() { w.remove(w.id) })
	if out, err := exec.Command("ip", "netns", "add", w.id+"switch").CombinedOutput(); err != nil {
		t.Fatalf("these tests need network namespaces, which this machine does not give to this user: run them as root, "+
			"in a container with CAP_SYS_ADMIN and CAP_NET_ADMIN: %v\n%s", err, out)
	}
	w.ip("-n", w.id+"switch", "link", "add", "br0", "type", "bridge")
	w.ip("-n", w.id+"switch", "link", "set", "br0", "up")
	return w
}

// sweep removes what tests left behind that were killed.
func (w *wires) sweep() {
	for _, name := range w.namespaces() {
		rest, ours := strings.CutPrefix(name, namespacePrefix)
		pid, _, _ := strings.Cut(rest, "-")
		if _, err := strconv.Atoi(pid); !ours || err != nil {
			continue
		}
		if _, err := os.Stat("/proc/" + pid); errors.Is(err, os.ErrNotExist) {
			w.ip("netns", "del", name)
		}
	}
}

func (w *wires) namespaces() []string {
	out, err := exec.Command("ip", "netns", "list").Output()
	if err != nil {
		w.t.Fatalf("ip netns list: %v", err)
	}
	var names []string
	for line := range strings.Lines(string(out)) {
		name, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		names = append(names, name)
	}
	return names
}

func (w *wires) remove(prefix string) {
	for _, name := range w.namespaces() {
		if strings.HasPrefix(name, prefix) {
			w.ip("netns", "del", name)
		}
	}
}

func (w *wires) ip(args ...string) { w.run("ip", args...) }

func (w *wires) run(program string, args ...string) {
	w.t.Helper()
	if out, err := exec.Command(program, args...).CombinedOutput(); err != nil {
		w.t.Errorf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
		if w.id != "" && len(w.hosts) == 0 {
			w.t.FailNow()
		}
	}
}

// host adds one.
func (w *wires) host(name string) *host {
	w.t.Helper()
	h := &host{w, name, fmt.Sprintf("10.77.0.%d", 10+len(w.hosts))}
	port := fmt.Sprint("port", len(w.hosts))
	w.ip("netns", "add", h.namespace())
	w.ip("-n", w.id+"switch", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", h.namespace())
	w.ip("-n", w.id+"switch", "link", "set", port, "master", "br0", "up")
	w.ip("-n", h.namespace(), "addr", "add", h.addr+"/24", "dev", "eth0")
	w.ip("-n", h.namespace(), "link", "set", "eth0", "up")
	w.ip("-n", h.namespace(), "link", "set", "lo", "up")
	w.hosts = append(w.hosts, h)
	return h
}

func (h *host) namespace() string { return h.wires.id + h.name }

// enter is put before a command line that is to run on the host.
func (h *host) enter() []string {
	return []string{"/usr/bin/env", "ip", "netns", "exec", h.namespace()}
}

// start runs one of the binaries under test on the host.
func (h *host) start(t testing.TB, program string, args ...string) *process {
	t.Helper()
	line := append(append(h.enter(), binaries+"/"+program), args...)
	p := start(t, nil, line[0], line[1:]...)
	p.name = program + " on " + h.name
	return p
}

// place has a Consul run on the host.
func (h *host) place() consultest.Place {
	return consultest.Place{Addr: h.addr, Enter: h.enter(), Dial: h.dial}
}

// inside calls f on a thread that is in the network of the host. Sockets that f makes stay there.
func (h *host) inside(f func()) error {
	here, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer func() { _ = here.Close() }()
	there, err := os.Open("/run/netns/" + h.namespace())
	if err != nil {
		return err
	}
	defer func() { _ = there.Close() }()
	runtime.LockOSThread()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter the network of %s: %w", h.name, err)
	}
	f()
	if err := unix.Setns(int(here.Fd()), unix.CLONE_NEWNET); err != nil {
		panic("a thread is lost in another network: " + err.Error())
	}
	runtime.UnlockOSThread()
	return nil
}

// dial connects from the host. The address must not be a name: a resolver would ask from elsewhere.
func (h *host) dial(ctx context.Context, network, address string) (c net.Conn, err error) {
	var d net.Dialer
	if e := h.inside(func() { c, err = d.DialContext(ctx, network, address) }); e != nil {
		return nil, e
	}
	return c, err
}

// door listens on loopback of the tests; connections to it come out on the host and lead to the address.
func (h *host) door(t testing.TB, address string) string {
	t.Helper()
	return serveTCP(t, func(in *net.TCPConn) {
		ctx, cancel := context.WithTimeout(context.Background(), settle)
		defer cancel()
		out, err := h.dial(ctx, "tcp", address)
		if err != nil {
			_ = in.SetLinger(0)
			return
		}
		splice(in, out.(*net.TCPConn))
	})
}

// serve runs an HTTP service on the loopback of the host and gives its address.
func (h *host) serve(t testing.TB, handler http.HandlerFunc) string {
	t.Helper()
	var l net.Listener
	var err error
	if e := h.inside(func() { l, err = net.Listen("tcp", "127.0.0.1:0") }); e != nil || err != nil {
		t.Fatal(errors.Join(e, err))
	}
	serveOn(t, &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute}, l)
	return l.Addr().String()
}

// cut has every packet between the host and each of the others lost, in both directions, until heal.
func (h *host) cut(others ...*host) {
	h.wires.t.Helper()
	for _, other := range others {
		h.deaf(other)
		other.deaf(h)
	}
}

// deaf has every packet from other to this host lost. What the host sends still arrives.
func (h *host) deaf(other *host) {
	h.wires.t.Helper()
	rule := "add table inet cut\nadd chain inet cut in { type filter hook input priority 0; }\n" +
		"add rule inet cut in ip saddr " + other.addr + " drop\n"
	cmd := exec.Command("ip", "netns", "exec", h.namespace(), "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rule)
	if out, err := cmd.CombinedOutput(); err != nil {
		h.wires.t.Fatalf("cut %s from %s: %v\n%s", other.name, h.name, err, out)
	}
}

// heal ends all cuts.
func (w *wires) heal() {
	w.t.Helper()
	for _, h := range w.hosts {
		w.ip("netns", "exec", h.namespace(), "nft", "flush", "ruleset")
	}
}

// unplug takes the host off the switch for good, as a loss of power does.
func (h *host) unplug() {
	h.wires.t.Helper()
	h.wires.ip("-n", h.namespace(), "link", "set", "eth0", "down")
}

func (h *host) plug() {
	h.wires.t.Helper()
	h.wires.ip("-n", h.namespace(), "link", "set", "eth0", "up")
}

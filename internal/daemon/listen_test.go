package daemon

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
)

func newTestProcess() *Process { return NewProcess("pikod", "1", logrus.New()) }

// give hands sockets over as systemd or a predecessor does.
func (p *Process) give(name string, unit bool, ls ...net.Listener) {
	p.sockets.waiting = map[string][]*socket{}
	for _, l := range ls {
		p.sockets.waiting[name] = append(p.sockets.waiting[name], p.sockets.own(l, name, unit))
	}
}

// roundTrip sends a line to the listener and wants it back.
func roundTrip(t *testing.T, l net.Listener, addr net.Addr) {
	t.Helper()
	c, err := net.Dial(addr.Network(), addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	fmt.Fprintln(c, "hello")
	if line, err := bufio.NewReader(s).ReadString('\n'); line != "hello\n" {
		t.Errorf("have %q, %v", line, err)
	}
}

func TestListenBindsTCPAndUnix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	for _, addr := range []string{"127.0.0.1:0", "unix:" + path} {
		l, err := newTestProcess().Listen("proxy", addr, true)
		if err != nil {
			t.Fatal(err)
		}
		roundTrip(t, l, l.Addr())
		if strings.HasPrefix(addr, "unix:") {
			info, err := os.Stat(path)
			if err != nil || info.Mode().Perm() != 0o660 {
				t.Errorf("mode %v, %v, want 0660", info.Mode(), err)
			}
		}
		l.Close()
	}
}

func TestListenTellsWhoHasAnAddress(t *testing.T) {
	l, err := newTestProcess().Listen("proxy", "127.0.0.1:0", true)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = newTestProcess().Listen("upstream", l.Addr().String(), true)
	if err == nil || !strings.Contains(err.Error(), "listen tcp "+l.Addr().String()) ||
		!strings.Contains(err.Error(), "another process has it") {
		t.Errorf("have %v", err)
	}
}

func TestListenTellsWhatToDo(t *testing.T) {
	for addr, want := range map[string]string{
		"192.0.2.1:8000":   "no interface of this host has the address",
		"unix:/no/such/it": "its directory has to be there",
	} {
		l, err := newTestProcess().Listen("proxy", addr, true)
		if err == nil {
			l.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: have %v, want %s", addr, err, want)
		}
	}
}

func TestSocketFileInTheWay(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"stale", "alive"} {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path(name), Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		if name == "stale" {
			l.Close()
		} else {
			defer l.Close()
		}
	}
	if err := os.WriteFile(path("file"), []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, want string }{
		{"stale", ""}, {"alive", "another process answers on it"}, {"file", "is no socket"}, {"no/such/dir", "no such file"},
	} {
		l, err := newTestProcess().Listen("admin", "unix:"+path(c.name), true)
		if c.want == "" {
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
				continue
			}
			roundTrip(t, l, l.Addr())
			l.Close()
		} else if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: have %v, want %q in it", c.name, err, c.want)
		}
	}
	if b, _ := os.ReadFile(path("file")); string(b) != "precious" {
		t.Error("a file in the way was removed")
	}
}

func listenTCP(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func TestInheritedSocketIsUsedOnce(t *testing.T) {
	l := listenTCP(t)
	p := newTestProcess()
	p.give("proxy", true, l)
	have, err := p.Listen("proxy", ":8000", false)
	if err != nil || have.Addr().String() != l.Addr().String() {
		t.Fatalf("have %v, %v", have, err)
	}
	// As long as it is open, an address that contradicts it is refused, and another listener is one on the same socket.
	if again, err := p.Listen("proxy", "127.0.0.1:1", true); err == nil {
		t.Errorf("a second address gives %v", again.Addr())
	}
	again, err := p.Listen("proxy", ":8000", false)
	if err != nil {
		t.Fatal(err)
	}
	have.Close()
	roundTrip(t, again, l.Addr())
	again.Close()
	other, err := p.Listen("proxy", "127.0.0.1:0", true)
	if err != nil || other.Addr().String() == l.Addr().String() {
		t.Fatalf("have %v, %v", other, err)
	}
	other.Close()
}

func TestSeveralSocketsOfOneName(t *testing.T) {
	a, b := listenTCP(t), listenTCP(t)
	p := newTestProcess()
	p.give("proxy", true, a, b)
	l, err := p.Listen("proxy", ":8000", false)
	if err != nil {
		t.Fatal(err)
	}
	roundTrip(t, l, a.Addr())
	roundTrip(t, l, b.Addr())
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close: %v", err)
	}
	if c, err := net.Dial("tcp", b.Addr().String()); err == nil {
		c.Close()
		t.Error("the second socket is still open")
	}
}

func TestMergedClosedBeforeFirstAccept(t *testing.T) {
	m := newMerged([]*socket{{Listener: listenTCP(t), home: &sockets{}}, {Listener: listenTCP(t), home: &sockets{}}})
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if _, err := m.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("have %v", err)
	}
}

func TestAddressThatContradictsTheSocket(t *testing.T) {
	l := listenTCP(t)
	port := l.Addr().(*net.TCPAddr).Port
	for _, c := range []struct {
		addr     string
		explicit bool
		conflict bool
	}{
		{"127.0.0.1:1", false, false},
		{"127.0.0.1:1", true, true},
		{fmt.Sprintf("127.0.0.1:%d", port), true, false},
		{fmt.Sprintf("localhost:%d", port), true, false},
		{fmt.Sprintf(":%d", port), true, true},
		{fmt.Sprintf("127.0.0.2:%d", port), true, true},
		{"unix:/run/x", true, true},
		{"nonsense", true, true},
	} {
		p := newTestProcess()
		file, err := l.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		inherited, err := net.FileListener(file)
		_ = file.Close()
		if err != nil {
			t.Fatal(err)
		}
		p.give("proxy", true, inherited)
		have, err := p.Listen("proxy", c.addr, c.explicit)
		if have != nil {
			have.Close()
		}
		if !c.conflict {
			if err != nil {
				t.Errorf("%s: %v", c.addr, err)
			}
			continue
		}
		if _, ok := errors.AsType[*SettingsError](err); !ok {
			t.Errorf("%s: have %v, want a settings error", c.addr, err)
			continue
		}
		for _, want := range []string{c.addr, l.Addr().String(), "systemctl edit pikod-proxy.socket", "systemctl mask --now pikod-proxy.socket"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%q lacks %q", err, want)
			}
		}
	}
}

func TestSameAddr(t *testing.T) {
	any6 := &net.TCPAddr{IP: net.IPv6unspecified, Port: 8000}
	for _, c := range []struct {
		have net.Addr
		want string
		same bool
	}{
		{any6, ":8000", true},
		{any6, "0.0.0.0:8000", true},
		{any6, "[::]:8000", true},
		{any6, ":8001", false},
		{any6, "127.0.0.1:8000", false},
		{any6, ":http", false},
		{&net.UnixAddr{Name: "/run/a", Net: "unix"}, "unix:/run/a", true},
		{&net.UnixAddr{Name: "/run/a", Net: "unix"}, "unix:/run/b", false},
		{&net.UnixAddr{Name: "/run/a", Net: "unix"}, ":8000", false},
	} {
		if have := sameAddr(c.have, c.want); have != c.same {
			t.Errorf("%v and %s: have %v", c.have, c.want, have)
		}
	}
}

// activatedEnv marks the process that TestSystemdActivation starts.
const activatedEnv = "PIKO_TEST_ACTIVATED"

// TestSystemdActivation starts this test again the way systemd would: with a socket as descriptor 3 and a notify socket.
func TestSystemdActivation(t *testing.T) {
	if os.Getenv(activatedEnv) != "" {
		activated(t)
		return
	}
	l := listenTCP(t)
	file, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer notify.Close()
	// LISTEN_PID must be the process's own, which only the process itself knows: a shell sets it and becomes the test.
	cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`, os.Args[0],
		"-test.run=^TestSystemdActivation$", "-test.count=1")
	cmd.Env = append(os.Environ(), "LISTEN_FDS=2", "LISTEN_FDNAMES=proxy:prxy", "NOTIFY_SOCKET="+notify.LocalAddr().String(), activatedEnv+"=1")
	cmd.ExtraFiles = []*os.File{file, file}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"socket " + l.Addr().String(), "there is no listener of that name\" listener=prxy"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("%q is missing in\n%s", want, out)
		}
	}
	for _, want := range []string{"STATUS=Serving: 1\\n2", "READY=1"} {
		buf := make([]byte, 512)
		n, err := notify.Read(buf)
		if err != nil || string(buf[:n]) != want {
			t.Errorf("systemd was told %q, %v, want %q", buf[:n], err, want)
		}
	}
}

func activated(t *testing.T) {
	p := program(fake{run: func(_ context.Context, p *Process) error {
		l, err := p.Listen("proxy", ":1", false) //nolint:contextcheck // to bind waits for nothing
		if err != nil {
			return err
		}
		fmt.Println("socket", l.Addr())
		p.Status("Serving: 1\n2")
		p.Status("Serving: 1\n2")
		p.Ready()
		for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
			if os.Getenv(name) != "" {
				return fmt.Errorf("%s is still set", name)
			}
		}
		return l.Close()
	}}, nil, nil)
	if code := run(&p, nil, os.Stdout, os.Stderr); code != 0 {
		t.Fatalf("exit code %d", code)
	}
}

// TestListenBesideItself moves a listener to an address that overlaps with the one it has, both ways.
func TestListenBesideItself(t *testing.T) {
	for _, hosts := range [][2]string{{"127.0.0.1", ""}, {"", "127.0.0.1"}} {
		p := newTestProcess()
		old, err := p.Listen("proxy", hosts[0]+":0", true)
		if err != nil {
			t.Fatal(err)
		}
		_, port, _ := net.SplitHostPort(old.Addr().String())
		_, err = p.Listen("upstream", hosts[1]+":"+port, true)
		if err == nil || !strings.Contains(err.Error(), "the proxy listener has it") {
			t.Errorf("another listener at the same port: %v", err)
		}
		next, err := p.Listen("proxy", hosts[1]+":"+port, true)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := newTestProcess().Listen("proxy", hosts[1]+":"+port, true); err == nil {
			t.Error("another process gets the address too")
		}
		old.Close()
		at, err := net.ResolveTCPAddr("tcp", "127.0.0.1:"+port)
		if err != nil {
			t.Fatal(err)
		}
		roundTrip(t, next, at)
		next.Close()
	}
}

// TestListenersOfOneUnixSocket closes them one by one: the file goes with the last.
func TestListenersOfOneUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	p := newTestProcess()
	a, err := p.Listen("proxy", "unix:"+path, true)
	if err != nil {
		t.Fatal(err)
	}
	b, err := p.Listen("proxy", "unix:"+path, true)
	if err != nil {
		t.Fatal(err)
	}
	a.Close()
	roundTrip(t, b, b.Addr())
	b.Close()
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the file is left: %v", err)
	}
}

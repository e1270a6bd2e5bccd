package forward

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/pikoproxy/piko"
	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/pikotest/fakenode"
)

// FuzzReload loads any text over a running forwarder, which has a node and an agent behind it. Whatever it is, the forwarder
// goes on: under the settings of the text all that they list can be connected to, and on the way back it leads where it led.
func FuzzReload(f *testing.F) {
	text, err := os.ReadFile("../../configs/piko-forward.toml")
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{
		"", string(text), "\x00", "a = [[[[", "drain_timeout = 5", "drain_timeout = \"1s\"", "[log]\nlevel = \"debug\"",
		"[connect]\nurl = \"http://192.0.2.1\"\ntoken = \"a\"", "[connect.tls]\ncert = \"/no/such\"", "[connect.tls]\nserver_name = \"a\"",
		"[[forwards]]\nlisten = \":1\"\nendpoint = \"other\"", "[[forwards]]\nlisten = \"unix:/x\"\nendpoint = \"e\"",
		"[[forwards]]\nlisten = \":1\"\nendpoint = \"e\"\n[[forwards]]\nlisten = \":2\"\nendpoint = \"e\"\n[[forwards]]\nlisten = \"unix:/x\"\nendpoint = \"f\"",
		"[admin]\nlisten = \":1\"\nallow_unauthenticated = true\npprof = true", "[admin]\nlisten = \"127.0.0.1:1\"\n[admin.tls]\ncert = \"/no/such\"",
	} {
		f.Add(seed)
	}
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"} {
		if err := os.Unsetenv(name); err != nil { // nothing here may lead to other hosts
			f.Fatal(err)
		}
	}
	node := fakenode.Start(f, "n1")
	shouting(f, node.URL())
	base := config.DefaultForward()
	base.Connect.URL = node.URL()
	base.Forwards = []config.ForwardEntry{{Listen: "127.0.0.1:0", Endpoint: "e"}}
	fwd := running(f, base)
	dir := sockets(f)
	file := filepath.Join(f.TempDir(), "piko-forward.toml")
	put := func(c config.Forward) error {
		change, err := fwd.Prepare(c)
		if err != nil {
			return err
		}
		change.Commit()
		change.Retire()
		return nil
	}
	f.Fuzz(func(t *testing.T, text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		next, err := config.LoadForward(file)
		if err != nil {
			return
		}
		next = local(next, node.URL(), dir)
		if slices.ContainsFunc(config.Diff(base, next), func(c config.Change) bool { return !c.Live }) {
			return // the shell refuses it
		}
		if put(next) == nil {
			for _, one := range fwd.current.Load().forwards {
				if c, err := connect(one); err == nil {
					_ = c.Close()
				} else if !errors.Is(err, syscall.ECONNRESET) { // nobody offers the endpoint, and that comes before the connect has returned
					t.Fatal(err)
				}
			}
		}
		fwd.status()
		if err := put(base); err != nil {
			t.Fatalf("the way back: %v", err)
		}
		c, err := connect(fwd.current.Load().forwards[0])
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		if got := ask(t, c.(*net.TCPConn), "hello"); got != "HELLO" {
			t.Fatalf("the answer is %q", got)
		}
	})
}

func connect(one *forward) (net.Conn, error) {
	addr := one.ln.Addr()
	c, err := net.Dial(addr.Network(), addr.String())
	if err == nil {
		_ = c.SetDeadline(time.Now().Add(time.Minute))
	}
	return c, err
}

// running runs a forwarder until the fuzzing ends.
func running(f *testing.F, c config.Forward) *Forwarder {
	f.Helper()
	log := logrus.New()
	log.SetOutput(io.Discard)
	ready := make(chan struct{})
	fwd, err := New(c, Options{Log: log, Version: "fuzz", Ready: func() { close(ready) }})
	if err != nil {
		f.Fatal(err)
	}
	ctx, stop := context.WithCancel(f.Context())
	ended := make(chan error, 1)
	go func() { ended <- fwd.Run(ctx) }()
	f.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			f.Errorf("the forwarder ends with %v", err)
		}
	})
	<-ready
	return fwd
}

// shouting runs an agent for the endpoint "e" until the fuzzing ends.
func shouting(f *testing.F, node string) {
	f.Helper()
	client := &piko.Client{URL: node, Connections: 1}
	l, err := client.Listen(f.Context(), "e", piko.WithProtocol(piko.TCP))
	if err != nil {
		f.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			shout(c.(*piko.Conn))
		}
	}()
	f.Cleanup(func() {
		_ = client.Close()
		<-done
	})
}

// sockets returns a folder whose name is short enough for sockets.
func sockets(f *testing.F) string {
	f.Helper()
	dir, err := os.MkdirTemp("", "piko")
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// local takes from settings what would lead to other hosts, to ports that somebody may have, or to files of others. Each
// address becomes one of its own, the same each time; the first that is no socket of Unix becomes that of the settings before.
func local(c config.Forward, node, dir string) config.Forward {
	c.Connect.URL = node
	c.DrainTimeout = min(c.DrainTimeout, config.Duration(time.Second))
	c.Admin.Auth.JWKS.URL = ""
	if c.Admin.Listen != "" {
		c.Admin.Listen = "127.0.0.1:0"
	}
	c.Forwards = slices.Clone(c.Forwards[:min(len(c.Forwards), 20)])
	first := true
	for i := range c.Forwards {
		one := &c.Forwards[i].Listen
		if first && !strings.HasPrefix(string(*one), "unix:") {
			first, *one = false, "127.0.0.1:0"
			continue
		}
		sum := fnv.New64a()
		_, _ = io.WriteString(sum, string(*one)) // never fails
		*one = config.Address(fmt.Sprintf("unix:%s/%x", dir, sum.Sum64()))
	}
	return c
}

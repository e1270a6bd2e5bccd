package server_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/server"
)

// FuzzReload loads any text over a running node. Whatever it is, the node serves on: under the settings of the text, or
// those from before if it refuses them.
func FuzzReload(f *testing.F) {
	reference, err := os.ReadFile("../../configs/pikod.toml")
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{
		"", string(reference), "drain_timeout = 5", "[proxy]\nmax_header_bytes = \"2KiB\"", "[proxy.tls]\ncert = \"/no/such\"",
		"[[upstream.tenants]]\nid = \"t\"\n[upstream.tenants.auth]\nhmac_secret_key = \"0123456789abcdef0123456789abcdef\"",
		"[balance]\npolicy = \"round-robin\"", "[proxy]\ndomains = [\"a.example\"]\nidle_timeout = \"1ms\"", "[admin]\npprof = true",
		"[proxy.auth]\nhmac_secret_key = \"0123456789abcdef0123456789abcdef\"", "[cluster]\nzone = \"z\"", "\x00", "a = [[[[",
	} {
		f.Add(seed)
	}
	base := local(config.DefaultPikod())
	log := logrus.New()
	log.SetOutput(io.Discard)
	ready := make(chan struct{})
	s, err := server.New(base, server.Options{Log: log, Version: "fuzz", Ready: func() { close(ready) }})
	if err != nil {
		f.Fatal(err)
	}
	ctx, cancel := context.WithCancel(f.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	f.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			f.Errorf("the node ends with %v", err)
		}
	})
	<-ready
	file := filepath.Join(f.TempDir(), "pikod.toml")
	change := func(c config.Pikod) error {
		got, err := s.Prepare(c)
		if err != nil {
			return err
		}
		got.Commit()
		got.Retire()
		return nil
	}
	f.Fuzz(func(t *testing.T, text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		next, err := config.LoadPikod(file)
		if err != nil {
			return
		}
		next = local(next)
		for _, c := range config.Diff(base, next) {
			if !c.Live {
				return // the shell refuses it
			}
		}
		if err := change(next); err != nil {
			next = base
		}
		answers(t, s, "proxy", next.Proxy.TLS.Enabled())
		answers(t, s, "admin", next.Admin.TLS.Enabled())
		if err := change(base); err != nil {
			t.Fatalf("the way back: %v", err)
		}
		answers(t, s, "proxy", false)
	})
}

// local takes from settings what would lead to other hosts or to ports that somebody may have.
func local(c config.Pikod) config.Pikod {
	c.Proxy.Listen, c.Upstream.Listen, c.Admin.Listen = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	c.ACME = config.DefaultPikod().ACME
	for _, a := range []*config.Auth{&c.Proxy.Auth, &c.Upstream.Auth, &c.Admin.Auth} {
		a.JWKS.URL = ""
	}
	tenants := append([]config.Tenant(nil), c.Upstream.Tenants...)
	for i := range tenants {
		tenants[i].Auth.JWKS.URL = ""
	}
	c.Upstream.Tenants = tenants
	return c
}

// answers wants a reaction: an answer, or, where the settings let nobody from here in, a connection that ends.
func answers(t *testing.T, s *server.Server, name string, secure bool) {
	t.Helper()
	c, err := net.Dial("tcp", s.Addr(name).String())
	if err != nil {
		t.Fatalf("the %s listener: %v", name, err)
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if secure {
		return // it was accepted
	}
	fmt.Fprint(c, "no request\r\n\r\n") // an endpoint might be waited for
	_, err = bufio.NewReader(c).ReadByte()
	if timeout, ok := err.(net.Error); ok && timeout.Timeout() { //nolint:errorlint // of the socket itself
		t.Fatalf("the %s listener does not answer", name)
	}
}

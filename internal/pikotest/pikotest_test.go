package pikotest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pikoproxy/piko"
	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/pikotest/ports"
)

// TestMain finds what a whole node, agent and forwarder leave behind when they have ended.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func get(t *testing.T, c *http.Client, url string) (int, string) {
	t.Helper()
	resp, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func say(word string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, word) })
}

func TestOneCallForEachPart(t *testing.T) {
	port, err := ports.Keep() // so that nobody else answers there when the node has stopped
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(port.Release)
	n := StartNode(t, func(c *config.Pikod) { c.Proxy.Listen = config.Address(port.Addr) })
	a := StartAgent(t, n, HTTP("web", Serve(t, say("hello"))), TCP("tcp", ServeTCP(t, Echo)))
	if status, body := get(t, n.Client(), "http://web.piko.test/"); status != 200 || body != "hello" {
		t.Errorf("status %d, %q: want the service's answer", status, body)
	}
	if status, _ := get(t, n.Client(), "http://absent.piko.test/"); status != http.StatusBadGateway {
		t.Errorf("status %d for an endpoint that is not there: want 502", status)
	}
	c, err := net.Dial("tcp", StartForward(t, n, "tcp"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(Patience))
	if _, err := io.WriteString(c, "ping"); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(c); err != nil || string(b) != "ping" {
		t.Errorf("read %q, %v: want the echo and a clean end", b, err)
	}
	a.Stop()
	if status, _ := get(t, n.Client(), "http://web.piko.test/"); status != http.StatusBadGateway {
		t.Errorf("status %d after the agent has gone: want 502", status)
	}
	n.Stop()
	if c, err := net.Dial("tcp", n.Proxy); err == nil {
		_ = c.Close()
		t.Error("a node that was stopped listens")
	}
}

func TestSettingsOfANodeCanBeEdited(t *testing.T) {
	n := StartNode(t, func(c *config.Pikod) { c.Proxy.Domains = []string{"piko.example.com"} })
	if status, _ := get(t, n.Client(), "http://web.piko.test/"); status != http.StatusNotFound {
		t.Errorf("status %d for a host outside of the domains: want 404", status)
	}
	client := n.SDK()
	l, err := client.Listen(t.Context(), "sdk", piko.WithProtocol(piko.TCP))
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, err = io.Copy(c, c)
			_ = c.Close()
		}
		accepted <- err
	}()
	c, err := client.Dial(t.Context(), "sdk")
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(Patience))
	if _, err := io.WriteString(c, "ping"); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(c); err != nil || string(b) != "ping" {
		t.Errorf("read %q, %v: want the echo", b, err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := <-accepted; err != nil {
		t.Errorf("service: %v", err)
	}
}

// TestNothingIsLeftAfterRoughEnds breaks exchanges off in every place. TestMain sees what is left behind.
func TestNothingIsLeftAfterRoughEnds(t *testing.T) {
	n := StartNode(t)
	endless := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			if _, err := w.Write(bytes.Repeat([]byte{'x'}, 10_000)); err != nil {
				return
			}
		}
	})
	StartAgent(t, n, HTTP("web", Serve(t, endless)), TCP("tcp", ServeTCP(t, Echo)))
	forward := StartForward(t, n, "tcp")
	for i := range 20 {
		ctx, cancel := context.WithCancel(t.Context())
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://web.piko.test/", strings.NewReader(fmt.Sprint(i)))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := n.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(io.Discard, resp.Body, 100_000); err != nil {
			t.Fatal(err)
		}
		cancel()
		_ = resp.Body.Close()
		c, err := net.Dial("tcp", forward)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, "ping")
		if i%2 == 0 {
			_ = c.(*net.TCPConn).SetLinger(0)
		}
		_ = c.Close()
	}
}

package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

func TestAnyUpgradeBecomesATwoWayStream(t *testing.T) {
	t.Parallel()
	n := oneService(t, nodeOptions{}, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "echo/1" || !strings.EqualFold(r.Header.Get("Connection"), "upgrade") {
			http.Error(w, fmt.Sprintf("header %v", r.Header), http.StatusUpgradeRequired)
			return
		}
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer func() { _ = c.Close() }()
		// The first bytes travel with the header: they must not be lost.
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo/1\r\n"+
			"X-Own: kept\r\n\r\nhello ")
		_, _ = io.Copy(c, rw)
		_, _ = io.WriteString(c, "goodbye")
	})
	for _, endpoint := range []string{"e", "read"} {
		t.Run(endpoint, func(t *testing.T) { upgradeAndTalk(t, n, endpoint) })
	}
}

func upgradeAndTalk(t *testing.T, n *node, endpoint string) {
	c := connect(t, n.proxy)
	mustWrite(t, c, "GET /chat HTTP/1.1\r\nHost: "+endpoint+".piko.test\r\nConnection: Upgrade\r\n"+
		"Upgrade: echo/1\r\n\r\nearly ")
	r := bufio.NewReader(c)
	resp := nextAnswer(t, r)
	if resp.StatusCode != http.StatusSwitchingProtocols || resp.Header.Get("Upgrade") != "echo/1" ||
		resp.Header.Get("X-Own") != "kept" {
		t.Fatalf("status %d, header %v, %s: want 101 and the service's header", resp.StatusCode, resp.Header, resp.body)
	}
	mustRead(t, r, "hello early ")
	mustWrite(t, c, "ping")
	mustRead(t, r, "ping")
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(r); err != nil || string(rest) != "goodbye" {
		t.Errorf("after half-close: %q, %v: want goodbye and a clean end", rest, err)
	}
}

func TestUpgradeThatTheServiceRefusesIsAnOrdinaryAnswer(t *testing.T) {
	t.Parallel()
	n := oneService(t, nodeOptions{}, say("no upgrade here"))
	c := connect(t, n.proxy)
	r := bufio.NewReader(c)
	for i := range 6 { // on one connection: it must stay in step
		endpoint := []string{"e", "read"}[i%2]
		mustWrite(t, c, "GET / HTTP/1.1\r\nHost: "+endpoint+".piko.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
			"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
		if a := nextAnswer(t, r); a.StatusCode != 200 || a.body != "no upgrade here" {
			t.Fatalf("status %d %q: want 200 of the service", a.StatusCode, a.body)
		}
	}
}

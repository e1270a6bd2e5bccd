//go:build security

package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/pikoproxy/piko/internal/pikotest/corpus"
)

// hostile answers /good with "good", and /N with the reply of that number.
func hostile(c *net.TCPConn) {
	br := bufio.NewReader(c)
	for {
		r, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		if r.URL.Path == "/good" {
			reply(c, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood")
			continue
		}
		var n int
		if _, err := fmt.Sscanf(r.URL.Path, "/%d", &n); err != nil {
			return
		}
		bad := corpus.Replies[n]
		if _, err := io.WriteString(c, bad.Text); err != nil || !bad.Reuse {
			_ = c.CloseWrite() // not before it was read: an answer must be refused for what it says
			_, _ = io.Copy(io.Discard, br)
			return
		}
	}
}

// What a service sends to make two readers of it disagree reaches a client, through a real agent and a real node, as an error
// or as what looks broken. Whatever it was, no other request gets any of it, on the client's connection or another.
func TestSecurityHostileServices(t *testing.T) {
	n := startNode(t, nodeOptions{Proxy: "access_log = false"})
	startAgent(t, n, agentOptions{}, offer{Endpoint: "web", Addr: serveTCP(t, hostile)})
	for i, bad := range corpus.Replies {
		t.Run(bad.Name, func(t *testing.T) {
			c := connect(t, n.proxy)
			_ = c.SetDeadline(time.Now().Add(settle)) // a minute instead of ten for each
			br := bufio.NewReader(c)
			good := func(c net.Conn, br *bufio.Reader) error {
				mustWrite(t, c, "GET /good HTTP/1.1\r\nHost: web.piko.test\r\n\r\n")
				resp, err := http.ReadResponse(br, nil)
				if err != nil {
					return err
				}
				defer func() { _ = resp.Body.Close() }()
				if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "good" {
					t.Errorf("the next request is answered %d %q, %v", resp.StatusCode, b, err)
				}
				return nil
			}
			if err := good(c, br); err != nil {
				t.Fatal(err)
			}
			mustWrite(t, c, fmt.Sprintf("POST /%d HTTP/1.1\r\nHost: web.piko.test\r\nContent-Length: 0\r\n\r\n", i))
			resp, err := http.ReadResponse(br, nil)
			for err == nil && resp.StatusCode < http.StatusOK && resp.StatusCode != http.StatusSwitchingProtocols { // a few may pass
				resp, err = http.ReadResponse(br, nil)
			}
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			switch {
			case resp.StatusCode != bad.Want:
				t.Errorf("status %d, want %d: %q", resp.StatusCode, bad.Want, b)
			case (err != nil) != bad.Broken:
				t.Errorf("body %q ends with %v, want it broken: %v", b, err, bad.Broken)
			case strings.Contains(string(b), "poison"):
				t.Errorf("body %q", b)
			}
			if err == nil && !resp.Close {
				_ = good(c, br) // it may have been closed meanwhile
			}
			other := connect(t, n.proxy)
			if err := good(other, bufio.NewReader(other)); err != nil {
				t.Error(err)
			}
		})
	}
}

package server_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/tunnel"
)

// dialed is a connection that outlives one request.
type dialed struct {
	net.Conn
	in *bufio.Reader
}

func (n *running) connect(listener string) dialed {
	n.t.Helper()
	c, err := net.Dial("tcp", n.server.Addr(listener).String())
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return dialed{c, bufio.NewReader(c)}
}

// ask sends a request and returns the status of the answer; 0: there was none.
func (c dialed) ask(target, headers string) int {
	if _, err := io.WriteString(c, "GET "+target+" HTTP/1.1\r\nHost: web.piko.test\r\n"+headers+"\r\n"); err != nil {
		return 0
	}
	resp, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return 0
	}
	defer func() { _ = resp.Body.Close() }()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

// closed reports whether the connection was closed without another byte.
func (c dialed) closed() bool {
	_, err := c.in.ReadByte()
	return err != nil && !strings.Contains(err.Error(), "timeout")
}

// A process that holds more than it may refuses what is new, with an answer where somebody is there to hear it, gives up
// what rests, and takes everything again when it has memory.
func TestWhatIsNewIsRefusedWhenMemoryIsShort(t *testing.T) {
	t.Setenv("GOMEMLIMIT", "off") // the collector of this process has other tests to serve
	n := start(t, nil)
	n.agent("a", "web")
	client, resting, agent := n.connect("proxy"), n.connect("proxy"), n.connect("upstream")
	if got := resting.ask("/", ""); got != http.StatusOK {
		t.Fatalf("a request is answered with %d before", got)
	}
	n.mustReload(t, func(c *config.Pikod) { c.MemoryLimit = 1 << 20 })
	last := 0
	eventually(t, "503 for requests", func() bool {
		last = client.ask("/", "")
		return last != http.StatusOK
	})
	if last != http.StatusServiceUnavailable {
		t.Errorf("a request is answered with %d", last)
	}
	if got := agent.ask(tunnel.PathTunnel, "Connection: Upgrade\r\nUpgrade: websocket\r\n"); got != http.StatusServiceUnavailable {
		t.Errorf("an agent is answered with %d", got)
	}
	for _, listener := range []string{"proxy", "upstream"} {
		if !n.connect(listener).closed() {
			t.Errorf("a new connection to %s lives", listener)
		}
		if n.rejected(listener, "memory") == "0" {
			t.Errorf("%s counts nobody", listener)
		}
	}
	if !resting.closed() {
		t.Error("a connection that rests lives")
	}
	n.wantLogged(t, "rejected", "reason", "memory_idle")
	n.wantLogged(t, "memory", "reason", "short")
	if n.rejected("proxy", "memory_idle") == "0" {
		t.Error("connections that rested are not counted")
	}
	n.mustReload(t, func(c *config.Pikod) { c.MemoryLimit = 1 << 40 })
	eventually(t, "requests are taken again", func() bool { return n.connect("proxy").ask("/", "") == http.StatusOK })
	n.wantLogged(t, "memory", "reason", "enough")
}

// wantLogged waits for an event of the log.
func (n *running) wantLogged(t *testing.T, event, field, value string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s with %s %s", event, field, value), func() bool {
		return slices.ContainsFunc(n.log.AllEntries(), func(e *logrus.Entry) bool {
			return e.Message == event && fmt.Sprint(e.Data[field]) == value
		})
	})
}

// flood connects an agent whose answers have no end.
func (n *running) flood(endpoint string) {
	n.t.Helper()
	a, err := tunnel.Dial(n.t.Context(), tunnel.DialOptions{URL: n.url("upstream", ""), Hello: tunnel.Hello{AgentID: "flood"}})
	if err != nil {
		n.t.Fatal(err)
	}
	if err := a.Listen(n.t.Context(), tunnel.Listen{Endpoint: endpoint, Protocol: tunnel.ProtocolHTTP}); err != nil {
		n.t.Fatal(err)
	}
	var streams sync.WaitGroup
	streams.Go(func() {
		for {
			in, err := a.Accept(n.t.Context())
			if err != nil {
				return
			}
			streams.Go(func() {
				st, err := in.Accept()
				if err != nil {
					return
				}
				defer func() { _ = st.Reset() }()
				for b := []byte("HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n"); err == nil; b = make([]byte, 64<<10) {
					_, err = st.Write(b)
				}
			})
		}
	})
	n.t.Cleanup(func() {
		_ = a.CloseNow(nil)
		streams.Wait()
		a.Wait()
	})
}

// What comes for clients that read nothing fills one account, whatever sessions it comes by; nobody else is asked to pay
// once it is gone.
func TestRequestsAreRefusedWhenTooMuchIsUnread(t *testing.T) {
	n := start(t, nil)
	n.agent("a", "web")
	n.flood("flood")
	n.mustReload(t, func(c *config.Pikod) { c.Upstream.Limits.MaxUnreadBytes = 64 << 10 })
	n.ask("web").want(t, http.StatusOK, "a")
	slow := n.connect("proxy")
	if _, err := io.WriteString(slow, "GET / HTTP/1.1\r\nHost: flood.piko.test\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	var last answer
	eventually(t, "503 for requests", func() bool {
		last = n.ask("web")
		return last.status != http.StatusOK
	})
	last.want(t, http.StatusServiceUnavailable, "PIKO-E5004")
	if last.header.Get("Retry-After") == "" {
		t.Error("nobody is told when to try again")
	}
	if n.rejected("proxy", "unread") == "0" {
		t.Error("refused requests are not counted")
	}
	if n.metric(t, "piko_tunnel_unread_bytes") < 64<<10 {
		t.Error("the metric shows less than the limit")
	}
	n.mustReload(t, func(c *config.Pikod) { c.Upstream.Limits.MaxUnreadBytes = 1 << 30 })
	n.ask("web").want(t, http.StatusOK, "a")
	n.mustReload(t, func(c *config.Pikod) { c.Upstream.Limits.MaxUnreadBytes = 64 << 10 })
	n.ask("web").want(t, http.StatusServiceUnavailable, "")
	_ = slow.Close()
	eventually(t, "requests are taken again", func() bool { return n.ask("web").status == http.StatusOK })
	eventually(t, "nothing is unread", func() bool { return n.metric(t, "piko_tunnel_unread_bytes") == 0 })
}

// metric reads one without labels.
func (n *running) metric(t *testing.T, name string) float64 {
	t.Helper()
	for line := range strings.Lines(n.get(n.url("admin", "/metrics")).body) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

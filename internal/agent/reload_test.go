package agent

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/pikotest/fakenode"
	"github.com/pikoproxy/piko/internal/tunnel"
)

// reload changes the settings of a running agent.
func (h *harness) reload(change func(*config.Agent)) {
	h.Helper()
	c := h.agent.current.Load().settings
	c.Listeners = append([]config.Listener(nil), c.Listeners...)
	change(&c)
	got, err := h.agent.Prepare(c)
	if err != nil {
		h.Fatal(err)
	}
	got.Commit()
	got.Retire()
}

// louder answers each piece that it reads at once, in upper case.
func louder(c *net.TCPConn) {
	defer func() { _ = c.Close() }()
	b := make([]byte, 64)
	for {
		n, err := c.Read(b)
		if err != nil {
			return
		}
		_, _ = c.Write([]byte(strings.ToUpper(string(b[:n]))))
	}
}

// answering is an HTTP service that answers with its name.
func answering(t *testing.T, name string) string {
	s := httpService(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, name) })
	return strings.TrimPrefix(s.URL, "http://")
}

func TestReloadOfOneListenerTouchesNoOther(t *testing.T) {
	const many = 200
	shouting := tcpService(t, louder)
	var listeners []config.Listener
	for i := range many {
		listeners = append(listeners, listenerFor("tcp", fmt.Sprintf("e%d", i), shouting))
	}
	h := start(t, nil, listeners...)
	before := h.agent.current.Load().listeners
	offers := make([]any, many)
	streams := make([]*tunnel.Stream, many)
	for i, l := range before {
		streams[i] = h.open(tunnel.Header{Endpoint: fmt.Sprintf("e%d", i), Protocol: tunnel.ProtocolTCP})
		if got := answer(t, streams[i], "one"); got != "ONE" {
			t.Fatalf("stream %d answers %q", i, got)
		}
		offers[i] = l.offered.Load() // the node may hear of an offer before this is set, but nothing is accepted before
	}
	sessions := h.agent.client.Sessions()

	other := tcpService(t, func(c *net.TCPConn) {
		_, _ = io.ReadFull(c, make([]byte, len("which")))
		_, _ = io.WriteString(c, "other")
		_ = c.Close()
	})
	h.reload(func(c *config.Agent) { c.Listeners[77].Addr = config.ServiceAddress(other) })
	eventually(t, "the new service", func() bool {
		// The old one may still answer, and waits for more after that.
		return answer(t, h.open(tunnel.Header{Endpoint: "e77", Protocol: tunnel.ProtocolTCP}), "which") == "other"
	})
	after := h.agent.current.Load().listeners
	for i := range many {
		if i != 77 && (after[i] != before[i] || after[i].offered.Load() != offers[i]) {
			t.Errorf("listener %d was touched", i)
		}
		if got := answer(t, streams[i], "two"); got != "TWO" { // the one that changed finishes what runs, too
			t.Errorf("stream %d answers %q", i, got)
		}
	}
	if now := h.agent.client.Sessions(); len(now) != 1 || !now[0].Since.Equal(sessions[0].Since) || h.node.Dials() != 1 {
		t.Errorf("sessions were %v and are %v", sessions, now)
	}
}

// answer sends a text and reads as much.
func answer(t *testing.T, st *tunnel.Stream, text string) string {
	t.Helper()
	if _, err := io.WriteString(st, text); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, len(text))
	if _, err := io.ReadFull(st, b); err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestReloadAddsRemovesAndChangesListeners(t *testing.T) {
	h := start(t, nil, listenerFor("http", "a", answering(t, "a1")), listenerFor("http", "b", answering(t, "b1")))
	h.reload(func(c *config.Agent) {
		c.Listeners[0].Addr = config.ServiceAddress(answering(t, "a2"))
		c.Listeners[0].AccessLog = true
		c.Listeners[0].Weight = 5
		c.Listeners[1] = listenerFor("http", "c", answering(t, "c1"))
	})
	h.node.AwaitListen("b", false)
	h.node.AwaitListen("c", true)
	h.node.Await("the weight", func() bool { l, ok := h.node.Listens("a"); return ok && l.Weight == 5 })
	for endpoint, want := range map[string]string{"a": "a2", "c": "c1"} {
		if _, got := h.get(h.client(endpoint, tunnel.ProtocolHTTP), "http://x/"); got != want {
			t.Errorf("%s answers %q, want %q", endpoint, got, want)
		}
	}
	eventually(t, "the line of the access log", func() bool { return strings.Contains(h.log.String(), "msg=request") })
	h.reload(func(c *config.Agent) { c.Listeners = nil })
	h.node.AwaitListen("a", false)
	h.reload(func(c *config.Agent) { c.Listeners = []config.Listener{listenerFor("http", "a", answering(t, "a3"))} })
	h.node.AwaitListen("a", true)
	if _, got := h.get(h.client("a", tunnel.ProtocolHTTP), "http://x/"); got != "a3" {
		t.Errorf("a answers %q", got)
	}
}

func TestReloadOfACheckedListenerWaitsForItsFirstCheck(t *testing.T) {
	l := listenerFor("http", "a", answering(t, "old"))
	l.Health.Type, l.Health.Path = "http", "/"
	l.Health.Interval, l.Health.Timeout = config.Duration(50*time.Millisecond), config.Duration(time.Minute)
	h := start(t, nil, l)
	h.node.AwaitListen("a", true)
	release := make(chan struct{})
	slow := httpService(t, func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
			_, _ = io.WriteString(w, "new")
		case <-r.Context().Done(): // the test has failed
		}
	})
	h.reload(func(c *config.Agent) {
		c.Listeners[0].Addr = config.ServiceAddress(strings.TrimPrefix(slow.URL, "http://"))
	})
	if _, got := h.get(h.client("a", tunnel.ProtocolHTTP), "http://x/"); got != "old" {
		t.Errorf("a answers %q before the new service was checked", got)
	}
	close(release)
	eventually(t, "the new service", func() bool {
		_, got := h.get(h.client("a", tunnel.ProtocolHTTP), "http://x/")
		return got == "new"
	})
	// A service that fails its first check takes the endpoint away, as it would at the start.
	h.reload(func(c *config.Agent) { c.Listeners[0].Addr = "127.0.0.1:1" })
	h.node.AwaitListen("a", false)
	h.reload(func(c *config.Agent) {
		c.Listeners[0].Addr = config.ServiceAddress(answering(t, "third"))
		c.Listeners[0].Health.Type = ""
	})
	h.node.AwaitListen("a", true)
}

func TestReloadMovesToAnotherServerFirst(t *testing.T) {
	h := start(t, nil, listenerFor("tcp", "e", tcpService(t, louder)))
	st := h.open(tunnel.Header{Endpoint: "e", Protocol: tunnel.ProtocolTCP})
	other := fakenode.Start(t, "n2")
	h.reload(func(c *config.Agent) {
		c.Connect.URL = other.URL()
		c.Connect.Token = config.NewSecret("token")
	})
	other.AwaitListen("e", true)
	if got := answer(t, st, "still"); got != "STILL" {
		t.Errorf("a stream through the old server answers %q", got)
	}
	_ = st.Reset()
	h.node.Await("the end of the old session", func() bool { return h.node.Sessions() == 0 })
	h.reload(func(c *config.Agent) { c.Connect.Token = config.NewSecret("another") })
	other.Await("the other token", func() bool {
		tokens := other.Tokens()
		return tokens[len(tokens)-1] == "another"
	})
	if other.Sessions() != 1 {
		t.Errorf("%d sessions: a new token made another one", other.Sessions())
	}
}

func TestPrepareRefusesWhatCanNotWork(t *testing.T) {
	h := start(t, nil, listenerFor("http", "a", answering(t, "a1")))
	c := h.agent.current.Load().settings
	c.Connect.TLS.CA = "/no/such/ca"
	bad := listenerFor("http", "b", "https://localhost:1")
	bad.TLS.CA = "/no/such/other"
	c.Listeners = append(c.Listeners[:1:1], bad)
	c.Admin.TLS.Cert = "/no/such/cert"
	_, err := h.agent.Prepare(c)
	if err == nil {
		t.Fatal("taken")
	}
	for _, want := range []string{"connect.tls.ca", "listeners[1].tls.ca"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %v", want, err)
		}
	}
	if _, got := h.get(h.client("a", tunnel.ProtocolHTTP), "http://x/"); got != "a1" {
		t.Errorf("a answers %q after a refusal", got)
	}
}

package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"go.uber.org/goleak"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/pikotest/fakenode"
	"github.com/pikoproxy/piko/internal/tunnel"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// harness is an agent that runs and the node that it is connected to.
type harness struct {
	*testing.T
	node  *fakenode.Node
	agent *Agent
	log   *logBuffer
	stop  context.CancelFunc
	ended chan error // gets what Run returns
}

// start runs an agent until the test ends.
func start(t *testing.T, change func(*config.Agent), listeners ...config.Listener) *harness {
	t.Helper()
	h := &harness{T: t, node: fakenode.Start(t, "n1"), log: &logBuffer{}, ended: make(chan error, 1)}
	c := config.DefaultAgent()
	c.Connect.URL = h.node.URL()
	c.Connect.Connections = 1
	c.DrainTimeout = config.Duration(10 * time.Second)
	c.Listeners = listeners
	if change != nil {
		change(&c)
	}
	log := logrus.New()
	log.SetOutput(h.log)
	log.SetLevel(logrus.DebugLevel)
	var err error
	if h.agent, err = New(c, Options{Log: log}); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	h.stop = stop
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		h.ended <- h.agent.Run(ctx)
	}()
	t.Cleanup(func() {
		stop()
		<-finished
		if t.Failed() {
			t.Log(h.log.String())
		}
	})
	for _, l := range listeners {
		if l.Health.Type == "" {
			h.node.AwaitListen(l.Endpoint, true)
		}
	}
	return h
}

type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// eventually waits until condition is true, for things that nobody announces.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	timeout := time.After(time.Minute)
	for !condition() {
		select {
		case <-timeout:
			t.Fatalf("waited in vain for: %s", what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func listenerFor(protocol, endpoint, addr string) config.Listener {
	l := config.DefaultListener()
	l.Protocol, l.Endpoint, l.Addr = protocol, endpoint, config.ServiceAddress(addr)
	return l
}

// open opens a stream of a protocol, which is reset when the test ends. On it nothing waits for longer than a minute.
func (h *harness) open(header tunnel.Header) *tunnel.Stream {
	h.Helper()
	ctx, cancel := context.WithTimeout(h.Context(), time.Minute)
	defer cancel()
	st, err := h.node.Open(ctx, header)
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { _ = st.Reset() })
	if err := st.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		h.Fatal(err)
	}
	return st
}

// refused opens a stream that is refused, and returns the code.
func (h *harness) refused(header tunnel.Header) string {
	h.Helper()
	ctx, cancel := context.WithTimeout(h.Context(), time.Minute)
	defer cancel()
	st, err := h.node.Open(ctx, header)
	if err == nil {
		_ = st.Reset()
		return ""
	}
	r, ok := errors.AsType[*tunnel.RefusedError](err)
	if !ok {
		h.Fatal(err)
	}
	return r.Code
}

// client returns an HTTP client whose connections are streams for an endpoint.
func (h *harness) client(endpoint, protocol string) *http.Client {
	var protocols http.Protocols
	protocols.SetHTTP1(protocol == tunnel.ProtocolHTTP)
	protocols.SetUnencryptedHTTP2(protocol == tunnel.ProtocolH2)
	transport := &http.Transport{
		Protocols:          &protocols,
		DisableCompression: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return h.node.Open(ctx, tunnel.Header{Endpoint: endpoint, Protocol: protocol})
		},
	}
	h.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: time.Minute,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// get asks for a URL and returns status and body.
func (h *harness) get(c *http.Client, url string) (int, string) {
	h.Helper()
	res, err := c.Get(url)
	if err != nil {
		h.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		h.Fatal(err)
	}
	return res.StatusCode, string(b)
}

// echoRequest answers with what the service sees of a request.
func echoRequest(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintf(w, "%s %s host=%s xff=%q", r.Method, r.RequestURI, r.Host, r.Header["X-Forwarded-For"])
}

// tcpService runs a TCP service until the test ends and returns its address. The handler owns the connection.
func tcpService(t *testing.T, handle func(*net.TCPConn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	t.Cleanup(func() {
		_ = ln.Close()
		running.Wait()
	})
	running.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			running.Go(func() { handle(c.(*net.TCPConn)) })
		}
	})
	return ln.Addr().String()
}

// unixService accepts connections at path until the test ends.
func unixService(t *testing.T, path string) {
	t.Helper()
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	t.Cleanup(func() {
		_ = ln.Close()
		running.Wait()
	})
	running.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
		}
	})
}

func shout(c *net.TCPConn) {
	defer func() { _ = c.Close() }()
	b, err := io.ReadAll(c)
	if err == nil {
		_, _ = c.Write([]byte(strings.ToUpper(string(b))))
	}
}

func httpService(t *testing.T, f http.HandlerFunc) *httptest.Server {
	s := httptest.NewServer(f)
	t.Cleanup(s.Close)
	return s
}

// ask sends text, ends the direction, and returns what comes back.
func ask(t *testing.T, st *tunnel.Stream, text string) string {
	t.Helper()
	if _, err := st.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := st.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(st)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestOneRefusedListenerLeavesTheOthersAlone(t *testing.T) {
	address := tcpService(t, shout)
	h := start(t, nil, listenerFor("tcp", "good", address))
	h.stop()
	<-h.ended

	node := fakenode.Start(t, "n2")
	node.Refuse("bad", tunnel.CodeNotPermitted)
	c := config.DefaultAgent()
	c.Connect.URL = node.URL()
	c.Listeners = []config.Listener{listenerFor("tcp", "bad", address), listenerFor("tcp", "good", address)}
	log := logrus.New()
	var out logBuffer
	log.SetOutput(&out)
	a, err := New(c, Options{Log: log})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	node.AwaitListen("good", true)
	eventually(t, "a report of the refusal", func() bool {
		return strings.Contains(out.String(), "endpoint not accepted, will retry") && a.Ready() == nil
	})
	if s := a.status(); s.Listeners[0].State != stateWaiting || s.Listeners[1].State != stateRoutable ||
		!strings.Contains(s.Listeners[0].Err, tunnel.CodeNotPermitted) {
		t.Errorf("status is %+v", s)
	}
	node.Refuse("bad", "")
	node.AwaitListen("bad", true)
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestAgentComesBackAfterItsNodeVanished(t *testing.T) {
	h := start(t, nil, listenerFor("tcp", "e", tcpService(t, shout)))
	for range 3 {
		h.node.Kill()
		h.node.Restart()
		h.node.AwaitListen("e", true)
		if got := ask(t, h.open(tunnel.Header{Endpoint: "e"}), "x"); got != "X" {
			t.Fatalf("answer is %q", got)
		}
	}
	select {
	case err := <-h.ended:
		t.Fatalf("the agent has ended: %v", err)
	default:
	}
}

func TestDrainFinishesWhatRunsAndEndsEarly(t *testing.T) {
	release := make(chan struct{})
	web := httpService(t, func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
			_, _ = io.WriteString(w, "in time")
		case <-r.Context().Done(): // the test has failed
		}
	})
	withWeb := listenerFor("http", "web", web.URL)
	withWeb.HostHeader = "service.test" // makes it a reverse proxy
	const timeout = 3 * time.Minute
	h := start(t, func(c *config.Agent) { c.DrainTimeout = config.Duration(timeout) }, withWeb, listenerFor("http", "spliced", web.URL))
	answers := make(chan string, 2)
	for _, endpoint := range []string{"web", "spliced"} {
		go func() {
			c := h.client(endpoint, tunnel.ProtocolHTTP)
			defer c.CloseIdleConnections()
			res, err := c.Get("http://x/")
			if err != nil {
				answers <- err.Error()
				return
			}
			b, err := io.ReadAll(res.Body)
			_ = res.Body.Close()
			answers <- fmt.Sprint(string(b), err)
		}()
	}
	eventually(t, "both requests", func() bool {
		return h.agent.current.Load().listeners[0].inFlight.Load()+h.agent.current.Load().listeners[1].inFlight.Load() == 2
	})
	h.stop()
	h.node.Await("the agent's leave", func() bool { return h.node.Drains() == 1 })
	if err := h.agent.Ready(); err == nil {
		t.Error("a draining agent says that it is ready")
	}
	h.node.AwaitListen("web", false)
	close(release)
	for range 2 {
		if got := <-answers; got != "in time<nil>" {
			t.Errorf("answer is %q", got)
		}
	}
	select {
	case err := <-h.ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatalf("the drain has not ended, as if it took its timeout of %v", timeout)
	}
	h.ended <- nil
}

func TestDrainCutsWhatTakesTooLong(t *testing.T) {
	for _, host := range []string{"", "service.test"} {
		t.Run("host_header "+host, func(t *testing.T) {
			web := httpService(t, func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.WriteString(w, "half")
				_ = http.NewResponseController(w).Flush()
				<-r.Context().Done()
			})
			l := listenerFor("http", "e", web.URL)
			l.HostHeader = host
			h := start(t, func(c *config.Agent) { c.DrainTimeout = config.Duration(100 * time.Millisecond) }, l)
			res, err := h.client("e", tunnel.ProtocolHTTP).Get("http://x/")
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = res.Body.Close() }()
			h.stop()
			if b, err := io.ReadAll(res.Body); err == nil {
				t.Errorf("client reads %q and a clean end", b)
			}
			if err := <-h.ended; err != nil {
				t.Error(err)
			}
			h.ended <- nil
		})
	}
}

func TestConsoleShowsHowTheAgentFares(t *testing.T) {
	h := start(t, func(c *config.Agent) { c.Admin.Listen = "127.0.0.1:0" }, listenerFor("tcp", "e", tcpService(t, shout)))
	if got := ask(t, h.open(tunnel.Header{Endpoint: "e"}), "abc"); got != "ABC" {
		t.Fatalf("answer is %q", got)
	}
	eventually(t, "readiness", func() bool { return h.agent.Ready() == nil })
	base := "http://" + h.agent.ConsoleAddr().String()
	client := &http.Client{Timeout: time.Minute}
	defer client.CloseIdleConnections()
	for path, want := range map[string]string{
		"/health":  "ok",
		"/ready":   "ready",
		"/metrics": `piko_agent_received_bytes_total{endpoint="e"} 3`,
		"/status":  `"endpoint":"e","protocol":"tcp"`,
	} {
		eventually(t, path, func() bool {
			status, body := h.get(client, base+path)
			return status == http.StatusOK && strings.Contains(body, want)
		})
	}
}

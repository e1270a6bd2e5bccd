package server_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/hashicorp/yamux"
	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"
	"go.uber.org/goleak"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/server"
	"github.com/pikoproxy/piko/internal/tunnel"
	"github.com/pikoproxy/piko/internal/websocket"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 40 * time.Second

// running is a node in this process.
type running struct {
	t      *testing.T
	server *server.Server
	log    *test.Hook
	client *http.Client
	stop   func() // begins the drain

	settings config.Pikod // in use
	ended    chan error   // what Run returned
}

// start runs a node until the end of the test.
func start(t *testing.T, change func(*config.Pikod)) *running {
	t.Helper()
	c := config.DefaultPikod()
	c.Proxy.Listen, c.Upstream.Listen, c.Admin.Listen = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	c.Proxy.EndpointWait = 0
	c.Cluster.NodeID = "n1"
	c.DrainTimeout = config.Duration(patience)
	if change != nil {
		change(&c)
	}
	log, hook := test.NewNullLogger()
	log.SetLevel(logrus.DebugLevel)
	ready := make(chan struct{})
	s, err := server.New(c, server.Options{Log: log, Version: "test", Ready: func() { close(ready) }})
	if err != nil {
		t.Fatalf("new: %v", err)
	}
	if err := s.Listen(); err != nil {
		t.Fatalf("listen: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	n := &running{
		t: t, server: s, log: hook, client: &http.Client{Transport: &http.Transport{}},
		stop: cancel, ended: make(chan error, 1), settings: c,
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.ended <- s.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		n.client.CloseIdleConnections()
		<-done
	})
	await(t, "ready", ready)
	return n
}

func (n *running) url(listener, path string) string {
	return "http://" + n.server.Addr(listener).String() + path
}

// await fails the test when c is not closed in time.
func await[T any](t *testing.T, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("not in time: %s", what)
		panic("unreachable")
	}
}

// eventually waits for something that no channel tells.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for !f() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not in time: %s", what)
		}
	}
}

type answer struct {
	status int
	header http.Header
	body   string
}

// get sends one request and reads the whole answer.
func (n *running) get(url string, headers ...string) answer {
	n.t.Helper()
	a, err := n.try(url, headers...)
	if err != nil {
		n.t.Fatalf("get %s: %v", url, err)
	}
	return a
}

func (n *running) try(url string, headers ...string) (answer, error) {
	ctx, cancel := context.WithTimeout(n.t.Context(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return answer{}, err
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	return n.do(req)
}

// send sends a request and reads the whole answer.
func (n *running) send(req *http.Request) answer {
	n.t.Helper()
	a, err := n.do(req)
	if err != nil {
		n.t.Fatalf("%s %s: %v", req.Method, req.URL, err)
	}
	return a
}

func (n *running) do(req *http.Request) (answer, error) {
	resp, err := n.client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return answer{resp.StatusCode, resp.Header, string(body)}, err
}

// ask sends a request for an endpoint to the proxy.
func (n *running) ask(endpoint string, headers ...string) answer {
	n.t.Helper()
	return n.get(n.url("proxy", "/"), append([]string{"x-piko-endpoint", endpoint}, headers...)...)
}

func (a answer) want(t *testing.T, status int, part string) {
	t.Helper()
	if a.status != status || !strings.Contains(a.body, part) {
		t.Errorf("answer is %d %q, want %d and %q in it", a.status, a.body, status, part)
	}
}

// status reads one of the status pages.
func (n *running) status(path string, into any) {
	n.t.Helper()
	a := n.get(n.url("admin", path))
	if a.status != http.StatusOK {
		n.t.Fatalf("%s answers %d: %s", path, a.status, a.body)
	}
	if err := json.Unmarshal([]byte(a.body), into); err != nil {
		n.t.Fatalf("%s: %v", path, err)
	}
}

func (n *running) endpoints() map[string]int {
	n.t.Helper()
	var m map[string]int
	n.status("/status/upstream/endpoints", &m)
	return m
}

func (n *running) wantEndpoints(want map[string]int) {
	n.t.Helper()
	eventually(n.t, fmt.Sprintf("endpoints %v", want), func() bool { return maps.Equal(n.endpoints(), want) })
}

// agent is a native agent that answers every stream with its name, as HTTP.
type agent struct {
	*tunnel.AgentSession
	t       *testing.T
	mu      sync.Mutex
	refused map[string]string // endpoints that the node took back later, with the code
}

// dial connects a native agent with a token.
func (n *running) dial(name, token, tenant string) (*agent, error) {
	a := &agent{t: n.t, refused: map[string]string{}}
	var err error
	a.AgentSession, err = tunnel.Dial(n.t.Context(), tunnel.DialOptions{
		URL: n.url("upstream", ""), Token: token, TenantID: tenant, Hello: tunnel.Hello{AgentID: name},
		OnRefused: func(endpoint string, err *tunnel.RefusedError) {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.refused[endpoint] = err.Code
		},
	})
	if err != nil {
		return nil, err
	}
	n.serve(a.AgentSession, name)
	return a, nil
}

// wantSessions waits until there are that many.
func (n *running) wantSessions(want int) {
	n.t.Helper()
	eventually(n.t, fmt.Sprintf("%d sessions", want), func() bool {
		var overview struct{ Sessions int }
		n.status("/status", &overview)
		return overview.Sessions == want
	})
}

// serve answers the streams of a session until the end of the test.
func (n *running) serve(a *tunnel.AgentSession, name string) {
	var streams sync.WaitGroup
	ctx, cancel := context.WithCancel(context.WithoutCancel(n.t.Context()))
	streams.Go(func() {
		for {
			in, err := a.Accept(ctx)
			if err != nil {
				return
			}
			streams.Go(func() { serveStream(in, name) })
		}
	})
	n.t.Cleanup(func() {
		_ = a.CloseNow(errors.New("end of the test"))
		cancel()
		streams.Wait()
		a.Wait()
	})
}

func serveStream(in *tunnel.Incoming, name string) {
	st, err := in.Accept()
	if err != nil {
		return
	}
	defer st.Close()
	serveHTTP(st, name)
}

// serveHTTP answers requests one after another. That to /endless is never answered to its end, that to /silent not at
// all.
func serveHTTP(c net.Conn, name string) {
	r := bufio.NewReader(c)
	for {
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		if _, err := io.Copy(io.Discard, req.Body); err != nil {
			return
		}
		switch req.URL.Path {
		case "/endless":
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nbeginning")
			continue
		case "/silent":
			continue
		}
		if _, err := fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(name), name); err != nil {
			return
		}
	}
}

// agent connects a native agent that offers endpoints.
func (n *running) agent(name string, endpoints ...string) *agent {
	n.t.Helper()
	a, err := n.dial(name, "", "")
	if err != nil {
		n.t.Fatalf("dial: %v", err)
	}
	for _, e := range endpoints {
		a.listen(e)
	}
	return a
}

func (a *agent) listen(endpoint string) {
	a.t.Helper()
	if err := a.tryListen(tunnel.Listen{Endpoint: endpoint, Protocol: tunnel.ProtocolHTTP}); err != nil {
		a.t.Fatalf("listen on %s: %v", endpoint, err)
	}
}

func (a *agent) tryListen(l tunnel.Listen) error {
	ctx, cancel := context.WithTimeout(a.t.Context(), patience)
	defer cancel()
	return a.Listen(ctx, l)
}

// classicAgent is an agent of the old kind: a yamux client in a WebSocket, which records how its connection ends.
type classicAgent struct {
	*yamux.Session
	wire *wire
}

// wire keeps the last bytes that came, which tell the last yamux frame. It is not closed by yamux, which does so at a
// GoAway with an error code: the test wants to see what comes then.
type wire struct {
	*websocket.Conn
	mu   sync.Mutex
	last []byte
}

func (w *wire) Close() error { return w.Conn.SetWriteDeadline(time.Unix(1, 0)) }

func (w *wire) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last = append(w.last, p[:n]...)
	w.last = w.last[max(0, len(w.last)-12):]
	return n, err
}

func (n *running) classic(endpoint, name string) *classicAgent {
	n.t.Helper()
	ws, _, err := websocket.Dial(n.t.Context(), n.url("upstream", tunnel.PathClassic+"/"+endpoint), websocket.DialOptions{})
	if err != nil {
		n.t.Fatalf("dial as a classic agent: %v", err)
	}
	c := &classicAgent{wire: &wire{Conn: ws}}
	cfg := yamux.DefaultConfig()
	cfg.LogOutput = io.Discard
	if c.Session, err = yamux.Client(c.wire, cfg); err != nil {
		n.t.Fatalf("yamux: %v", err)
	}
	var streams sync.WaitGroup
	streams.Go(func() {
		for {
			st, err := c.AcceptStream()
			if err != nil {
				return
			}
			streams.Go(func() {
				defer st.Close()
				serveHTTP(st, name)
			})
		}
	})
	n.t.Cleanup(func() {
		_ = ws.NetConn().Close()
		_ = c.Session.Close()
		streams.Wait()
	})
	return c
}

var secret = strings.Repeat("k", 32)

// token signs claims that last an hour, or as long as the claims say.
func token(t *testing.T, key string, expires time.Time, endpoints ...string) string {
	t.Helper()
	claims := jwt.MapClaims{"sub": "agent", "exp": expires.Unix()}
	if len(endpoints) > 0 {
		claims["piko"] = map[string]any{"endpoints": endpoints}
	}
	text, err := jwt.NewWithClaims(jwt.SigningMethodHS256, claims).SignedString([]byte(key))
	if err != nil {
		t.Fatalf("sign: %v", err)
	}
	return text
}

func inAnHour() time.Time { return time.Now().Add(time.Hour) }

func keyed(key string) config.Auth {
	a := config.DefaultTenant().Auth
	a.HMACSecretKey = config.NewSecret(key)
	return a
}

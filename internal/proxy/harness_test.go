package proxy

import (
	"bufio"
	"context"
	"flag"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pikoproxy/piko/internal/router"
	"github.com/pikoproxy/piko/internal/tunnel"
)

const patience = 40 * time.Second

// tcpSession is a session whose streams are TCP connections to a service: what an agent that splices amounts to.
type tcpSession struct {
	id      string
	addr    string
	refusal error
	closing chan struct{}

	mu      sync.Mutex
	headers []tunnel.Header
	sockets []*net.TCPConn
}

func (s *tcpSession) ID() string               { return s.id }
func (s *tcpSession) Closing() <-chan struct{} { return s.closing }

func (s *tcpSession) Open(ctx context.Context, h tunnel.Header) (router.Conn, error) {
	s.mu.Lock()
	s.headers = append(s.headers, h)
	s.mu.Unlock()
	if s.refusal != nil {
		return nil, s.refusal
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", s.addr)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.sockets = append(s.sockets, conn.(*net.TCPConn))
	s.mu.Unlock()
	return tcpStream{conn.(*net.TCPConn)}, nil
}

func (s *tcpSession) conns() []*net.TCPConn {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*net.TCPConn(nil), s.sockets...)
}

func (s *tcpSession) opened() []tunnel.Header {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]tunnel.Header(nil), s.headers...)
}

type tcpStream struct{ *net.TCPConn }

func (s tcpStream) Reset() error {
	_ = s.SetLinger(0)
	return s.Close()
}

// fixture is a proxy with its router, on a real listener.
type fixture struct {
	t       testing.TB
	router  *router.Router
	server  *Server
	addr    string
	served  chan error
	stopped sync.Once
}

func newFixture(t testing.TB, change func(*Options)) *fixture {
	t.Helper()
	return newFixtureFor(t, onlyNetHTTP, change)
}

func newFixtureFor(t testing.TB, byNetHTTP bool, change func(*Options)) *fixture {
	t.Helper()
	f := &fixture{t: t, router: router.New(router.Options{Settings: router.Settings{RetryBudget: 1}})}
	o := Options{Router: f.router, ErrorLog: log.New(io.Discard, "", 0)}
	if change != nil {
		change(&o)
	}
	o.onlyNetHTTP = byNetHTTP
	server, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	f.server = server
	f.addr, f.served = f.listen()
	t.Cleanup(f.stopOnce)
	return f
}

func (f *fixture) listen() (string, chan error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- f.server.Serve(context.Background(), l) }()
	return l.Addr().String(), served
}

// stopOnce shuts the proxy down, at the end of the test at the latest.
func (f *fixture) stopOnce() { f.stopped.Do(f.stop) }

func (f *fixture) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := f.server.Shutdown(ctx); err != nil {
		f.t.Errorf("shutdown: %v", err)
	}
	if err := <-f.served; err != nil {
		f.t.Errorf("serve: %v", err)
	}
	f.router.CloseIdle()
}

// offer makes a service at addr known as endpoint ep1.
func (f *fixture) offer(addr, protocol string) *tcpSession {
	s := &tcpSession{id: "s-" + addr, addr: addr, closing: make(chan struct{})}
	f.router.Add("ep1", s, router.UpstreamOptions{Weight: 1, Protocol: protocol})
	return s
}

// serveHTTP offers a net/http service as ep1.
func (f *fixture) serveHTTP(h http.HandlerFunc) *tcpSession {
	srv := httptest.NewUnstartedServer(h)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.Start()
	f.t.Cleanup(srv.Close)
	return f.offer(srv.Listener.Addr().String(), tunnel.ProtocolHTTP)
}

// serveRaw offers a service as ep1 that is a function of its connection. Each connection is closed when it returns.
func (f *fixture) serveRaw(handle func(net.Conn, *bufio.Reader)) *tcpSession {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.t.Fatal(err)
	}
	var wait sync.WaitGroup
	wait.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wait.Go(func() {
				defer conn.Close()
				handle(conn, bufio.NewReader(conn))
			})
		}
	})
	f.t.Cleanup(func() {
		l.Close()
		f.router.CloseIdle()
		wait.Wait()
	})
	return f.offer(l.Addr().String(), tunnel.ProtocolHTTP)
}

// answer is a raw service that reads one request without a body after the other and answers with the same bytes.
func answer(text string) func(net.Conn, *bufio.Reader) {
	return func(c net.Conn, br *bufio.Reader) {
		for {
			if _, err := readRequestHead(br); err != nil {
				return
			}
			if _, err := io.WriteString(c, text); err != nil {
				return
			}
			if !strings.Contains(text, "Content-Length") && !strings.Contains(text, "chunked") {
				return
			}
		}
	}
}

func readRequestHead(br *bufio.Reader) (string, error) {
	var head strings.Builder
	for {
		line, err := br.ReadString('\n')
		head.WriteString(line)
		if err != nil || line == "\r\n" {
			return head.String(), err
		}
	}
}

// dial connects to the proxy, with a deadline for the whole test.
func (f *fixture) dial() (net.Conn, *bufio.Reader) {
	f.t.Helper()
	c, err := net.Dial("tcp", f.addr)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		f.t.Fatal(err)
	}
	return c, bufio.NewReader(c)
}

// raw sends bytes and reads one answer to the given method.
func (f *fixture) raw(request string) (*http.Response, string, error) {
	f.t.Helper()
	c, br := f.dial()
	if _, err := io.WriteString(c, request); err != nil {
		f.t.Fatal(err)
	}
	method, _, _ := strings.Cut(request, " ")
	resp, err := http.ReadResponse(br, &http.Request{Method: method})
	for err == nil && resp.StatusCode < 200 && resp.StatusCode != http.StatusSwitchingProtocols {
		resp, err = http.ReadResponse(br, &http.Request{Method: method})
	}
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return resp, string(body), err
}

// client is an HTTP/1.1 client whose idle connections do not outlive the test.
func (f *fixture) client() *http.Client {
	tr := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 16}
	f.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: patience}
}

// h2client speaks HTTP/2 with prior knowledge.
func (f *fixture) h2client() *http.Client {
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: p, DisableCompression: true}
	f.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: patience}
}

// request makes one for ep1.
func (f *fixture) request(method, path string, body io.Reader) *http.Request {
	f.t.Helper()
	r, err := http.NewRequest(method, "http://"+f.addr+path, body)
	if err != nil {
		f.t.Fatal(err)
	}
	r.Host = "ep1.piko.test"
	return r
}

func await[T any](t testing.TB, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("%s did not happen within %v", what, patience)
		panic("unreachable")
	}
}

// patiently tries what has to keep to a limit of time, with a short one first and then with longer ones: a machine that stands
// still for a moment spoils it once, and a fault of ours every time.
func patiently(t testing.TB, try func(limit time.Duration) error) {
	t.Helper()
	var err error
	for _, limit := range []time.Duration{100 * time.Millisecond, time.Second, 10 * time.Second} {
		if err = try(limit); err == nil {
			return
		}
		t.Logf("with %v: %v", limit, err)
	}
	t.Error(err)
}

func readAll(t testing.TB, r *http.Response) string {
	t.Helper()
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// onlyNetHTTP is set while the proxies of the tests serve everything by way of net/http.
var onlyNetHTTP bool

// bothWays runs all tests twice: with requests of the plain kind served by our own loop, and by net/http.
type bothWays struct{ *testing.M }

func (m bothWays) Run() int {
	code := m.M.Run()
	for _, name := range []string{"test.bench", "test.fuzz", "test.list"} {
		if flag.Lookup(name).Value.String() != "" {
			return code
		}
	}
	if code == 0 {
		onlyNetHTTP = true
		code = m.M.Run()
	}
	return code
}

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(bothWays{m})
}

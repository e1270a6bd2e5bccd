package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// settle is how long the parts may take to find each other before a test gives up on them. It is no measure of anything: a
// machine that is busy with something else must not fail a test.
const settle = time.Minute

// patience is for what takes time even when all goes well, as a gigabyte does.
const patience = 10 * time.Minute

// quiet is how the machine is said to be quiet, so that bounds of time can be told from a lack of processors.
var quiet = os.Getenv("E2E_QUIET") != ""

// bound is a bound of time on a machine that is quiet, and settle on any other.
func bound(d time.Duration) time.Duration {
	if quiet {
		return d
	}
	return max(d, settle)
}

// node is a running pikod.
type node struct {
	*process
	file                   string // its settings
	proxy, upstream, admin string // addresses
	env                    []string
}

// nodeOptions are lines of TOML for the parts of pikod.toml, and what else a node is started with.
type nodeOptions struct {
	Top, Proxy, Upstream, Admin, More string
	Zone                              string   // of a node of a cluster
	Env                               []string // more of it
}

// startNode runs a pikod on free ports and waits until it is ready.
func startNode(t testing.TB, o nodeOptions) *node {
	t.Helper()
	n := &node{proxy: freeAddress(t), upstream: freeAddress(t), admin: freeAddress(t), env: o.Env}
	n.file = writeFile(t, "pikod.toml", fmt.Sprintf("%s\n[proxy]\nlisten = %q\n%s\n[upstream]\nlisten = %q\n%s\n"+
		"[admin]\nlisten = %q\n%s\n%s\n", o.Top, n.proxy, o.Proxy, n.upstream, o.Upstream, n.admin, o.Admin, o.More))
	n.run(t)
	return n
}

// run starts the process of the node, for the first time or again.
func (n *node) run(t testing.TB) {
	t.Helper()
	n.process = start(t, n.env, "pikod", "--config", n.file)
	n.awaitReady(t, n.admin)
}

func (p *process) awaitReady(t testing.TB, admin string) {
	t.Helper()
	await(t, p.name+" is ready", settle, func() error {
		if p.ended() {
			t.Fatalf("%s ended with code %d before it was ready:\n%s", p.name, p.cmd.ProcessState.ExitCode(), p.output(t))
		}
		status, body, err := fetch("http://" + admin + "/ready")
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("status %d: %s", status, body)
		}
		return err
	})
}

// endpoints is what the node says its agents offer.
func (n *node) endpoints() (map[string]int, error) {
	status, body, err := fetch("http://" + n.admin + "/status/upstream/endpoints")
	if err != nil {
		return nil, err
	}
	if status != http.StatusOK {
		return nil, fmt.Errorf("status %d: %s", status, body)
	}
	have := map[string]int{}
	if err := json.Unmarshal(body, &have); err != nil {
		return nil, fmt.Errorf("endpoints: %w: %s", err, body)
	}
	return have, nil
}

// awaitEndpoint waits until exactly sessions agents offer the endpoint; -1 is any number but none.
func (n *node) awaitEndpoint(t testing.TB, endpoint string, sessions int) time.Duration {
	t.Helper()
	return await(t, fmt.Sprintf("%d agents offer %s", sessions, endpoint), settle, func() error {
		have, err := n.endpoints()
		if err != nil {
			return err
		}
		if have[endpoint] == sessions || sessions < 0 && have[endpoint] > 0 {
			return nil
		}
		return fmt.Errorf("%d offer it", have[endpoint])
	})
}

// awaitCount waits until that many endpoints are offered.
func (n *node) awaitCount(t testing.TB, count int) time.Duration {
	t.Helper()
	return await(t, fmt.Sprintf("%d endpoints are offered", count), settle, func() error {
		have, err := n.endpoints()
		if err == nil && len(have) != count {
			err = fmt.Errorf("%d are", len(have))
		}
		return err
	})
}

// agentOptions are lines of TOML for piko-agent.toml.
type agentOptions struct {
	Top, Connect, More string
	URL                string // default: the upstream listener of the node
	Env                []string
}

// offer is one listener of an agent.
type offer struct {
	Endpoint, Addr string
	Protocol       string // default http
	More           string // lines of TOML
}

// startAgent runs a piko-agent with the given listeners and waits until the node knows them all.
func startAgent(t testing.TB, n *node, o agentOptions, offers ...offer) *process {
	t.Helper()
	p := launchAgent(t, n, o, offers...)
	for _, l := range offers {
		n.awaitEndpoint(t, strings.ToLower(l.Endpoint), -1)
	}
	return p
}

// launchAgent is startAgent without the wait.
func launchAgent(t testing.TB, n *node, o agentOptions, offers ...offer) *process {
	t.Helper()
	return start(t, o.Env, "piko-agent", "--config", agentFile(t, n, o, offers...))
}

func agentFile(t testing.TB, n *node, o agentOptions, offers ...offer) string {
	t.Helper()
	if o.URL == "" {
		o.URL = "http://" + n.upstream
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n[connect]\nurl = %q\n%s\n%s\n", o.Top, o.URL, o.Connect, o.More)
	for _, l := range offers {
		if l.Protocol == "" {
			l.Protocol = "http"
		}
		fmt.Fprintf(&b, "[[listeners]]\nendpoint = %q\naddr = %q\nprotocol = %q\n%s\n",
			l.Endpoint, l.Addr, l.Protocol, l.More)
	}
	return writeFile(t, "piko-agent.toml", b.String())
}

// startForward runs a piko-forward from an address of its own to the endpoint and waits until it listens.
func startForward(t testing.TB, n *node, endpoint string) (address string, p *process) {
	t.Helper()
	address = freeAddress(t)
	p = start(t, nil, "piko-forward", address, endpoint, "--url", "http://"+n.proxy)
	p.awaitListen(t, "tcp", address)
	return address, p
}

// awaitListen waits until somebody listens on the address. It looks and does not touch: what listens hands connections
// on, and a service must not see one that no test has made.
func (p *process) awaitListen(t testing.TB, network, address string) {
	t.Helper()
	await(t, p.name+" listens on "+address, settle, func() error {
		if p.ended() {
			t.Fatalf("%s ended with code %d:\n%s", p.name, p.cmd.ProcessState.ExitCode(), p.output(t))
		}
		if network == "unix" { // the file is there a moment before anybody listens: that is a flag in the table
			table, err := os.ReadFile("/proc/net/unix")
			for line := range strings.Lines(string(table)) {
				if f := strings.Fields(line); len(f) == 8 && f[7] == address && f[3] == "00010000" {
					return nil
				}
			}
			return errors.Join(fmt.Errorf("nobody listens on it"), err)
		}
		_, port, _ := strings.Cut(address, ":")
		k, err := strconv.Atoi(port)
		if err != nil {
			return err
		}
		table, err := os.ReadFile("/proc/net/tcp")
		if err != nil {
			return err
		}
		// local address, remote address, state 0A: LISTEN
		return contains(string(table), fmt.Sprintf(": 0100007F:%04X 00000000:0000 0A", k))
	})
}

func writeFile(t testing.TB, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// direct reaches administrative addresses and keeps no connection to a process that may be killed next.
var direct = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

func fetch(url string) (status int, body []byte, err error) {
	resp, err := direct.Get(url)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err = io.ReadAll(resp.Body)
	return resp.StatusCode, body, err
}

// dialTo gives a dial function that ends at one address whatever name was asked for.
func dialTo(address string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", address)
	}
}

// client is an HTTP/1.1 client for which every host is the node's proxy listener.
func (n *node) client(t testing.TB) *http.Client {
	transport := &http.Transport{DialContext: dialTo(n.proxy), DisableCompression: true, MaxIdleConnsPerHost: 256}
	t.Cleanup(transport.CloseIdleConnections)
	stay := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &http.Client{Timeout: patience, Transport: transport, CheckRedirect: stay}
}

// reuse is how long a connection of a client that repeats nothing may be idle and be used again. A node that stops, or serves a
// listener anew, ends idle connections only when it has taken their requests for a while longer and asked for other
// connections. A client that uses one that was idle for longer may find that it has just been ended, with any server.
const reuse = 100 * time.Millisecond

// client2 is the same for HTTP/2 without TLS.
func (n *node) client2(t testing.TB) *http.Client {
	c := n.client(t)
	c.Transport.(*http.Transport).Protocols = new(http.Protocols)
	c.Transport.(*http.Transport).Protocols.SetUnencryptedHTTP2(true)
	return c
}

// answer is a response that was read whole.
type answer struct {
	*http.Response
	body string
}

// do sends a request and reads the whole answer.
func do(t testing.TB, c *http.Client, r *http.Request) answer {
	t.Helper()
	a, err := try(c, r)
	if err != nil {
		t.Fatalf("%s %s: %v", r.Method, r.URL, err)
	}
	return a
}

func try(c *http.Client, r *http.Request) (answer, error) {
	resp, err := c.Do(r)
	if err != nil {
		return answer{}, err
	}
	b, err := io.ReadAll(resp.Body)
	return answer{resp, string(b)}, errors.Join(err, resp.Body.Close())
}

// nextAnswer reads a whole answer from a connection, and nothing after it.
func nextAnswer(t testing.TB, r *bufio.Reader) answer {
	t.Helper()
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		t.Fatal(err)
	}
	return answer{resp, string(b)}
}

func request(t testing.TB, method, url string, body io.Reader) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func get(t testing.TB, c *http.Client, url string) answer {
	t.Helper()
	return do(t, c, request(t, http.MethodGet, url, nil))
}

// at is the URL of a path of an endpoint, for clients that take every host to the proxy listener.
func at(endpoint, path string) string { return "http://" + endpoint + ".piko.test" + path }

// serve runs an HTTP service on a free port and gives its address. It also speaks HTTP/2 without TLS.
func serve(t testing.TB, h http.HandlerFunc) string {
	t.Helper()
	l := listen(t)
	s := &http.Server{Handler: h, Protocols: new(http.Protocols), ReadHeaderTimeout: time.Minute}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	serveOn(t, s, l)
	return l.Addr().String()
}

func serveOn(t testing.TB, s *http.Server, l net.Listener) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l)
	}()
	t.Cleanup(func() {
		_ = s.Close()
		<-done
	})
}

// serveTCP runs a TCP service that gives each connection to f and closes it afterwards.
func serveTCP(t testing.TB, f func(*net.TCPConn)) string {
	t.Helper()
	l := listen(t)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				f(c.(*net.TCPConn))
			}()
		}
	}()
	return l.Addr().String()
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func connect(t testing.TB, address string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn)
}

// say is a service that answers every request with one word.
func say(word string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, word) }
}

// echoBody answers with the body of the request while it still arrives.
func echoBody(w http.ResponseWriter, r *http.Request) {
	_ = http.NewResponseController(w).EnableFullDuplex()
	_, _ = io.Copy(w, r.Body)
}

// reply writes a part of an answer. Nobody is left to tell when that fails.
func reply(w io.Writer, format string, args ...any) { _, _ = fmt.Fprintf(w, format, args...) }

// echo gives back what it gets until the other side has said all, and then says so too.
func echo(c *net.TCPConn) { _, _ = io.Copy(c, c) }

// mustRead reads exactly what is wanted.
func mustRead(t testing.TB, r io.Reader, want string) {
	t.Helper()
	b := make([]byte, len(want))
	if n, err := io.ReadFull(r, b); err != nil || !bytes.Equal(b, []byte(want)) {
		t.Fatalf("read %q, %v: want %q", b[:n], err, want)
	}
}

func mustWrite(t testing.TB, w io.Writer, s string) {
	t.Helper()
	if _, err := io.WriteString(w, s); err != nil {
		t.Fatalf("write %q: %v", s, err)
	}
}

func mustMkdir(t testing.TB, dir string) {
	t.Helper()
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
}

func mustWriteFile(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// rawService reads a request's head and writes an answer as it stands.
func rawService(t testing.TB, answer string, reset bool) string {
	return serveTCP(t, func(c *net.TCPConn) {
		r := bufio.NewReader(c)
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, req.Body)
			_, _ = io.WriteString(c, answer)
			if strings.Contains(answer, "keep") {
				continue
			}
			if reset {
				_ = c.SetLinger(0)
			}
			return
		}
	})
}

func TestServicesOfEveryAge(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{})
	services := map[string]string{
		"http10":      "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nuntil the end",
		"http10keep":  "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 4\r\n\r\nkept",
		"http11close": "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nuntil the end",
		"http11keep":  "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nkeep",
		"noreason":    "HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\nok",
		"hundred":     "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
		"chunkkeep":   "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nkeep\r\n0\r\n\r\n",
	}
	bodies := map[string]string{"http10": "until the end", "http10keep": "kept", "http11close": "until the end",
		"http11keep": "keep", "noreason": "ok", "hundred": "ok", "chunkkeep": "keep"}
	var offers []offer
	for name, answer := range services {
		service := rawService(t, answer, false)
		offers = append(offers, offer{Endpoint: name, Addr: service},
			offer{Endpoint: name + "-read", Addr: service, More: "access_log = true"})
	}
	startAgent(t, n, agentOptions{}, offers...)
	for version, c := range n.versions(t) {
		for name, body := range bodies {
			for _, endpoint := range []string{name, name + "-read"} {
				for i := range 3 {
					if a := get(t, c, at(endpoint, "/")); a.StatusCode != 200 || a.body != body {
						t.Errorf("%s, %s, request %d: status %d %q: want %q", version, endpoint, i, a.StatusCode, a.body, body)
					}
				}
			}
		}
	}
}

func TestAnswerThatLastsUntilTheEndIsBrokenByAReset(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{})
	arrived := make(chan struct{})
	service := serveTCP(t, func(c *net.TCPConn) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhalf")
		select {
		case <-arrived: // or the reset would overtake it
		case <-time.After(settle):
		}
		_ = c.SetLinger(0)
	})
	startAgent(t, n, agentOptions{}, offer{Endpoint: "e", Addr: service})
	c := connect(t, n.proxy)
	mustWrite(t, c, "GET / HTTP/1.1\r\nHost: e.piko.test\r\nConnection: close\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	mustRead(t, resp.Body, "half")
	close(arrived)
	if b, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("a clean end after half and %q: want an error", b)
	}
}

func TestAnswerThatComesBeforeTheBodyIsRead(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{})
	early := "HTTP/1.1 413 Content Too Large\r\nContent-Length: 8\r\nConnection: close\r\n\r\ntoo much"
	service := serveTCP(t, func(c *net.TCPConn) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
			return
		}
		_, _ = io.WriteString(c, early)
		_ = c.CloseWrite()
		// A service that closes at once resets the connection, and its answer may be lost with any proxy, or none.
		_ = c.SetReadDeadline(time.Now().Add(settle))
		_, _ = io.Copy(io.Discard, c)
	})
	startAgent(t, n, agentOptions{}, offer{Endpoint: "e", Addr: service},
		offer{Endpoint: "read", Addr: service, More: "access_log = true"})
	upload := strings.Repeat("u", 20<<20)
	file := writeFile(t, "upload", upload)
	for _, endpoint := range []string{"e", "read"} {
		out, errs, _ := curl(t, "--http1.1", "-H", "Expect:", "-H", "x-piko-endpoint: "+endpoint, "-T", file,
			"-w", " %{http_code}", "http://"+n.proxy+"/")
		// Whether the upload then counts as failed is curl's business; that the answer arrives is ours.
		if out != "too much 413" {
			t.Errorf("%s: %q %s: want the service's early answer", endpoint, out, errs)
		}
		// For HTTP/2, curl 7.88 loses an early answer even without a proxy, so another client asks.
		a := do(t, n.client2(t), request(t, http.MethodPost, at(endpoint, "/"), strings.NewReader(upload)))
		if a.StatusCode != http.StatusRequestEntityTooLarge || a.body != "too much" {
			t.Errorf("%s, HTTP/2: status %d %s: want the service's early answer", endpoint, a.StatusCode, a.body)
		}
	}
}

func TestAThousandRequestsAtOnce(t *testing.T) {
	parallel(t)
	const count = 1000
	var inside atomic.Int32
	all := make(chan struct{}, count)
	n := oneService(t, nodeOptions{}, func(w http.ResponseWriter, r *http.Request) {
		if inside.Add(1)%count == 0 {
			for range count {
				all <- struct{}{}
			}
		}
		select {
		case <-all:
			reply(w, "together")
		case <-r.Context().Done():
		}
	})
	for version, c := range n.versions(t) {
		errs := load(t, count, count, func() error {
			a, err := try(c, request(t, http.MethodGet, at("e", "/"), nil))
			if err == nil && a.body != "together" {
				err = fmt.Errorf("status %d: %s", a.StatusCode, a.body)
			}
			return err
		})
		if len(errs) > 0 {
			t.Errorf("%s: %d of 1000 requests that were in flight together failed: %v", version, len(errs), errs[0])
		}
	}
}

func TestAgentThatIsBusyPassesRequestsOn(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{Proxy: `endpoint_wait = "0s"`})
	began, release := make(chan struct{}, 2), make(chan struct{})
	service := serve(t, func(w http.ResponseWriter, r *http.Request) {
		began <- struct{}{}
		select {
		case <-release:
			reply(w, "busy one")
		case <-r.Context().Done():
		}
	})
	startAgent(t, n, agentOptions{}, offer{Endpoint: "e", Addr: service, More: "max_in_flight = 1"})
	c := n.client(t)
	first := make(chan answer, 1)
	go func() {
		a, err := try(c, request(t, http.MethodGet, at("e", "/"), nil))
		if err != nil {
			t.Errorf("first request: %v", err)
		}
		first <- a
	}()
	wait(t, "the first request is being served", settle, began)
	a := get(t, c, at("e", "/"))
	if a.StatusCode != 502 && a.StatusCode != 503 || !errorCode.MatchString(a.Header.Get("Piko-Error")) {
		t.Errorf("a request more than the agent takes: status %d %s: want it refused by us", a.StatusCode, a.body)
	}
	startAgent(t, n, agentOptions{}, offer{Endpoint: "e", Addr: serve(t, say("idle one"))})
	n.awaitEndpoint(t, "e", 2)
	for range 20 {
		if a := get(t, c, at("e", "/")); a.body != "idle one" {
			t.Errorf("status %d %s: want the agent that is idle to answer", a.StatusCode, a.body)
		}
	}
	close(release)
	if a := wait(t, "the first request ends", settle, first); a.body != "busy one" {
		t.Errorf("first request: status %d %s", a.StatusCode, a.body)
	}
}

func TestServiceThatIsUnwellIsNotOffered(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{})
	var sick atomic.Bool
	service := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/healthz" && sick.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	startAgent(t, n, agentOptions{}, offer{Endpoint: "e", Addr: service, More: "[listeners.health]\ntype = \"http\"\n" +
		"path = \"/healthz\"\ninterval = \"100ms\"\ntimeout = \"1s\"\nunhealthy_after = 2\nhealthy_after = 2"})
	sick.Store(true)
	n.awaitEndpoint(t, "e", 0)
	sick.Store(false)
	n.awaitEndpoint(t, "e", 1)
}

func TestStreamsGoOnWhilePikodDrains(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{Top: `drain_timeout = "15s"`})
	startAgent(t, n, agentOptions{}, offer{Endpoint: "tcp", Addr: serveTCP(t, echo), Protocol: "tcp"},
		offer{Endpoint: "e", Addr: serve(t, echoWebSocket)})
	address, _ := startForward(t, n, "tcp")
	finishes, stays := connect(t, address), connect(t, address)
	for _, c := range []*net.TCPConn{finishes, stays} {
		mustWrite(t, c, "before")
		mustRead(t, c, "before")
	}
	n.signal(t, 15)
	await(t, "pikod takes no new connection", settle, func() error {
		c, err := net.Dial("tcp", n.proxy)
		if err != nil {
			return nil
		}
		_ = c.Close()
		return fmt.Errorf("it did")
	})
	mustWrite(t, finishes, "after")
	mustRead(t, finishes, "after")
	if err := finishes.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(finishes); err != nil || len(b) > 0 {
		t.Errorf("a stream that ends by itself: %q, %v: want a clean end", b, err)
	}
	if _, err := io.ReadAll(stays); !isReset(err) {
		t.Errorf("a stream that outlives the drain: %v: want a reset, not a clean end", err)
	}
	n.exit(t, settle)
}

func TestReadinessGoesOffBeforeTheDrainBegins(t *testing.T) {
	t.Parallel()
	n := oneService(t, nodeOptions{Top: `drain_notice = "15s"`}, say("ok"))
	n.signal(t, 15)
	await(t, "pikod says it is not ready", bound(time.Second), func() error {
		status, _, err := fetch("http://" + n.admin + "/ready")
		if err == nil && status != http.StatusServiceUnavailable {
			err = fmt.Errorf("status %d", status)
		}
		return err
	})
	// The balancer has yet to notice, so what still comes is still served.
	if a := get(t, n.client(t), at("e", "/")); a.body != "ok" {
		t.Errorf("a new request during the notice: status %d %s: want it served", a.StatusCode, a.body)
	}
	if code := n.exit(t, settle); code != 0 {
		t.Errorf("pikod exits %d: want 0", code)
	}
}

func TestSessionsOverTheLimitAreToldToTryLater(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{Upstream: "max_sessions = 1"})
	service := serve(t, say("ok"))
	first := startAgent(t, n, agentOptions{}, offer{Endpoint: "first", Addr: service})
	second := launchAgent(t, n, agentOptions{}, offer{Endpoint: "second", Addr: service})
	await(t, "the second agent says why it waits", settle, func() error { return contains(second.output(t), "503") })
	first.signal(t, 15)
	first.exit(t, settle)
	n.awaitEndpoint(t, "second", 1)
}

func TestAddressesOfTheServerInEveryForm(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{})
	service := serve(t, say("ok"))
	// A balancer may keep pikod under a path of its own.
	prefixed := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, "/behind/piko/v2/tunnel") {
			http.NotFound(w, r)
			return
		}
		out, err := net.Dial("tcp", n.upstream)
		if err != nil {
			return
		}
		defer func() { _ = out.Close() }()
		in, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer func() { _ = in.Close() }()
		r.URL.Path = strings.TrimPrefix(r.URL.Path, "/behind")
		r.RequestURI = ""
		if r.Write(out) != nil {
			return
		}
		ctx, cancel := context.WithCancel(context.WithoutCancel(r.Context()))
		go func() {
			defer cancel()
			_, _ = io.Copy(out, rw)
		}()
		go func() {
			defer cancel()
			_, _ = io.Copy(in, out)
		}()
		<-ctx.Done()
	})
	for i, url := range []string{"http://" + n.upstream, "http://" + n.upstream + "/", "ws://" + n.upstream,
		"http://" + prefixed + "/behind", "http://" + prefixed + "/behind/"} {
		endpoint := fmt.Sprint("e", i)
		startAgent(t, n, agentOptions{URL: url}, offer{Endpoint: endpoint, Addr: service})
		if a := get(t, n.client(t), at(endpoint, "/")); a.body != "ok" {
			t.Errorf("%s: status %d %s", url, a.StatusCode, a.body)
		}
	}
}

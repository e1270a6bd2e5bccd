package agent

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/tunnel"
)

// proxied is a listener that must read requests.
func proxied(addr string) config.Listener {
	l := listenerFor("http", "e", addr)
	l.HostHeader = "service.test"
	return l
}

func TestHostHeaderIsRewrittenAndNothingElse(t *testing.T) {
	s := httpService(t, func(w http.ResponseWriter, r *http.Request) {
		echoRequest(w, r)
		for _, name := range []string{"Forwarded", "X-Forwarded-Host", "X-Forwarded-Proto", "User-Agent", "Accept-Encoding"} {
			fmt.Fprintf(w, " %s=%q", name, r.Header[name])
		}
	})
	h := start(t, nil, proxied(s.URL))
	st := h.open(tunnel.Header{Endpoint: "e", Protocol: tunnel.ProtocolHTTP})
	const request = "GET //a/%2e%2E/b?q=%zz;x&y HTTP/1.1\r\nHost: client.test\r\nX-Forwarded-For: 192.0.2.1, 192.0.2.2\r\n" +
		"X-Forwarded-Proto: https\r\nForwarded: for=192.0.2.1\r\nConnection: close\r\n\r\n"
	if _, err := io.WriteString(st, request); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(st), nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	const want = `GET //a/%2e%2E/b?q=%zz;x&y host=service.test xff=["192.0.2.1, 192.0.2.2"] Forwarded=["for=192.0.2.1"] ` +
		`X-Forwarded-Host=[] X-Forwarded-Proto=["https"] User-Agent=[] Accept-Encoding=[]`
	if string(b) != want {
		t.Errorf("service sees\n%s\nwant\n%s", b, want)
	}
}

func TestProxiedRequestsShareConnections(t *testing.T) {
	conns := make(chan struct{}, 100)
	s := httptest.NewUnstartedServer(http.HandlerFunc(echoRequest))
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			conns <- struct{}{}
		}
	}
	s.Start()
	t.Cleanup(s.Close)
	h := start(t, nil, proxied(s.URL))
	for range 10 {
		c := h.client("e", tunnel.ProtocolHTTP) // a stream of its own
		if status, _ := h.get(c, "http://x/"); status != http.StatusOK {
			t.Fatalf("status is %d", status)
		}
		c.CloseIdleConnections()
	}
	if n := len(conns); n > 2 { // one for the probe before the first stream was accepted
		t.Errorf("the service sees %d connections", n)
	}
}

func TestServiceThatDiesMidBodyBreaksTheAnswer(t *testing.T) {
	for name, head := range map[string]string{
		"length":  "Content-Length: 1000\r\n\r\npart",
		"chunked": "Transfer-Encoding: chunked\r\n\r\n4\r\npart\r\n",
	} {
		for _, host := range []string{"", "service.test"} {
			t.Run(name+" "+host, func(t *testing.T) {
				address := tcpService(t, func(c *net.TCPConn) {
					_, _ = http.ReadRequest(bufio.NewReader(c))
					_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n"+head)
					_ = c.Close()
				})
				l := listenerFor("http", "e", address)
				l.HostHeader = host
				h := start(t, nil, l)
				res, err := h.client("e", tunnel.ProtocolHTTP).Get("http://x/")
				if err != nil {
					t.Fatal(err)
				}
				b, err := io.ReadAll(res.Body)
				_ = res.Body.Close()
				if err == nil || string(b) != "part" {
					t.Errorf("client reads %q, %v", b, err)
				}
			})
		}
	}
}

func TestServiceThatGivesNoAnswerBreaksTheStream(t *testing.T) {
	address := tcpService(t, func(c *net.TCPConn) {
		_, _ = http.ReadRequest(bufio.NewReader(c))
		_ = c.Close()
	})
	h := start(t, nil, proxied(address))
	if res, err := h.client("e", tunnel.ProtocolHTTP).Post("http://x/", "text/plain", strings.NewReader("once")); err == nil {
		_ = res.Body.Close()
		t.Errorf("the agent made up the answer %s", res.Status)
	}
}

func TestFullHTTPListenerRefusesStreamsAndAnswersRequests(t *testing.T) {
	arrived, release := make(chan struct{}, 2), make(chan struct{})
	s := httpService(t, func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			arrived <- struct{}{}
			select {
			case <-release:
			case <-r.Context().Done(): // the test has failed
			}
		}
	})
	l := listenerFor("http", "e", s.URL)
	l.MaxInFlight = 1
	h := start(t, nil, l)
	second := h.client("e", tunnel.ProtocolHTTP)
	if status, _ := h.get(second, "http://x/"); status != http.StatusOK { // its stream is open from here on
		t.Fatalf("status is %d", status)
	}
	eventually(t, "the end of that request", func() bool { return h.agent.current.Load().listeners[0].inFlight.Load() == 0 })
	first := h.client("e", tunnel.ProtocolHTTP)
	done := make(chan error, 1)
	go func() {
		res, err := first.Get("http://x/slow")
		if err == nil {
			err = res.Body.Close()
		}
		done <- err
	}()
	select {
	case <-arrived:
	case err := <-done:
		t.Fatalf("slow request ends with %v", err)
	}
	if code := h.refused(tunnel.Header{Endpoint: "e", Protocol: tunnel.ProtocolHTTP}); code != tunnel.CodeOverloaded {
		t.Errorf("stream is answered with %q", code)
	}
	if status, _ := h.get(second, "http://x/"); status != http.StatusServiceUnavailable {
		t.Errorf("request on an open stream is answered with %d", status)
	}
	close(release)
	if err := <-done; err != nil {
		t.Error(err)
	}
	eventually(t, "room", func() bool { return h.agent.current.Load().listeners[0].inFlight.Load() == 0 })
	if status, _ := h.get(second, "http://x/"); status != http.StatusOK {
		t.Errorf("status is %d", status)
	}
}

func TestUpgradeEndsAndBreaksAsTheServiceDoes(t *testing.T) {
	for name, c := range map[string]struct {
		rest func(*net.TCPConn, *bufio.Reader)
		want string // empty: a break
	}{
		"ends": {func(c *net.TCPConn, r *bufio.Reader) {
			b, _ := io.ReadAll(r)
			_, _ = c.Write([]byte(strings.ToUpper(string(b))))
			_ = c.Close()
		}, "HELLO"},
		"breaks": {func(c *net.TCPConn, _ *bufio.Reader) {
			_ = c.SetLinger(0)
			_ = c.Close()
		}, ""},
	} {
		for _, host := range []string{"", "service.test"} {
			t.Run(name+" "+host, func(t *testing.T) {
				address := tcpService(t, func(conn *net.TCPConn) {
					r := bufio.NewReader(conn)
					if _, err := http.ReadRequest(r); err != nil {
						_ = conn.Close() // the probe before the stream was accepted
						return
					}
					_, _ = io.WriteString(conn,
						"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: odd\r\n\r\n")
					c.rest(conn, r)
				})
				l := listenerFor("http", "e", address)
				l.HostHeader = host
				h := start(t, nil, l)
				st := h.open(tunnel.Header{Endpoint: "e", Protocol: tunnel.ProtocolHTTP})
				if _, err := io.WriteString(st, "GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: odd\r\n\r\nhello"); err != nil {
					t.Fatal(err)
				}
				r := bufio.NewReader(st)
				res, err := http.ReadResponse(r, nil)
				if err != nil && c.want == "" {
					return // broken so soon that not even the head came through
				}
				if err != nil || res.StatusCode != http.StatusSwitchingProtocols {
					t.Fatalf("answer is %v, %v", res, err)
				}
				_ = st.CloseWrite()
				b, err := io.ReadAll(r)
				if string(b) != c.want || (err == nil) != (c.want != "") {
					t.Errorf("client reads %q, %v", b, err)
				}
			})
		}
	}
}

func TestStreamsOfHTTP2KeepTrailersAndTalkBothWays(t *testing.T) {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "Grpc-Status")
		w.WriteHeader(http.StatusOK)
		flush := http.NewResponseController(w)
		_ = flush.Flush()
		lines := bufio.NewScanner(r.Body)
		for lines.Scan() {
			fmt.Fprintf(w, "%s %s\n", r.Proto, lines.Text())
			_ = flush.Flush()
		}
		w.Header().Set("Grpc-Status", r.Trailer.Get("Last"))
	})
	s := httptest.NewUnstartedServer(handler)
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(s.Close)
	for _, host := range []string{"", "service.test"} {
		t.Run("host_header "+host, func(t *testing.T) {
			l := listenerFor("http", "e", s.URL)
			l.HostHeader = host
			h := start(t, nil, l)
			body, w := io.Pipe()
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://x/", body)
			if err != nil {
				t.Fatal(err)
			}
			req.Trailer = http.Header{"Last": nil}
			res, err := h.client("e", tunnel.ProtocolH2).Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = res.Body.Close() }()
			lines := bufio.NewReader(res.Body)
			for i := range 3 { // each line is answered before the next is sent
				fmt.Fprintf(w, "line %d\n", i)
				if got, err := lines.ReadString('\n'); got != fmt.Sprintf("HTTP/2.0 line %d\n", i) {
					t.Fatalf("answer is %q, %v", got, err)
				}
			}
			req.Trailer.Set("Last", "seven")
			_ = w.Close()
			if _, err := lines.ReadString('\n'); err != io.EOF {
				t.Errorf("end is %v", err)
			}
			if got := res.Trailer.Get("Grpc-Status"); got != "seven" {
				t.Errorf("trailer is %q", got)
			}
		})
	}
}

func TestUploadIsAnsweredBeforeItsEnd(t *testing.T) {
	s := httpService(t, func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		_ = rc.EnableFullDuplex()
		_, _ = io.CopyN(w, r.Body, 4)
		_ = rc.Flush()
		_, _ = io.Copy(w, r.Body)
	})
	h := start(t, nil, proxied(s.URL))
	body, w := io.Pipe()
	go func() { _, _ = io.WriteString(w, "part") }()
	res, err := h.client("e", tunnel.ProtocolHTTP).Post("http://x/", "text/plain", body)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	first := make([]byte, 4)
	if _, err := io.ReadFull(res.Body, first); err != nil || string(first) != "part" {
		t.Fatalf("answer begins %q, %v", first, err)
	}
	go func() {
		_, _ = io.WriteString(w, "rest")
		_ = w.Close()
	}()
	if b, err := io.ReadAll(res.Body); err != nil || string(b) != "rest" {
		t.Errorf("answer goes on %q, %v", b, err)
	}
}

// A service may answer before the body has come. What the client sends then is still the body, even if it looks like a
// request: on a stream that went on, its answer would go to whoever comes next.
func TestBodyAfterTheAnswerIsNoRequest(t *testing.T) {
	var paths sync.Map
	s := httpService(t, func(w http.ResponseWriter, r *http.Request) {
		paths.Store(r.URL.Path, true)
		if r.URL.Path == "/early" {
			// Or net/http would wait for the body, or read on behind it.
			_ = http.NewResponseController(w).EnableFullDuplex()
			w.Header().Set("Connection", "close")
		}
		_, _ = io.WriteString(w, "answer to "+r.URL.Path)
	})
	h := start(t, nil, proxied(s.URL))
	const hidden = "GET /hidden HTTP/1.1\r\nHost: x\r\n\r\n"
	for name, body := range map[string]struct{ head, rest string }{
		"chunked": {"Transfer-Encoding: chunked\r\n\r\n", fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(hidden), hidden)},
		"length":  {fmt.Sprintf("Content-Length: %d\r\n\r\n", len(hidden)), hidden},
	} {
		t.Run(name, func(t *testing.T) {
			st := h.open(tunnel.Header{Endpoint: "e", Protocol: tunnel.ProtocolHTTP})
			if _, err := io.WriteString(st, "POST /early HTTP/1.1\r\nHost: x\r\n"+body.head); err != nil {
				t.Fatal(err)
			}
			r := bufio.NewReader(st)
			res, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(res.Body); err != nil || string(b) != "answer to /early" || !res.Close {
				t.Errorf("answer %q, %v, says close: %t; want it whole, and the last of its stream", b, err, res.Close)
			}
			_, _ = io.WriteString(st, body.rest) // the stream may have ended already
			if b, err := io.ReadAll(r); len(b) > 0 {
				t.Errorf("after the answer come %q, %v; want nothing", b, err)
			}
			if _, seen := paths.Load("/hidden"); seen {
				t.Error("the service saw a request that was part of a body")
			}
		})
	}
}

func TestRedirectsAndProxiesOfTheEnvironmentAreNotFollowed(t *testing.T) {
	trap := httpService(t, func(http.ResponseWriter, *http.Request) { t.Error("the agent went where it should not") })
	for _, name := range []string{"HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"} {
		t.Setenv(name, trap.URL)
	}
	t.Setenv("NO_PROXY", "127.0.0.0/8") // for the node; the service below goes by a name
	s := httpService(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, trap.URL, http.StatusFound)
	})
	_, port, _ := net.SplitHostPort(strings.TrimPrefix(s.URL, "http://"))
	h := start(t, nil, proxied("localhost:"+port))
	if status, _ := h.get(h.client("e", tunnel.ProtocolHTTP), "http://x/"); status != http.StatusFound {
		t.Errorf("status is %d", status)
	}
}

func TestAccessLogHasALineForEachRequestAndConnection(t *testing.T) {
	s := httpService(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/break" {
			panic(http.ErrAbortHandler)
		}
		w.WriteHeader(http.StatusTeapot)
		_, _ = io.WriteString(w, "tea")
	})
	web, raw := listenerFor("http", "e", s.URL), listenerFor("tcp", "raw", tcpService(t, shout))
	web.AccessLog, raw.AccessLog = true, true
	h := start(t, nil, web, raw)
	c := h.client("e", tunnel.ProtocolHTTP)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://client.test/a%20path?secret=1", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Forwarded-For", "192.0.2.9, 192.0.2.1")
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, res.Body) // a stream that is closed before may cut off what the line counts
	_ = res.Body.Close()
	if res, err := c.Get("http://client.test/break"); err == nil {
		_ = res.Body.Close()
		t.Error("a broken request has an answer")
	}
	ask(t, h.open(tunnel.Header{Endpoint: "raw", Client: "192.0.2.1:99"}), "four")
	for _, want := range []string{
		`bytes=3 client=192.0.2.1 duration=`,
		`host=client.test method=GET path="/a%20path" proto=HTTP/1.1`,
		`status=418`,
		`path=/break proto=HTTP/1.1`,
		`status=0`,
		`msg=connection client="192.0.2.1:99"`,
		`received_bytes=4 sent_bytes=4`,
	} {
		eventually(t, "log with "+want, func() bool { return strings.Contains(h.log.String(), want) })
	}
	if strings.Contains(h.log.String(), "secret") {
		t.Error("the log holds a query")
	}
}

func TestResponseHeadWithoutEndIsCutOff(t *testing.T) {
	address := tcpService(t, func(c *net.TCPConn) {
		defer func() { _ = c.Close() }()
		if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n")
		for i := 0; ; i++ {
			if _, err := fmt.Fprintf(c, "X-%d: %s\r\n", i, strings.Repeat("y", 1000)); err != nil {
				return
			}
		}
	})
	h := start(t, nil, proxied(address))
	if res, err := h.client("e", tunnel.ProtocolHTTP).Get("http://x/"); err == nil {
		_ = res.Body.Close()
		t.Errorf("answer is %s", res.Status)
	}
}

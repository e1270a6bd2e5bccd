package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"testing"
	"time"

	"github.com/pikoproxy/piko/internal/router"
	"github.com/pikoproxy/piko/internal/tunnel"
)

func TestRequestsAndAnswersPassUntouched(t *testing.T) {
	f := newFixture(t, nil)
	f.serveHTTP(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		h := w.Header()
		h["X-Two"] = []string{"a", "b"}
		h.Set("X-Saw", fmt.Sprint(r.Method, " ", r.RequestURI, " ", r.Host, " ", r.Header["X-Many"], r.ContentLength))
		h.Set("Content-Type", "x/y")
		h.Set("Piko-Error", "PIKO-E9999")
		w.WriteHeader(http.StatusTeapot)
		w.Write(append([]byte("echo "), body...))
	})
	for _, client := range map[string]*http.Client{"HTTP/1.1": f.client(), "HTTP/2": f.h2client()} {
		for _, size := range []int{0, 5, inlineLimit, inlineLimit + 1, 100 << 10} {
			body := strings.Repeat("x", size)
			req := f.request("PUT", "/a%2Fb//c?q=%zz;1&b=2&a", strings.NewReader(body))
			req.Header["X-Many"] = []string{"1", "2"}
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			got := readAll(t, resp)
			want := fmt.Sprintf("PUT /a%%2Fb//c?q=%%zz;1&b=2&a ep1.piko.test [1 2] %d", size)
			if resp.StatusCode != 418 || got != "echo "+body || resp.Header.Get("X-Saw") != want {
				t.Errorf("%s %d bytes: %d %q, want %q", resp.Proto, size, resp.StatusCode, resp.Header.Get("X-Saw"), want)
			}
			if resp.Header.Get("Content-Type") != "x/y" || len(resp.Header["X-Two"]) != 2 || resp.Header["Piko-Error"] != nil {
				t.Errorf("answer fields %v", resp.Header)
			}
		}
	}
}

func TestNothingIsAddedToAnAnswer(t *testing.T) {
	f := newFixture(t, nil)
	f.serveRaw(answer("HTTP/1.1 200\r\nContent-Length: 5\r\nX-A:  v\t\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n\r\n<html"))
	resp, body, err := f.raw("GET / HTTP/1.1\r\nHost: ep1.piko.test\r\n\r\n")
	if err != nil || body != "<html" || resp.Header.Get("X-A") != "v" || len(resp.Header) != 3 {
		t.Errorf("%v %q %v", resp, body, err)
	}
}

func TestStreamsAreReused(t *testing.T) {
	f := newFixture(t, nil)
	s := f.serveHTTP(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		switch r.URL.Path {
		case "/chunked":
			w.(http.Flusher).Flush()
			io.WriteString(w, "hi")
		case "/nothing":
			w.WriteHeader(204)
		case "/old":
			w.WriteHeader(304)
		default:
			io.WriteString(w, "hi")
		}
	})
	c := f.client()
	for i, path := range []string{"/", "/chunked", "/nothing", "/old", "/large"} {
		method, body := "GET", ""
		if path == "/large" {
			method, body = "POST", strings.Repeat("y", 1<<20)
		}
		for _, method := range []string{method, "HEAD"} {
			resp, err := c.Do(f.request(method, path, strings.NewReader(body)))
			if err != nil {
				t.Fatal(err)
			}
			readAll(t, resp)
		}
		if n := len(s.opened()); n != 1 {
			t.Fatalf("%d streams after %d kinds of request, want 1", n, i+1)
		}
	}
}

func TestLargeBodiesArriveWhole(t *testing.T) {
	f := newFixture(t, nil)
	f.serveHTTP(func(w http.ResponseWriter, r *http.Request) {
		h := sha256.New()
		if err := http.NewResponseController(w).EnableFullDuplex(); err != nil {
			t.Error(err)
		}
		if r.URL.Query().Has("length") {
			w.Header().Set("Content-Length", fmt.Sprint(r.ContentLength))
		}
		// While it is still being sent, the body comes back: both directions stream.
		io.Copy(io.MultiWriter(w, h), r.Body)
	})
	const size = 4 << 20
	data := make([]byte, size)
	rand.NewChaCha8([32]byte{1}).Read(data)
	want := sha256.Sum256(data)
	for name, client := range map[string]*http.Client{"HTTP/1.1": f.client(), "HTTP/2": f.h2client()} {
		for _, path := range []string{"/", "/?length"} {
			var body io.Reader = bytes.NewReader(data)
			if path == "/" {
				body = struct{ io.Reader }{body} // of unknown length: chunked
			}
			resp, err := client.Do(f.request("POST", path, body))
			if err != nil {
				t.Fatal(name, path, err)
			}
			h := sha256.New()
			n, err := io.Copy(h, resp.Body)
			resp.Body.Close()
			if err != nil || n != size || !bytes.Equal(h.Sum(nil), want[:]) {
				t.Errorf("%s %s: %d bytes back, %v", name, path, n, err)
			}
		}
	}
}

func TestTrailersPassBothWays(t *testing.T) {
	f := newFixture(t, nil)
	f.serveHTTP(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Trailer", "X-Sum, Content-Length, X-Piko-Endpoint")
		io.WriteString(w, "body")
		w.Header().Set("X-Sum", "saw "+r.Trailer.Get("X-Check")+r.Trailer.Get("X-Piko-Endpoint"))
		w.Header().Set(http.TrailerPrefix+"X-Late", "late")
		w.Header().Set("X-Piko-Endpoint", "ep2")
	})
	for name, client := range map[string]*http.Client{"HTTP/1.1": f.client(), "HTTP/2": f.h2client()} {
		req := f.request("POST", "/", struct{ io.Reader }{strings.NewReader("data")})
		req.Trailer = http.Header{"X-Check": {"1"}, "X-Piko-Endpoint": {"ep2"}}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if body := readAll(t, resp); body != "body" {
			t.Errorf("%s: body %q", name, body)
		}
		want := http.Header{"X-Sum": {"saw 1"}, "X-Late": {"late"}}
		if fmt.Sprint(resp.Trailer) != fmt.Sprint(want) {
			t.Errorf("%s: trailers %v, want %v", name, resp.Trailer, want)
		}
	}
}

func TestUnannouncedTrailerBehindAShortBody(t *testing.T) {
	f := newFixture(t, nil)
	f.serveRaw(answer("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\nX-Sum: 1\r\n\r\n"))
	for name, client := range map[string]*http.Client{"HTTP/1.1": f.client(), "HTTP/2": f.h2client()} {
		resp, err := client.Do(f.request("GET", "/", nil))
		if err != nil || readAll(t, resp) != "body" || resp.Trailer.Get("X-Sum") != "1" {
			t.Errorf("%s: %v %v", name, resp, err)
		}
	}
}

// Each event must arrive before the next one is sent.
func TestEventsAreFlushedAtOnce(t *testing.T) {
	f := newFixture(t, nil)
	next := make(chan struct{})
	f.serveHTTP(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 3 {
			w.(http.Flusher).Flush()
			select {
			case <-next:
			case <-time.After(patience):
			}
			fmt.Fprintf(w, "data: %d\n\n", i)
		}
	})
	for name, client := range map[string]*http.Client{"HTTP/1.1": f.client(), "HTTP/2": f.h2client()} {
		resp, err := client.Do(f.request("GET", "/", nil)) // returns with the head alone
		if err != nil {
			t.Fatal(name, err)
		}
		br := bufio.NewReader(resp.Body)
		for i := range 3 {
			next <- struct{}{}
			if line, err := br.ReadString('\n'); err != nil || line != fmt.Sprintf("data: %d\n", i) {
				t.Fatalf("%s: event %d: %q %v", name, i, line, err)
			}
			br.ReadString('\n')
		}
		resp.Body.Close()
	}
}

// Whatever way the end of a body is told, a piece of it is not held back.
func TestPiecesAreFlushedAtOnce(t *testing.T) {
	for name, head := range map[string]string{
		"length": "Content-Length: 9\r\n\r\n", "close": "\r\n", "chunked": "Transfer-Encoding: chunked\r\n\r\n9\r\n",
	} {
		f := newFixture(t, nil)
		next := make(chan struct{}, 1)
		f.serveRaw(func(c net.Conn, br *bufio.Reader) {
			readRequestHead(br)
			io.WriteString(c, "HTTP/1.1 200 OK\r\n"+head)
			for range 3 {
				<-next
				io.WriteString(c, "abc")
			}
		})
		c, br := f.dial()
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: ep1.piko.test\r\n\r\n")
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(name, err)
		}
		for i := range 3 {
			next <- struct{}{}
			piece := make([]byte, 3)
			if _, err := io.ReadFull(resp.Body, piece); err != nil || string(piece) != "abc" {
				t.Fatalf("%s: piece %d: %q %v", name, i, piece, err)
			}
		}
		resp.Body.Close()
		c.Close()
	}
}

func TestInformationalAnswersPass(t *testing.T) {
	f := newFixture(t, nil)
	f.serveRaw(answer("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n" +
		"HTTP/1.1 103 Early Hints\r\nLink: </b>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"))
	for name, client := range map[string]*http.Client{"HTTP/1.1": f.client(), "HTTP/2": f.h2client()} {
		var hints []string
		trace := &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			hints = append(hints, fmt.Sprint(code, h["Link"]))
			return nil
		}}
		req := f.request("GET", "/", nil)
		resp, err := client.Do(req.WithContext(httptrace.WithClientTrace(req.Context(), trace)))
		if err != nil {
			t.Fatal(err)
		}
		readAll(t, resp)
		if fmt.Sprint(hints) != "[103 [</a>] 103 [</b>]]" || resp.Header["Link"] != nil {
			t.Errorf("%s: hints %v, fields %v", name, hints, resp.Header)
		}
	}
}

func TestContinueIsAskedOfTheService(t *testing.T) {
	f := newFixture(t, nil)
	f.serveRaw(func(c net.Conn, br *bufio.Reader) {
		for {
			head, err := readRequestHead(br)
			if err != nil {
				return
			}
			if strings.Contains(head, "\r\nExpect: 100-continue\r\n") == strings.HasPrefix(head, "POST /h2") {
				io.WriteString(c, "HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")
				continue
			}
			if strings.HasPrefix(head, "POST /refuse") {
				io.WriteString(c, "HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n")
				return
			}
			if strings.HasPrefix(head, "POST /ask") {
				io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n")
			}
			io.CopyN(io.Discard, br, 5)
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}
	})
	for path, want := range map[string]string{
		"/ask":    "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n",
		"/silent": "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n",
		"/refuse": "HTTP/1.1 413 Request Entity Too Large\r\n",
	} {
		patiently(t, func(time.Duration) error { // a service that takes longer than continueWait is taken for silent
			c, br := f.dial()
			fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: ep1.piko.test\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n", path)
			var got string
			for got != want {
				line, err := br.ReadString('\n')
				if got += line; err != nil || !strings.HasPrefix(want, got) {
					return fmt.Errorf("%s: %q %w, want %q", path, got, err, want)
				}
				if got == "HTTP/1.1 100 Continue\r\n\r\n" {
					io.WriteString(c, "hello")
				}
			}
			return nil
		})
	}
	// net/http keeps the expectation of an HTTP/2 client to itself, and says 100 when the body is read.
	req := f.request("POST", "/h2", strings.NewReader("hello"))
	req.Header.Set("Expect", "100-continue")
	resp, err := f.h2client().Do(req)
	if err != nil || resp.StatusCode != 200 {
		t.Fatal("HTTP/2:", resp, err)
	}
	readAll(t, resp)
}

func TestHeadAndEmptyAnswersHaveNoBody(t *testing.T) {
	f := newFixture(t, nil)
	f.serveRaw(func(c net.Conn, br *bufio.Reader) {
		for {
			head, err := readRequestHead(br)
			if err != nil {
				return
			}
			status := "200 OK\r\nContent-Length: 500\r\n\r\n"
			if strings.HasPrefix(head, "GET /304") {
				status = "304 Not Modified\r\nContent-Length: 500\r\nETag: \"x\"\r\n\r\n"
			} else if strings.HasPrefix(head, "GET /204") {
				status = "204 No Content\r\n\r\n"
			}
			io.WriteString(c, "HTTP/1.1 "+status)
		}
	})
	c, br := f.dial()
	for _, r := range []struct{ method, path string }{{"HEAD", "/"}, {"GET", "/204"}, {"GET", "/304"}, {"HEAD", "/"}} {
		fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: ep1.piko.test\r\n\r\n", r.method, r.path)
		resp, err := http.ReadResponse(br, &http.Request{Method: r.method})
		if err != nil {
			t.Fatal(r, err)
		}
		if n, _ := io.Copy(io.Discard, resp.Body); n != 0 || (r.method == "HEAD" && resp.ContentLength != 500) {
			t.Errorf("%s %s: %d bytes, length %d", r.method, r.path, n, resp.ContentLength)
		}
	}
}

func TestPipelinedRequestsAreAnsweredInOrder(t *testing.T) {
	f := newFixture(t, nil)
	f.serveHTTP(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.URL.Path) })
	c, br := f.dial()
	var all strings.Builder
	for i := range 20 {
		fmt.Fprintf(&all, "GET /%d HTTP/1.1\r\nHost: ep1.piko.test\r\n\r\n", i)
	}
	io.WriteString(c, all.String())
	for i := range 20 {
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(i, err)
		}
		if body := readAll(t, resp); body != fmt.Sprint("/", i) {
			t.Fatalf("answer %d is %q", i, body)
		}
	}
}

func TestCloseDelimitedBodyEndsWithTheStream(t *testing.T) {
	f := newFixture(t, nil)
	s := f.serveRaw(answer("HTTP/1.1 200 OK\r\n\r\nall of it"))
	for range 2 {
		_, body, err := f.raw("GET / HTTP/1.1\r\nHost: ep1.piko.test\r\n\r\n")
		if err != nil || body != "all of it" {
			t.Errorf("%q %v", body, err)
		}
	}
	if n := len(s.opened()); n != 2 {
		t.Errorf("%d streams, want one for each request", n)
	}
}

// A body that breaks off must not look complete, in whatever way its length is told.
func TestBrokenAnswerIsSeenAsBroken(t *testing.T) {
	for name, text := range map[string]string{
		"length":  "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
		"chunked": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
		"chunk":   "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n40\r\nhalf",
		"trailer": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\nX-A: b\r\n",
	} {
		f := newFixture(t, nil)
		f.serveRaw(func(c net.Conn, br *bufio.Reader) {
			if _, err := readRequestHead(br); err == nil {
				io.WriteString(c, text)
			}
		})
		for proto, client := range map[string]*http.Client{"HTTP/1.1": f.client(), "HTTP/2": f.h2client()} {
			resp, err := client.Do(f.request("GET", "/", nil))
			if err != nil {
				t.Fatalf("%s %s: no answer at all: %v", name, proto, err)
			}
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err == nil || string(body) != "half" {
				t.Errorf("%s %s: %q looks complete", name, proto, body)
			}
		}
		c, br := f.dial()
		io.WriteString(c, "GET / HTTP/1.0\r\nHost: ep1.piko.test\r\n\r\n")
		if rest, err := io.ReadAll(br); err == nil && name != "length" {
			t.Errorf("%s HTTP/1.0: %q looks complete", name, rest)
		}
	}
}

func TestClientThatLeavesCancelsTheRequest(t *testing.T) {
	f := newFixture(t, nil)
	started, cancelled := make(chan struct{}, 1), make(chan struct{}, 1)
	f.serveHTTP(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/body" {
			w.(http.Flusher).Flush()
		}
		started <- struct{}{}
		<-r.Context().Done()
		cancelled <- struct{}{}
	})
	for name, client := range map[string]*http.Client{"HTTP/1.1": f.client(), "HTTP/2": f.h2client()} {
		for _, path := range []string{"/", "/body"} {
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() {
				resp, err := client.Do(f.request("GET", path, nil).WithContext(ctx))
				if err == nil {
					_, err = io.ReadAll(resp.Body)
					resp.Body.Close()
				}
				done <- err
			}()
			await(t, started, name+" request at the service")
			cancel()
			await(t, cancelled, name+path+" cancellation at the service")
			await(t, done, "end of the client")
		}
	}
}

func TestClientThatBreaksOffItsBodyBreaksTheRequest(t *testing.T) {
	f := newFixture(t, nil)
	bodies := make(chan error, 1)
	f.serveHTTP(func(w http.ResponseWriter, r *http.Request) {
		_, err := io.Copy(io.Discard, r.Body)
		bodies <- err
	})
	for _, head := range []string{"Content-Length: 50000\r\n\r\nhalf", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"} {
		c, _ := f.dial()
		io.WriteString(c, "POST / HTTP/1.1\r\nHost: ep1.piko.test\r\n"+head)
		c.(*net.TCPConn).CloseWrite()
		if err := await(t, bodies, "end of the body at the service"); err == nil {
			t.Errorf("%q: the service takes half a body for a whole one", head)
		}
	}
}

// Bytes behind a malformed body must never be taken for a request.
func TestMalformedRequestBodyClosesTheConnection(t *testing.T) {
	f := newFixture(t, nil)
	paths := make(chan string, 10)
	f.serveHTTP(func(w http.ResponseWriter, r *http.Request) {
		_, err := io.Copy(io.Discard, r.Body)
		paths <- fmt.Sprint(r.URL.Path, err == nil)
	})
	for _, body := range []string{"zz\r\nhello\r\n0\r\n\r\n", "5\r\nhello0\r\n\r\n", "5\r\nhello\r\n-0\r\n\r\n"} {
		c, br := f.dial()
		io.WriteString(c, "POST /t HTTP/1.1\r\nHost: ep1.piko.test\r\nTransfer-Encoding: chunked\r\n\r\n"+body+
			"GET /smuggled HTTP/1.1\r\nHost: ep1.piko.test\r\n\r\n")
		all, _ := io.ReadAll(br)
		if n := strings.Count(string(all), "HTTP/1.1 "); n > 1 || (n == 1 && !strings.HasPrefix(string(all), "HTTP/1.1 400 ")) {
			t.Errorf("%q: answers %q", body, all)
		}
		for len(paths) > 0 {
			if p := <-paths; p != "/tfalse" {
				t.Errorf("%q: the service saw %s", body, p)
			}
		}
	}
}

// A service may answer an upload it does not want before it was sent.
func TestEarlyAnswerReachesTheClientAndEndsTheConnection(t *testing.T) {
	f := newFixture(t, nil)
	f.serveRaw(func(c net.Conn, br *bufio.Reader) {
		if _, err := readRequestHead(br); err == nil {
			io.WriteString(c, "HTTP/1.1 413 Too Much\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nmuch\r\n0\r\n\r\n")
			io.CopyN(io.Discard, br, 1<<10)
		}
	})
	for _, head := range []string{"Content-Length: 10000000", "Transfer-Encoding: chunked"} {
		c, br := f.dial()
		fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: ep1.piko.test\r\n%s\r\n\r\n", head)
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(head, err)
		}
		if body := readAll(t, resp); resp.StatusCode != 413 || body != "much" || !resp.Close {
			t.Errorf("%s: %d %q close=%v", head, resp.StatusCode, body, resp.Close)
		}
		if _, err := br.ReadByte(); err != io.EOF {
			t.Errorf("%s: after the answer: %v, want the end", head, err)
		}
	}
}

func TestErrorAnswers(t *testing.T) {
	f := newFixture(t, nil)
	hasty := newFixture(t, func(o *Options) { o.ResponseHeaderTimeout = 50 * time.Millisecond })
	add := func(endpoint string, s *tcpSession) {
		f.router.Add(endpoint, s, router.UpstreamOptions{Weight: 1, Protocol: tunnel.ProtocolHTTP})
	}
	refusing := func(code string) *tcpSession {
		return &tcpSession{id: code, refusal: &tunnel.RefusedError{Code: code}, closing: make(chan struct{})}
	}
	add("gone", &tcpSession{id: "gone", addr: "127.0.0.1:9", closing: make(chan struct{})}) // nobody else can listen there
	add("down", refusing(tunnel.CodeServiceUnreachable))
	add("full", refusing(tunnel.CodeOverloaded))
	release := make(chan struct{})
	slow := hasty.serveRaw(func(c net.Conn, br *bufio.Reader) {
		readRequestHead(br)
		<-release
	})
	defer close(release)
	hasty.router.Add("slow", slow, router.UpstreamOptions{Weight: 1, Protocol: tunnel.ProtocolHTTP})
	add("mute", f.serveRaw(func(c net.Conn, br *bufio.Reader) { readRequestHead(br) }))
	for _, c := range []struct {
		host   string
		status int
		code   string
		text   string
	}{
		{"127.0.0.1", 400, "PIKO-E1001", "missing endpoint id"},
		{"localhost:8000", 400, "PIKO-E1001", "missing endpoint id"},
		{"nobody.piko.test", 502, "PIKO-E3001", "no available upstreams"},
		{"gone.piko.test", 502, "PIKO-E4001", "upstream unreachable"},
		{"down.piko.test", 502, "PIKO-E4002", "upstream unreachable"},
		{"full.piko.test", 503, "PIKO-E3002", "overloaded"},
		{"mute.piko.test", 502, "PIKO-E4003", "upstream unreachable"},
		{"slow.piko.test", 504, "PIKO-E4004", "upstream timeout"},
	} {
		f := f
		if c.status == 504 {
			f = hasty
		}
		resp, body, err := f.raw("POST / HTTP/1.1\r\nHost: " + c.host + "\r\nContent-Length: 0\r\n\r\n")
		if err != nil {
			t.Fatal(c.host, err)
		}
		var got struct{ Error, Code string }
		if err := json.Unmarshal([]byte(body), &got); err != nil {
			t.Fatalf("%s: %q: %v", c.host, body, err)
		}
		if resp.StatusCode != c.status || resp.Header.Get("Piko-Error") != c.code || got.Code != c.code || got.Error != c.text {
			t.Errorf("%s: %d %v %+v, want %d %s %q", c.host, resp.StatusCode, resp.Header, got, c.status, c.code, c.text)
		}
	}
}

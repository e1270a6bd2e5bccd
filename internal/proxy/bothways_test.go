package proxy

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/pikoproxy/piko/internal/logline"
)

// What a service may answer, by the X-Answer field of the request.
var answersOfServices = []string{
	"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-A: 1\r\nX-A: 2\r\nConnection: x-b\r\nX-B: gone\r\nKeep-Alive: 1\r\n\r\nok",
	"HTTP/1.1 200 fine\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n3;x=y\r\nabc\r\n0\r\nX-T: t\r\nX-U: u\r\nContent-Length: 1\r\n\r\n",
	"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\n\r\nto the end",
	"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
	"HTTP/1.1 204 No Content\r\nX-A: 1\r\n\r\n",
	"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\nEtag: x\r\n\r\n",
	"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
	"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nbroken",
	"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n",
	"HTTP/1.1 502 Bad\r\nPiko-Error: PIKO-E1001\r\nContent-Length: 1\r\n\r\nx",
	"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
	"HTTP/1.1 426 Upgrade Required\r\nConnection: upgrade\r\nUpgrade: h2c, x\r\nContent-Length: 1\r\n\r\nx",
	"HTTP/1.1 299 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + strings.Repeat("400\r\n"+strings.Repeat("a", 1024)+"\r\n", 20) + "0\r\n\r\n",
	"HTTP/1.1 200 OK\r\nContent-Length: 20000\r\n\r\n" + strings.Repeat("b", 20000),
	"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx",
	"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nConnection: close\r\n\r\nx",
	"not HTTP at all\r\n\r\n",
}

// side is a proxy that serves in one of the two ways, with what it has made of the requests.
type side struct {
	*fixture
	log bytes.Buffer

	mu   sync.Mutex
	seen []string // by the service
}

func newSide(t testing.TB, byNetHTTP bool) *side {
	s := &side{}
	s.fixture = newFixtureFor(t, byNetHTTP, func(o *Options) {
		o.MaxHeaderFields, o.AccessLog = 30, true
		o.Log = logrus.New()
		o.Log.SetOutput(&s.log)
		o.Log.SetFormatter(&logline.Formatter{JSON: true})
	})
	s.serveRaw(s.service)
	return s
}

func (s *side) service(c net.Conn, br *bufio.Reader) {
	for {
		head, err := readRequestHead(br)
		if err != nil {
			return
		}
		lines := strings.Split(strings.TrimSuffix(head, "\r\n\r\n"), "\r\n")
		slices.Sort(lines[1:]) // net/http does not know their order
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(head)))
		if err != nil {
			return
		}
		body := ""
		if r.ContentLength > 0 {
			p := make([]byte, r.ContentLength)
			n, _ := io.ReadFull(br, p)
			body = string(p[:n])
		}
		s.mu.Lock()
		s.seen = append(s.seen, strings.Join(lines, "\n")+"\n\n"+body)
		s.mu.Unlock()
		var i int
		fmt.Sscan(r.Header.Get("X-Answer"), &i)
		text := answersOfServices[i]
		head, rest, _ := strings.Cut(text, "\r\n\r\n")
		if r.Method == http.MethodHead {
			text = head + "\r\n\r\n"
			if i == 3 {
				text += rest
			}
		}
		io.WriteString(c, text)
		if i == 2 || i == 7 || i == 8 || i == 15 || i == 16 {
			return
		}
	}
}

// ask sends the bytes and returns what came back, in terms in which the two ways have to agree.
func (s *side) ask(t testing.TB, raw string, methods []string) (answers, seen string) {
	t.Helper()
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	io.WriteString(c, raw)
	br := bufio.NewReader(c)
	var b strings.Builder
	for i := 0; i < len(methods); {
		resp, err := http.ReadResponse(br, &http.Request{Method: methods[i]})
		if err != nil {
			if isTimeout(err) {
				t.Errorf("no answer, and no end, behind %s of %.2000q", b.String(), raw)
			}
			fmt.Fprintf(&b, "ends\n")
			break
		}
		body, err := io.ReadAll(resp.Body)
		fmt.Fprintf(&b, "%s close=%t broken=%t %d bytes %.40q %v\n", resp.Status, resp.Close, err != nil, len(body), body, resp.Trailer)
		resp.Header.Del("Content-Length") // net/http counts small bodies
		if resp.Header.Get("Date") != "Thu, 01 Jan 1970 00:00:00 GMT" && resp.StatusCode >= 200 {
			if resp.Header.Get("Date") == "" {
				t.Errorf("no date: %v", resp)
			}
			resp.Header.Del("Date")
		}
		fmt.Fprintln(&b, resp.Header)
		if resp.StatusCode >= 200 {
			i++
		}
		if err != nil {
			break
		}
	}
	s.mu.Lock()
	seen = strings.ReplaceAll(strings.Join(s.seen, "\n--\n"), s.addr, "ADDR")
	s.seen = nil
	s.mu.Unlock()
	return b.String(), seen
}

// lines returns the access log, without what differs from run to run.
func (s *side) lines(t testing.TB) (all []string) {
	t.Helper()
	for line := range strings.Lines(s.log.String()) {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		for _, name := range []string{"time", "duration_us", "client", "session"} {
			delete(m, name)
		}
		all = append(all, fmt.Sprint(m))
	}
	slices.Sort(all) // the last line of a connection may come after the first one of the next
	return all
}

// randomRequests returns some requests for one connection, most of them of the plain kind, the last of which closes it.
func randomRequests(r *rand.Rand) (raw string, methods []string) {
	pick := func(s ...string) string { return s[r.IntN(len(s))] }
	n := 1 + r.IntN(4)
	for i := range n {
		method := pick("GET", "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "x-y")
		var b strings.Builder
		fmt.Fprintf(&b, "%s %s HTTP/1.1\r\n", method, pick("/", "/a?b=c", "/a%20b", "//x", "/%5fpiko/x", "/?", "/_piko/v1/tcp/ep1",
			"http://ep1.piko.test/abs", "/a/../b", "/a;b=c?d=%zz"))
		fmt.Fprintf(&b, "%s: %s\r\n", pick("Host", "host"), pick("ep1.piko.test", "EP1.piko.test:80", "ep1.x", "nobody.x", "1.2.3.4"))
		fmt.Fprintf(&b, "X-Answer: %d\r\n", r.IntN(len(answersOfServices)))
		for range r.IntN(6) {
			b.WriteString(pick("Accept: */*", "X-A: 1", "x-a: 2", "X_A: 3", "Cookie: a=b", "Pragma: no-cache", "Cache-Control: x",
				"Connection: x-a", "Connection: host", "Connection: keep-alive", "X-Forwarded-For: 1.2.3.4", "Forwarded: for=x",
				"X-Piko-Endpoint: ep1", "x-piko-endpoint: EP1", "X-Piko-Other: x", "Te: trailers", "Max-Forwards: 0", "Max-Forwards: 3",
				"Proxy: x", "Accept: text/html", "Expect: x", "Authorization: Bearer x", "Empty:", "X-Utf: \xc3\xbc"))
			b.WriteString("\r\n")
		}
		if i == n-1 {
			b.WriteString("Connection: close\r\n")
			if r.IntN(8) == 0 { // how much may follow on an upgrade depends on when it comes
				b.WriteString("Upgrade: h2c\r\n")
			}
		}
		switch {
		case r.IntN(3) == 0:
			size := []int{0, 1, 100, 9000, 40000}[r.IntN(5)]
			fmt.Fprintf(&b, "Content-Length: %d\r\n\r\n%s", size, strings.Repeat("z", size))
		default:
			b.WriteString("\r\n")
		}
		raw += b.String()
		methods = append(methods, method)
	}
	return raw, methods
}

func tryBothWays(t testing.TB, plain, byNetHTTP *side, seed uint64) {
	t.Helper()
	raw, methods := randomRequests(rand.New(rand.NewPCG(seed, 0)))
	have, seen := plain.ask(t, raw, methods)
	want, wanted := byNetHTTP.ask(t, raw, methods)
	if have != want {
		t.Errorf("seed %d: %.2000q\nanswers by our own loop:\n%s\nand by net/http:\n%s", seed, raw, have, want)
	}
	if seen != wanted {
		t.Errorf("seed %d: %.2000q\nthe service has seen from our own loop:\n%s\nand from net/http:\n%s", seed, raw, seen, wanted)
	}
}

// Whether net/http serves a connection or our own loop: services see the same, clients see the same, and so does the log.
func TestBothWaysAreOne(t *testing.T) {
	if onlyNetHTTP {
		return // the first run has compared both
	}
	plain, byNetHTTP := newSide(t, false), newSide(t, true)
	for seed := range uint64(200) {
		tryBothWays(t, plain, byNetHTTP, seed)
	}
	plain.stopOnce()
	byNetHTTP.stopOnce()
	have, want := plain.lines(t), byNetHTTP.lines(t)
	if len(have) != len(want) {
		t.Errorf("%d lines of the access log, by net/http %d", len(have), len(want))
	}
	for i := range min(len(have), len(want)) {
		if have[i] != want[i] {
			t.Errorf("line %d of the log: %s, by net/http %s", i, have[i], want[i])
		}
	}
}

func FuzzBothWays(f *testing.F) {
	for seed := range uint64(20) {
		f.Add(seed)
	}
	plain, byNetHTTP := newSide(f, false), newSide(f, true)
	f.Fuzz(func(t *testing.T, seed uint64) { tryBothWays(t, plain, byNetHTTP, seed) })
}

package proxy

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"

	"github.com/pikoproxy/piko/internal/logline"
	"github.com/pikoproxy/piko/internal/tunnel"
)

const (
	benchRequest = "GET /t?a=1 HTTP/1.1\r\nHost: ep1.piko.test\r\nUser-Agent: bench/1.0\r\nAccept: */*\r\n" +
		"Accept-Language: en\r\nCookie: a=b; c=d\r\nX-Request-Id: 0123456789\r\n\r\n"
	benchAnswer = "HTTP/1.1 200 OK\r\nServer: x\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nContent-Type: text/plain\r\n" +
		"Content-Length: 100\r\nConnection: keep-alive\r\n\r\n"
)

// keepAlive returns a function that makes one small GET over client connection, proxy and a plain TCP connection to a raw
// service. Client and service allocate nothing.
func keepAlive(b testing.TB, f *fixture) (once func()) {
	answer := []byte(benchAnswer + strings.Repeat("x", 100))
	f.serveRaw(func(c net.Conn, br *bufio.Reader) {
		for {
			for {
				line, err := br.ReadSlice('\n')
				if err != nil {
					return
				}
				if len(line) == 2 {
					break
				}
			}
			if _, err := c.Write(answer); err != nil {
				return
			}
		}
	})
	c, br := f.dial()
	request := []byte(benchRequest)
	size := 0
	if _, err := c.Write(request); err != nil {
		b.Fatal(err)
	}
	for { // the first one tells the length of them all
		line, err := br.ReadSlice('\n')
		if err != nil {
			b.Fatal(err)
		}
		size += len(line)
		if len(line) == 2 {
			break
		}
	}
	if _, err := br.Discard(100); err != nil {
		b.Fatal(err)
	}
	return func() {
		if _, err := c.Write(request); err != nil {
			b.Fatal(err)
		}
		if _, err := br.Discard(size + 100); err != nil {
			b.Fatal(err)
		}
	}
}

func logged(o *Options) {
	o.AccessLog = true
	o.Log = logrus.New()
	o.Log.SetOutput(io.Discard)
	o.Log.SetFormatter(&logline.Formatter{})
}

// BenchmarkKeepAlive is one small request, with the access log on.
func BenchmarkKeepAlive(b *testing.B) {
	once := keepAlive(b, newFixture(b, logged))
	b.ReportAllocs()
	for b.Loop() {
		once()
	}
}

// The head of the request, the head of the answer, the stream, and the line of the log.
func TestPlainRequestsAllocateNextToNothing(t *testing.T) {
	if onlyNetHTTP {
		return
	}
	once := keepAlive(t, newFixture(t, logged))
	least := 100.0
	for range 100 { // under the race detector pools lose some of what they are given
		least = min(least, testing.AllocsPerRun(1, once))
	}
	if least > 4 {
		t.Errorf("%v allocations for a request", least)
	}
}

// BenchmarkRequestHead is the work on the head of a request alone.
func BenchmarkRequestHead(b *testing.B) {
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(benchRequest)))
	if err != nil {
		b.Fatal(err)
	}
	r.RemoteAddr = "192.0.2.1:5"
	x := &exchange{server: &Server{}, settings: &Settings{MaxHeaderFields: 100, MaxTargetBytes: maxTarget}, r: r}
	buf := make([]byte, 0, 2048)
	b.ReportAllocs()
	for b.Loop() {
		x.options = connection{}
		if f := x.examine(); f != nil {
			b.Fatal(f)
		}
		x.key = x.endpoint
		_ = x.streamHeader(tunnel.ProtocolHTTP)
		buf = x.appendHead(buf[:0])
	}
}

// BenchmarkAnswerHead is the work on the head of an answer alone.
func BenchmarkAnswerHead(b *testing.B) {
	r := strings.NewReader(benchAnswer)
	br := bufio.NewReaderSize(r, 4096)
	var h responseHead
	b.ReportAllocs()
	for b.Loop() {
		r.Reset(benchAnswer)
		br.Reset(r)
		text, _, err := readHead(br, maxResponseHead)
		if err != nil {
			b.Fatal(err)
		}
		if err := h.parse(text); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkBulk is a large download.
func BenchmarkBulk(b *testing.B) {
	const size = 64 << 20
	f := newFixture(b, nil)
	zeros := make([]byte, 256<<10)
	f.serveHTTP(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "67108864")
		for range size / len(zeros) {
			w.Write(zeros)
		}
	})
	client := f.client()
	client.Timeout = 0
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		resp, err := client.Do(f.request("GET", "/", nil))
		if err != nil {
			b.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != size {
			b.Fatal(n, err)
		}
		resp.Body.Close()
	}
}

// The work of the proxy on a small request must not grow unnoticed.
func TestHeadsCostNoMoreThanTheirStrings(t *testing.T) {
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(benchRequest)))
	if err != nil {
		t.Fatal(err)
	}
	r.RemoteAddr = "192.0.2.1:5"
	x := &exchange{server: &Server{}, settings: &Settings{MaxHeaderFields: 100, MaxTargetBytes: maxTarget}, r: r}
	buf := make([]byte, 0, 2048)
	if n := testing.AllocsPerRun(100, func() {
		x.options = connection{}
		if x.examine() == nil {
			buf = x.appendHead(buf[:0])
		}
	}); n > 0 {
		t.Errorf("%v allocations for the head of a request", n)
	}
	answer := strings.NewReader(benchAnswer)
	br := bufio.NewReaderSize(answer, 4096)
	var h responseHead
	if n := testing.AllocsPerRun(100, func() {
		answer.Reset(benchAnswer)
		br.Reset(answer)
		text, _, err := readHead(br, maxResponseHead)
		if err != nil || h.parse(text) != nil {
			t.Error(err)
		}
	}); n > 1 {
		t.Errorf("%v allocations for the head of an answer, want the one string", n)
	}
}

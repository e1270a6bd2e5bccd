package guard

import (
	"encoding/json"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pieces is the connection of a client that sends data cut as cut says, and then ends its direction.
type pieces struct {
	data []byte
	cut  func(left int) int
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.data) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.data[:max(1, min(p.cut(len(p.data)), len(p.data)))])
	p.data = p.data[n:]
	return n, nil
}

func (p *pieces) Write(b []byte) (int, error)      { return len(b), nil }
func (p *pieces) Close() error                     { return nil }
func (p *pieces) LocalAddr() net.Addr              { return nil }
func (p *pieces) RemoteAddr() net.Addr             { return nil }
func (p *pieces) SetDeadline(time.Time) error      { return nil }
func (p *pieces) SetReadDeadline(time.Time) error  { return nil }
func (p *pieces) SetWriteDeadline(time.Time) error { return nil }

func whole(left int) int { return left }
func single(int) int     { return 1 }

var testLimits = Limits{Bytes: 2048, Fields: 10, Target: 1024}

func over(c net.Conn) *Conn {
	l := &Listener{o: Options{Limits: func() Limits { return testLimits }, HeaderTimeout: time.Minute}}
	return &Conn{Conn: c, listener: l, mayPreface: true}
}

// readThrough returns what passes when all of data was sent, how the guard judged it, and the offsets in what has
// passed at which a request was known to be over.
func readThrough(t testing.TB, data []byte, cut func(int) int, room int) (passed string, r Refusal, ends []int) {
	t.Helper()
	c := over(&pieces{data, cut})
	var out []byte
	p := make([]byte, room)
	for {
		n, err := c.Read(p)
		out = append(out, p[:n]...)
		drained := c.held.out == c.held.outEnd
		if drained && c.state == inHold {
			c.Resume()
			ends = append(ends, len(out))
			continue
		}
		if drained && n > 0 && c.state == inHead && c.head.seen == 0 {
			ends = append(ends, len(out))
		}
		if err != nil {
			return string(out), c.Refusal(), ends
		}
		if n == 0 {
			t.Fatal("nothing was read, and no error")
		}
	}
}

const host = "Host: a\r\n"

func TestWhatPasses(t *testing.T) {
	for _, c := range []struct{ name, sent, passes string }{
		{"no body", "GET / HTTP/1.1\r\n" + host + "\r\n", ""},
		{"HTTP/1.0 without Host", "GET / HTTP/1.0\r\n\r\n", ""},
		{"absolute form", "GET HTTP://a/?%zz HTTP/1.1\r\n" + host + "\r\n", ""},
		{"absolute forms", "GET http://a.b:/ HTTP/1.1\r\n" + host + "\r\nGET https://[::1]:80?x HTTP/1.1\r\n" + host + "\r\n", ""},
		{"asterisk form", "OPTIONS * HTTP/1.1\r\n" + host + "\r\n", ""},
		{"empty Host", "GET / HTTP/1.1\r\nHost:\r\n\r\n", ""},
		{"eight bit value and tab", "GET / HTTP/1.1\r\n" + host + "X: \xff\ta\r\n\r\n", ""},
		{"ten fields and Host", "GET / HTTP/1.1\r\n" + host + strings.Repeat("X: y\r\n", 10) + "\r\n", ""},
		{"body", "POST / HTTP/1.1\r\n" + host + "Content-Length:\t05 \r\n\r\nab\r\nc", ""},
		{"body and next", "POST / HTTP/1.1\r\n" + host + "Content-Length: 1\r\n\r\nxGET / HTTP/1.1\r\n" + host + "\r\n", ""},
		{"chunks", "POST / HTTP/1.1\r\n" + host + "transfer-encoding: Chunked\r\n\r\n003\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n", ""},
		{
			"chunk extensions", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n3;a=\"b c\"\r\nabc\r\n0;x\r\n\r\n",
			"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
		},
		{
			"trailer", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nTrailer: X\r\n\r\n1\r\na\r\n0\r\nX: y\r\nZ:\r\n\r\n" +
				"GET / HTTP/1.1\r\n" + host + "\r\n", "",
		},
		{"HTTP/2", preface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00anything\x01", ""},
		{"upgrade that is not answered", "GET / HTTP/1.1\r\n" + host + "Upgrade: x\r\n\r\nGET / HTTP/1.1\r\n" + host + "\r\n", ""},
		{"body that breaks off", "POST / HTTP/1.1\r\n" + host + "Content-Length: 9\r\n\r\nab", ""},
		{"nothing", "", ""},
	} {
		if c.passes == "" {
			c.passes = c.sent
		}
		for _, room := range []int{1, 14, 4096} {
			for name, cut := range map[string]func(int) int{"whole": whole, "single": single} {
				if got, r, _ := readThrough(t, []byte(c.sent), cut, room); got != c.passes || r != 0 {
					t.Errorf("%s, %s, read by %d: %q, %v", c.name, name, room, got, r)
				}
			}
		}
	}
}

func TestWhatIsRefused(t *testing.T) {
	const get, post = "GET / HTTP/1.1\r\n" + host, "POST / HTTP/1.1\r\n" + host
	const chunked = post + "Transfer-Encoding: chunked\r\n\r\n"
	for _, c := range []struct {
		sent string
		want Refusal
	}{
		{"\r\n" + get + "\r\n", badRequestLine},
		{"\nGET", bareLF},
		{"GET / HTTP/1.1\n", bareLF},
		{get + "X: y\n", bareLF},
		{get + "\n", bareLF},
		{"GET /\r\n", badRequestLine},
		{"GET  / HTTP/1.1\r\n", badRequestLine},
		{" GET / HTTP/1.1\r\n", badVersion},
		{" / HTTP/1.1\r\n", badMethod},
		{"G\x00T / HTTP/1.1\r\n", badMethod},
		{"GET / HTTP/1.2\r\n", badVersion},
		{"GET / http/1.1\r\n", badVersion},
		{"GET / HTTP/1.1 \r\n", badVersion},
		{"PRI * HTTP/2.0\r\n\r\nXX", badVersion},
		{get + "\r\n" + preface, badVersion},
		{"CONNECT a:1 HTTP/1.1\r\n", connectMethod},
		{"GET /# HTTP/1.1\r\n", badTarget},
		{"GET a HTTP/1.1\r\n", badTarget},
		{"GET ftp://a/ HTTP/1.1\r\n", badTarget},
		{"GET * HTTP/1.1\r\n", badTarget},
		{"GET http:///a HTTP/1.1\r\n", badTarget},
		{"GET http://a@b/ HTTP/1.1\r\n", badTarget},
		{"GET http://a:b/ HTTP/1.1\r\n", badTarget},
		{"GET http://a:1:2/ HTTP/1.1\r\n", badTarget},
		{"GET http://a%20/ HTTP/1.1\r\n", badTarget},
		{"GET http://[::1/ HTTP/1.1\r\n", badTarget},
		{"GET http://[:::]/ HTTP/1.1\r\n", badTarget},
		{"GET http://[::1%25a]/ HTTP/1.1\r\n", badTarget},
		{"GET /%4 HTTP/1.1\r\n", badTarget},
		{"GET /%4g?%20 HTTP/1.1\r\n", badTarget},
		{"GET /\x7f HTTP/1.1\r\n", badTarget},
		{"GET /\xe9 HTTP/1.1\r\n", badTarget},
		{"GET /" + strings.Repeat("a", 1024) + " HTTP/1.1\r\n", longTarget},
		{"GET /" + strings.Repeat("a", 4096), longTarget},
		{get + "X: " + strings.Repeat("a", 4096), longHead},
		{get + strings.Repeat("X: y\r\n", 11), manyFields},
		{get + "X: y\r\n z\r\n", foldedLine},
		{"GET / HTTP/1.1\r\n Host: a\r\n", foldedLine},
		{get + "X : y\r\n", badName},
		{get + ": y\r\n", badName},
		{get + "X\r\n", badName},
		{get + "X\x80: y\r\n", badName},
		{get + "X: a\rb\r\n", badValue},
		{get + "X: a\x00b\r\n", badValue},
		{get + "X: a\x7fb\r\n", badValue},
		{get + "X: a\r\r\n", badValue},
		{"GET / HTTP/1.1\r\n\r\n", hostMissing},
		{get + "host: a\r\n", hostTwice},
		{"GET / HTTP/1.1\r\nHost: a/b\r\n", badHost},
		{"GET / HTTP/1.1\r\nHost: a b\r\n", badHost},
		{post + "Content-Length: 1\r\ncontent-length: 1\r\n", lengthTwice},
		{post + "Content-Length: 1, 1\r\n", badLength},
		{post + "Content-Length: +1\r\n", badLength},
		{post + "Content-Length:\r\n", badLength},
		{post + "Content-Length: 1000000000000000000\r\n", badLength},
		{post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", codingTwice},
		{post + "Transfer-Encoding: chunked, chunked\r\n", badCoding},
		{post + "Transfer-Encoding: gzip\r\n", badCoding},
		{post + "Transfer-Encoding:\r\n", badCoding},
		{post + "Transfer-Encoding: \"chunked\"\r\n", badCoding},
		{post + "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n", codingAndLength},
		{post + "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n", codingAndLength},
		{"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", codingIn10},
		{post + "Transfer-Encoding: chunked\r\nTrailer: X,\tContent-length\r\n\r\n", framingInTrailer},
		{get, brokenOff},
		{"G", brokenOff},
		{get + "Upgrade: x\r\n\r\nG", brokenOff},
		{chunked + "\r\n", badChunkSize},
		{chunked + "g\r\n", badChunkSize},
		{chunked + "-1\r\n", badChunkSize},
		{chunked + "0x1\r\n", badChunkSize},
		{chunked + "1 \r\n", badChunkSize},
		{chunked + ";a\r\n", badChunkSize},
		{chunked + "1\n", badChunkSize},
		{chunked + "1\rx", badChunkSize},
		{chunked + "1;a\n", badChunkSize},
		{chunked + "1;\x00", badChunkSize},
		{chunked + "1;a\rb", badChunkSize},
		{chunked + "0000000000000001\r\n", badChunkSize},
		{chunked + "1;" + strings.Repeat("a", 257), longExtension},
		{chunked + "1\r\naa", badChunkEnd},
		{chunked + "1\r\na\n", badChunkEnd},
		{chunked + "1\r\na\rb", badChunkEnd},
		{chunked + "0\r\n\n", badTrailer},
		{chunked + "0\r\nGET / HTTP/1.1\r\n", badTrailer},
		{chunked + "0\r\nX: y\n", badTrailer},
		{chunked + "0\r\nX: y\r\n z\r\n", badTrailer},
		{chunked + "0\r\nX: " + strings.Repeat("a", 4096), longTrailer},
		{chunked + "0\r\n" + strings.Repeat("X: y\r\n", 11), longTrailer},
	} {
		for name, cut := range map[string]func(int) int{"whole": whole, "single": single} {
			got, r, _ := readThrough(t, []byte(c.sent + "\r\nGET /hidden HTTP/1.1\r\nHost: a\r\n\r\n")[:len(c.sent)+tail(c.want)], cut, 4096)
			if r != c.want {
				t.Errorf("%q, %s: %v, want %v", c.sent, name, r, c.want)
			}
			if strings.Contains(got, "/hidden") {
				t.Errorf("%q, %s: what follows a refusal has passed: %q", c.sent, name, got)
			}
			if !strings.HasSuffix(got, refusedHead) && !strings.HasSuffix(got, refusedChunk) && !strings.HasSuffix(got, refusedTrailer) {
				t.Errorf("%q, %s: the refusal is not told: %q", c.sent, name, got)
			}
		}
	}
}

// tail is how much is sent behind what is refused; nothing, where it is the end that is refused.
func tail(r Refusal) int {
	if r == brokenOff {
		return 0
	}
	return len("\r\nGET /hidden HTTP/1.1\r\nHost: a\r\n\r\n")
}

// A refused HEAD request is answered without a body, and a request before the refused one is not touched.
func TestRefusalComesInTurn(t *testing.T) {
	const good = "GET / HTTP/1.1\r\nHost: a\r\n\r\n"
	got, r, _ := readThrough(t, []byte(good+"HEAD /# HTTP/1.1\r\n"+good), whole, 4096)
	if r != badTarget || got != good+refusedHeadHead {
		t.Errorf("%v: %q", r, got)
	}
}

func TestEveryRefusalHasAReasonAndAKind(t *testing.T) {
	texts := map[string]bool{}
	for r := noRefusal + 1; int(r) < len(reasons); r++ {
		if r.Error() == "" || texts[r.Error()] || r.Kind() == None {
			t.Errorf("refusal %d: %q, kind %d", r, r.Error(), r.Kind())
		}
		texts[r.Error()] = true
	}
	if len(reasons) != int(longTrailer)+1 {
		t.Errorf("%d reasons", len(reasons))
	}
}

// corpus returns the raw requests of the corpus.
func corpus(t testing.TB) [][]byte {
	t.Helper()
	b, err := os.ReadFile("testdata/http1_corpus.json")
	if err != nil {
		t.Fatal(err)
	}
	var entries []struct{ Raw string }
	if err := json.Unmarshal(b, &entries); err != nil {
		t.Fatal(err)
	}
	var raw [][]byte
	for _, e := range entries {
		var bytes []byte
		for _, c := range e.Raw {
			bytes = append(bytes, byte(c))
		}
		raw = append(raw, bytes)
	}
	return raw
}

const benchHead = "GET /t?a=1 HTTP/1.1\r\nHost: ep1.piko.test\r\nUser-Agent: bench/1.0\r\nAccept: */*\r\n" +
	"Accept-Language: en\r\nCookie: a=b; c=d\r\nX-Request-Id: 0123456789\r\n\r\n"

// endless is a client that sends the same over and over.
type endless struct {
	pieces
	text string
	size int
	at   int
}

func (e *endless) Read(b []byte) (int, error) {
	n := copy(b[:min(len(b), e.size)], e.text[e.at:])
	e.at = (e.at + n) % len(e.text)
	return n, nil
}

func TestReadingAllocatesNothing(t *testing.T) {
	for name, text := range map[string]string{
		"head":   benchHead,
		"chunks": "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\nX: y\r\n\r\n",
		"long":   "GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("a", 1500) + "\r\n\r\n",
	} {
		for _, size := range []int{4096, 100} {
			c := over(&endless{text: text, size: size})
			p := make([]byte, 4096)
			read := func() {
				if _, err := c.Read(p); err != nil {
					t.Fatal(err)
				}
			}
			read()
			if n := testing.AllocsPerRun(1000, read); n > 0 {
				t.Errorf("%s, by %d bytes: %v allocations per read", name, size, n)
			}
		}
	}
}

func BenchmarkHead(b *testing.B) {
	c := over(&endless{text: benchHead, size: len(benchHead)})
	p := make([]byte, 4096)
	b.ReportAllocs()
	b.SetBytes(int64(len(benchHead)))
	for b.Loop() {
		if _, err := c.Read(p); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkBody(b *testing.B) {
	text := "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + strings.Repeat("1000\r\n"+strings.Repeat("x", 4096)+"\r\n", 256) + "0\r\n\r\n"
	c := over(&endless{text: text, size: 32 << 10})
	p := make([]byte, 32<<10)
	b.ReportAllocs()
	b.SetBytes(32 << 10)
	for b.Loop() {
		if _, err := c.Read(p); err != nil {
			b.Fatal(err)
		}
	}
}

package proxy

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/pikotest/corpus"
	"github.com/pikoproxy/piko/internal/syntax"
)

// keptResponse is a ResponseWriter that keeps the body.
type keptResponse struct {
	http.ResponseWriter
	body bytes.Buffer
}

func (w *keptResponse) Write(p []byte) (int, error) { return w.body.Write(p) }
func (w *keptResponse) Flush()                      {}

// readAnswer reads one answer to a GET as an exchange does.
func readAnswer(r io.Reader) (h responseHead, body string, trailer []field, err error) {
	br := bufio.NewReaderSize(r, 4096)
	text, _, err := readHead(br, maxResponseHead)
	if err != nil {
		return h, "", nil, err
	}
	if err := h.parse(text); err != nil {
		return h, "", nil, err
	}
	h.bodyFor("GET")
	var w keptResponse
	c := bodyCopier{br: br, w: &w, flusher: &w, buffers: newCopyBuffers()}
	trailer, err = c.copy(h.framing, h.length)
	return h, w.body.String(), trailer, err
}

// What we take for a whole answer, net/http takes for the same answer; and the way the bytes are cut changes nothing.
func FuzzAnswer(f *testing.F) {
	for _, c := range corpus.Replies {
		if len(c.Text) < 4096 {
			f.Add([]byte(c.Text))
		}
	}
	f.Add([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: T\r\n\r\n2;e=\"f\"\r\nok\r\n0\r\nT: u\r\n\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		h, body, trailer, err := readAnswer(bytes.NewReader(data))
		h2, body2, trailer2, err2 := readAnswer(iotest.OneByteReader(bytes.NewReader(data)))
		if (err == nil) != (err2 == nil) || body != body2 || h.status != h2.status || !slices.Equal(h.fields, h2.fields) ||
			!slices.Equal(trailer, trailer2) {
			t.Fatalf("whole: %v %q; in pieces: %v %q", err, body, err2, body2)
		}
		if err != nil || h.status < 200 || h.framing == byClose {
			return
		}
		resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(data)), nil)
		if err != nil {
			t.Fatalf("net/http refuses: %v", err)
		}
		theirs, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != h.status || (string(theirs) != body && h.framing != noBody) {
			t.Fatalf("ours %d %q, net/http %d %q %v", h.status, body, resp.StatusCode, theirs, err)
		}
	})
}

func FuzzChunks(f *testing.F) {
	for _, s := range []string{"2\r\nok\r\n0\r\n\r\n", "2;a=b\r\nok\r\n0\r\nX: y\r\n\r\n", "0\r\n\r\nrest", "fffffffffffffff\r\n", "2\nok\n0\n\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var w keptResponse
		br := bufio.NewReaderSize(bytes.NewReader(data), 4096)
		c := bodyCopier{br: br, w: &w, flusher: &w, buffers: newCopyBuffers()}
		trailer, err := c.copy(byChunks, -1)
		if err != nil {
			return
		}
		for _, f := range trailer {
			if !syntax.IsToken(f.name) || !syntax.IsValue(f.value) || !inTrailer(f.name) {
				t.Fatalf("trailer %+v", f)
			}
		}
		// Sent on as we would send it, it is the same body.
		head := "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
		resp, err := http.ReadResponse(bufio.NewReader(io.MultiReader(strings.NewReader(head), bytes.NewReader(data))), nil)
		if err != nil {
			t.Fatal(err)
		}
		theirs, err := io.ReadAll(resp.Body)
		if err != nil || !bytes.Equal(theirs, w.body.Bytes()) {
			t.Fatalf("ours %q, net/http %q %v", w.body.Bytes(), theirs, err)
		}
	})
}

// The client is never an address that stands to the left of one that is not trusted.
func FuzzClientOf(f *testing.F) {
	f.Add("6.6.6.6, 192.0.2.1, 10.0.0.1", "10.0.0.2")
	f.Add("[::1]:5,,", "evil")
	trusted := config.CIDRs{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("::1/128")}
	f.Fuzz(func(t *testing.T, a, b string) {
		got := clientOf([]string{a, b}, trusted)
		var want netip.Addr
		elems := strings.Split(a+","+b, ",")
		slices.Reverse(elems)
		for _, e := range elems {
			if trimOWS(e) == "" {
				// An empty element at the end of a line is none; elsewhere it ends the walk, which may only end earlier.
				continue
			}
			addr, ok := parseNode(trimOWS(e))
			if !ok {
				break
			}
			want = addr
			if got == addr {
				return
			}
			if !trusted.Contains(addr) {
				break
			}
		}
		if got.IsValid() && got != want {
			t.Fatalf("%q %q: %v, want %v", a, b, got, want)
		}
	})
}

// Whatever net/http lets through, what we write is one request with the same method, target and framing, and holds
// nothing that only we may say.
func FuzzRequestHead(f *testing.F) {
	f.Add([]byte("GET /t?a=1 HTTP/1.1\r\nHost: ep1.piko.test\r\nX-Piko-A: b\r\nConnection: X-Hop\r\nX-Hop: 1\r\n\r\n"))
	f.Add([]byte("POST http://ep1.piko.test/%00 HTTP/1.1\r\nHost: ep1.piko.test\r\nContent-Length: 5\r\nX_Piko: 1\r\n\r\nhello"))
	f.Add([]byte("POST /t HTTP/1.1\r\nHost: ep1.piko.test\r\nTransfer-Encoding: chunked\r\nTrailer: A, Host\r\n\r\n0\r\n\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(data)))
		if err != nil {
			return
		}
		r.RemoteAddr = "192.0.2.1:5"
		x := &exchange{server: &Server{}, settings: &Settings{}, r: r, w: httptest.NewRecorder()}
		if x.examine() != nil || x.tcp {
			return
		}
		head := x.appendHead(nil)
		out, err := http.ReadRequest(bufio.NewReader(io.MultiReader(bytes.NewReader(head), strings.NewReader("GET / HTTP/1.1\r\n"))))
		if err != nil {
			if errors.Is(err, io.EOF) || strings.Contains(err.Error(), "Host") {
				return // net/http is stricter with the Host of a request it reads as a server
			}
			t.Fatalf("%q: %v", head, err)
		}
		if out.Method != r.Method || out.RequestURI != x.target || out.ContentLength != r.ContentLength ||
			bytes.Count(head, []byte("\r\n\r\n")) != 1 || !bytes.HasSuffix(head, []byte("\r\n\r\n")) {
			t.Fatalf("%q became %q", data, head)
		}
		for name := range out.Header {
			if strings.HasPrefix(twin(name), "X-Piko-") {
				t.Fatalf("%s in %q", name, head)
			}
		}
		if xff := out.Header["X-Forwarded-For"]; len(xff) != 1 || xff[0] != "192.0.2.1" {
			t.Fatalf("X-Forwarded-For %q", xff)
		}
	})
}

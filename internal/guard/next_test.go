package guard

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/textproto"
	"slices"
	"strings"
	"testing"
)

// seen is what somebody has made of a request.
type seen struct {
	line   string
	fields []string
	body   string
	broken bool
}

// seenByNetHTTP reads requests as net/http does. The second result is what comes after the last whole one.
func seenByNetHTTP(r io.Reader) (all []seen) {
	br := bufio.NewReader(r)
	for {
		req, err := http.ReadRequest(br)
		if err != nil {
			return all
		}
		s := seen{line: req.Method + " " + req.RequestURI + " " + req.Host}
		for name, lines := range req.Header {
			for _, line := range lines {
				s.fields = append(s.fields, name+": "+line)
			}
		}
		slices.Sort(s.fields)
		body, err := io.ReadAll(req.Body)
		s.body, s.broken = string(body), err != nil
		all = append(all, s)
		if err != nil {
			return all
		}
	}
}

func seenByNext(t testing.TB, data []byte, cut func(int) int, room int) (all []seen, r Refusal) {
	t.Helper()
	c := over(&pieces{data, cut})
	for {
		h, err := c.Next()
		if err != nil {
			return all, c.Refusal()
		}
		if h == nil {
			break
		}
		s := seen{line: h.Method + " " + h.Target + " " + h.Host}
		pragma, cached := false, false
		for _, f := range h.Fields {
			name := textproto.CanonicalMIMEHeaderKey(f.Name)
			pragma = pragma || name == "Pragma" && f.Value == "no-cache"
			cached = cached || name == "Cache-Control"
			s.fields = append(s.fields, name+": "+f.Value)
		}
		if pragma && !cached { // as net/http makes it
			s.fields = append(s.fields, "Cache-Control: no-cache")
		}
		slices.Sort(s.fields)
		length := h.Length
		c.Take()
		var body strings.Builder
		p := make([]byte, room)
		for {
			n, err := c.ReadBody(p)
			body.Write(p[:n])
			if err != nil {
				s.broken = !errors.Is(err, io.EOF)
				break
			}
		}
		s.body = body.String()
		if !s.broken && int64(len(s.body)) != length {
			t.Fatalf("a body of %d bytes, announced were %d", len(s.body), length)
		}
		all = append(all, s)
		if s.broken {
			return all, c.Refusal()
		}
	}
	var rest []byte
	p := make([]byte, room)
	for {
		n, err := c.Read(p)
		rest = append(rest, p[:n]...)
		if c.held.out == c.held.outEnd && c.state == inHold {
			c.Resume()
			continue
		}
		if err != nil {
			return append(all, seenByNetHTTP(strings.NewReader(string(rest)))...), c.Refusal()
		}
	}
}

func compare(t testing.TB, data []byte, cut func(int) int, room int) {
	t.Helper()
	passed, want, _ := readThrough(t, data, whole, 4096)
	have, r := seenByNext(t, data, cut, room)
	byNetHTTP := seenByNetHTTP(strings.NewReader(passed))
	if fmt.Sprint(have) != fmt.Sprint(byNetHTTP) || r != want {
		t.Fatalf("%q\nby Next:     %+v %v\nby net/http: %+v %v", data, have, r, byNetHTTP, want)
	}
}

func TestNextSeesWhatNetHTTPSees(t *testing.T) {
	good := "POST /a%20b?c=d HTTP/1.1\r\nhost: \ta.b:1 \r\nX:\r\nx-y:  z \r\nContent-Length: 3\r\n\r\nabc"
	for _, raw := range append(corpus(t), []byte(good+good), []byte(good+"GET /x HTTP/1.1\r\nHost: a\r\nUpgrade: y\r\n\r\n"+good),
		[]byte(good+preface), []byte(preface), []byte(good+"GET"), []byte("GET / HTTP/1.1\r\nPragma: no-cache\r\nHost: a\r\n\r\n")) {
		if len(raw) > aheadLimit {
			continue
		}
		for _, cut := range []func(int) int{whole, single} {
			for _, room := range []int{1, 4096} {
				compare(t, raw, cut, room)
				compare(t, append([]byte(good), raw...), cut, room)
			}
		}
	}
}

// A request that Next has shown and nobody has taken is shown to net/http instead, with all that follows it.
func TestWhatIsNotTakenIsRead(t *testing.T) {
	text := "GET /1 HTTP/1.1\r\nHost: a\r\nExpect: x\r\n\r\nPOST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\na"
	c := over(&pieces{[]byte(text), whole})
	if h, err := c.Next(); err != nil || h == nil || h.Target != "/1" {
		t.Fatal(h, err)
	}
	if got, err := io.ReadAll(c); err != nil || string(got) != text {
		t.Errorf("%q %v", got, err)
	}
}

// Whatever a client sends and however it arrives, a server that uses Next gives it the same meaning as net/http would.
func FuzzNext(f *testing.F) {
	addSeeds(f)
	f.Fuzz(func(t *testing.T, data []byte, seed uint64) {
		if len(data) > aheadLimit {
			return
		}
		random := rand.New(rand.NewPCG(seed, 1))
		cut := func(left int) int { return 1 + random.IntN(min(left, 64)) }
		for _, cut := range []func(int) int{whole, single, cut} {
			compare(t, data, cut, 100)
		}
	})
}

func TestNextAllocatesOneString(t *testing.T) {
	c := over(&endless{text: benchHead, size: 4096})
	if n := testing.AllocsPerRun(100, func() {
		if h, err := c.Next(); err != nil || h == nil {
			t.Fatal(h, err)
		}
		c.Take()
	}); n > 1 {
		t.Errorf("%v allocations for a head", n)
	}
}

// The answer to a request that asked for an upgrade may come before its body was read, and must not hold up the next one.
func TestResumeBeforeTheBodyWasRead(t *testing.T) {
	const head = "POST / HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\nContent-Length: 3\r\n\r\n"
	const rest = "abcGET /2 HTTP/1.1\r\nHost: a\r\n\r\n"
	for _, cut := range []func(int) int{whole, single} {
		c := over(&pieces{[]byte(head + rest), cut})
		if _, err := io.ReadFull(c, make([]byte, len(head))); err != nil {
			t.Fatal(err)
		}
		c.Resume()
		if got, err := io.ReadAll(c); err != nil || string(got) != rest {
			t.Errorf("%q %v, want %q", got, err, rest)
		}
	}
}

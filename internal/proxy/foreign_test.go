package proxy

import (
	"bufio"
	"io"
	"net/http"
	"strings"
	"testing"
)

// A connection that begins with neither a request of HTTP/1 nor the preface of HTTP/2 is closed: what speaks something else
// understands no answer. Later, and with a request line that is merely wrong, the answer is 400.
func TestConnectionThatBeginsWithSomethingElse(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.ReadHeaderTimeout = 2 * patience })
	f.serveHTTP(func(http.ResponseWriter, *http.Request) {})
	const good = "GET / HTTP/1.1\r\nHost: ep1.piko.test\r\n\r\n"
	for text, want := range map[string]string{
		"INVALID CONNECTION PREFACE\r\n\r\n":        "",
		good + "INVALID CONNECTION PREFACE\r\n\r\n": "200 400",
		"GET / HTTP/1.2\r\n\r\n":                    "400",
		"GET / http/1.1\r\n\r\n":                    "400",
		"PRI * HTTP/2.0\r\n\r\nSN\r\n\r\n":          "400",
		"GET /\r\n\r\n":                             "400",
	} {
		for _, piece := range []int{len(text), 1} {
			c, br := f.dial()
			for at := 0; at < len(text); at += piece {
				if _, err := io.WriteString(c, text[at:min(at+piece, len(text))]); err != nil {
					break // closed already, which is right for those that are
				}
			}
			if got := statuses(t, br); got != want {
				t.Errorf("%q in pieces of %d is answered by %q: want %q", text, piece, got, want)
			}
			c.Close()
		}
	}
	// It is closed now, not when a request would have had to be there.
	c, br := f.dial()
	_, _ = io.WriteString(c, "INVALID CONNECTION PREFACE\r\n\r\n")
	if _, err := br.ReadByte(); err == nil || isTimeout(err) {
		t.Errorf("%v: want it closed at once", err)
	}
}

// statuses reads answers until the connection ends.
func statuses(t *testing.T, br *bufio.Reader) string {
	t.Helper()
	var all []string
	for {
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			return strings.Join(all, " ")
		}
		all = append(all, resp.Status[:3])
		readAll(t, resp)
	}
}

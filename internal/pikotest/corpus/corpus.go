// Package corpus sends the corpus of HTTP/1.1 requests to nodes, for tests: what a front must refuse, what it may pass on,
// and what must never reach a service, in whatever way it is sent. It knows no more of Piko than the code that its error
// answers have.
package corpus

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// patience is how long a connection may take to end after the last answer.
const patience = 40 * time.Second

// Entry is one connection of a client in the corpus: raw bytes, one code point for each.
type Entry struct {
	ID          string   `json:"id"`
	Raw         string   `json:"raw"`
	Expect      []any    `json:"expect"`
	MustNot     bool     `json:"must_not_reach_upstream"`
	Max         int      `json:"max_upstream_requests"`
	Contains    []string `json:"upstream_contains"`
	NotContains []string `json:"upstream_not_contains"`
}

// Load reads the entries, all 125 of them.
func Load(t testing.TB, file string) []Entry {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var entries []Entry
	if err := json.Unmarshal(b, &entries); err != nil {
		t.Fatal(err)
	}
	if len(entries) != 125 {
		t.Fatalf("%d entries, want 125", len(entries))
	}
	for i := range entries {
		entries[i].Raw = latin1(entries[i].Raw)
	}
	return entries
}

func latin1(s string) string {
	b := make([]byte, 0, len(s))
	for _, c := range s {
		b = append(b, byte(c)) //nolint:gosec // the corpus has no character above 255
	}
	return string(b)
}

// allows reports whether the first answer may be this one; 0 is none at all.
func (e Entry) allows(status int) bool {
	return slices.ContainsFunc(e.Expect, func(v any) bool {
		code, ok := v.(float64)
		return ok && int(code) == status || v == "close" && status == 0
	})
}

// Way is one of the ways in which the entries are sent.
type Way struct {
	Name   string
	Secure bool // over TLS
	send   func(c net.Conn, br *bufio.Reader, raw string) error
	goods  int // good requests in front
	times  int // the entry itself
}

const goodRequest = "GET /good HTTP/1.1\r\nHost: ep1.piko.test\r\n\r\n"

func sendWhole(c net.Conn, _ *bufio.Reader, raw string) error {
	_, err := io.WriteString(c, raw)
	return err
}

// Ways are all of them. The first one is the plainest.
//
//nolint:gochecknoglobals // a table
var Ways = []Way{
	{"direct", false, sendWhole, 0, 1},
	{"over TLS", true, sendWhole, 0, 1},
	{"in pieces of one byte", false, func(c net.Conn, _ *bufio.Reader, raw string) error {
		for i := range len(raw) {
			if _, err := io.WriteString(c, raw[i:i+1]); err != nil {
				return err
			}
		}
		return nil
	}, 0, 1},
	{"after a good request", false, func(c net.Conn, br *bufio.Reader, raw string) error {
		if _, err := io.WriteString(c, goodRequest); err != nil {
			return err
		}
		if _, err := br.Peek(1); err != nil {
			return err
		}
		return sendWhole(c, br, raw)
	}, 1, 1},
	{"pipelined behind a good request", false, func(c net.Conn, br *bufio.Reader, raw string) error {
		return sendWhole(c, br, goodRequest+raw)
	}, 1, 1},
	{"two back to back", false, func(c net.Conn, br *bufio.Reader, raw string) error {
		return sendWhole(c, br, raw+raw)
	}, 0, 2},
}

// Front is a node, or several in a row, with a service behind that answers the host ep1.piko.test.
type Front struct {
	Dial     func() net.Conn
	Recorder *Recorder // the service; it has seen nothing yet
	Settle   func()    // returns when what was sent has reached the service, if it ever does
}

// Try sends an entry and fails the test if the answer is none of those it may get, or the service has seen what it must not.
func (f Front) Try(t testing.TB, e Entry, w Way) {
	t.Helper()
	c := f.Dial()
	if w.Secure {
		c = tls.Client(c, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // who answers is not what is tried
	}
	br := bufio.NewReader(c)
	// A proxy that refuses may close while we are still sending.
	_ = w.send(c, br, e.Raw)
	longer := patience
	if e.allows(0) { // it may be that no answer comes
		longer = 2 * time.Second
	}
	got := readQuiet(t, c, br, w.goods+1, longer)
	_ = c.Close()
	f.Settle()

	answers := answersIn(got)
	for range w.goods {
		if len(answers) == 0 || answers[0].status != http.StatusOK {
			t.Fatalf("the good request in front was answered by %q", got)
		}
		answers = answers[1:]
	}
	status := 0
	if len(answers) > 0 {
		status = answers[0].status
	}
	if !e.allows(status) && !e.handsOver(got) {
		t.Errorf("answer %d, want one of %v: %q", status, e.Expect, cut(got))
	}
	for _, a := range answers {
		if a.status >= 400 && a.header.Get("Piko-Error") == "" {
			t.Errorf("an error answer that is not ours: %q", cut(got))
		}
	}
	f.Recorder.check(t, e, w)
}

func cut(s string) string { return s[:min(len(s), 256)] }

// handsOver reports whether the entry is the beginning of HTTP/2, which this listener offers.
func (e Entry) handsOver(got string) bool {
	return strings.HasPrefix(e.Raw, "PRI ") && !strings.Contains(got, "HTTP/1.1 2")
}

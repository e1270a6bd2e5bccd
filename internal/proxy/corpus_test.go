package proxy

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// entry is one connection of a client in the corpus: raw bytes, one code point for each.
type entry struct {
	ID          string   `json:"id"`
	Raw         string   `json:"raw"`
	Expect      []any    `json:"expect"`
	MustNot     bool     `json:"must_not_reach_upstream"`
	Max         int      `json:"max_upstream_requests"`
	Contains    []string `json:"upstream_contains"`
	NotContains []string `json:"upstream_not_contains"`
}

func corpus(t *testing.T) []entry {
	t.Helper()
	b, err := os.ReadFile("../guard/testdata/http1_corpus.json")
	if err != nil {
		t.Fatal(err)
	}
	var entries []entry
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
		b = append(b, byte(c))
	}
	return string(b)
}

// allows reports whether the first answer may be this one; 0 is none at all.
func (e entry) allows(status int) bool {
	return slices.ContainsFunc(e.Expect, func(v any) bool {
		code, ok := v.(float64)
		return ok && int(code) == status || v == "close" && status == 0
	})
}

// recorder is a service that trusts nobody: it keeps the bytes of each request, and knows a whole one when it sees it.
type recorder struct {
	mu     sync.Mutex
	whole  []string
	broken []string // requests that ended early, or are no HTTP
	wrong  []error
}

func (r *recorder) serve(conn net.Conn, _ *bufio.Reader) {
	var raw bytes.Buffer
	br := bufio.NewReader(io.TeeReader(iotestOne{conn}, &raw))
	for {
		raw.Reset()
		head, err := strictRequest(br, conn)
		r.mu.Lock()
		switch {
		case err == nil:
			r.whole = append(r.whole, raw.String())
		case raw.Len() > 0:
			r.broken = append(r.broken, raw.String())
			if errors.Is(err, errNotHTTP) {
				r.wrong = append(r.wrong, err)
			}
		}
		r.mu.Unlock()
		if err != nil {
			return
		}
		answer := "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
		if !strings.HasPrefix(head, "HEAD ") {
			answer += "ok"
		}
		if _, err := io.WriteString(conn, answer); err != nil {
			return
		}
	}
}

// iotestOne yields single bytes, so that a buffered reader never reads beyond what was asked for.
type iotestOne struct{ io.Reader }

func (r iotestOne) Read(p []byte) (int, error) { return r.Reader.Read(p[:min(len(p), 1)]) }

var errNotHTTP = errors.New("the service was sent what is no HTTP")

func strictLine(br *bufio.Reader) (string, error) {
	line, err := br.ReadString('\n')
	if err != nil {
		return "", err
	}
	text, found := strings.CutSuffix(line, "\r\n")
	if !found || strings.ContainsAny(text, "\r\x00") {
		return "", errNotHTTP
	}
	return text, nil
}

// strictRequest reads one request to its last byte, by the letter of RFC 9112 and nothing more.
func strictRequest(br *bufio.Reader, w io.Writer) (head string, err error) {
	line, err := strictLine(br)
	if err != nil {
		return "", err
	}
	if parts := strings.Split(line, " "); len(parts) != 3 || parts[2] != "HTTP/1.1" || parts[1] == "" {
		return "", errNotHTTP
	}
	fields, err := strictFields(br)
	if err != nil {
		return "", err
	}
	if fields["expect"] != nil {
		_, _ = io.WriteString(w, "HTTP/1.1 100 Continue\r\n\r\n")
	}
	length, coding := fields["content-length"], fields["transfer-encoding"]
	switch {
	case len(fields["host"]) != 1, len(length)+len(coding) > 1:
		return "", errNotHTTP
	case len(coding) == 1:
		if coding[0] != "chunked" {
			return "", errNotHTTP
		}
		return line, strictChunks(br)
	case len(length) == 1:
		n, err := strconv.ParseUint(length[0], 10, 31)
		if err != nil {
			return "", errNotHTTP
		}
		_, err = io.CopyN(io.Discard, br, int64(n))
		return line, err
	}
	return line, nil
}

func strictFields(br *bufio.Reader) (map[string][]string, error) {
	fields := map[string][]string{}
	for {
		line, err := strictLine(br)
		if err != nil || line == "" {
			return fields, err
		}
		name, value, found := strings.Cut(line, ":")
		if !found || !isToken(name) || !isValue(value) {
			return nil, errNotHTTP
		}
		name = strings.ToLower(name)
		fields[name] = append(fields[name], trimOWS(value))
	}
}

func strictChunks(br *bufio.Reader) error {
	for {
		line, err := strictLine(br)
		if err != nil {
			return err
		}
		n, err := strconv.ParseUint(line, 16, 31)
		if err != nil {
			return errNotHTTP
		}
		if n == 0 {
			_, err := strictFields(br)
			return err
		}
		if _, err := io.CopyN(io.Discard, br, int64(n)); err != nil {
			return err
		}
		if line, err := strictLine(br); err != nil || line != "" {
			return errors.Join(err, errNotHTTP)
		}
	}
}

// way is one of the ways in which the entries are sent.
type way struct {
	name   string
	secure bool
	send   func(c net.Conn, br *bufio.Reader, raw string) error
	goods  int // good requests in front
	times  int // the entry itself
}

const goodRequest = "GET /good HTTP/1.1\r\nHost: ep1.piko.test\r\n\r\n"

func sendWhole(c net.Conn, _ *bufio.Reader, raw string) error {
	_, err := io.WriteString(c, raw)
	return err
}

var ways = []way{
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

// Every entry of the corpus is answered as it must be and reaches the service as it may, whichever way it is sent. What
// is hidden in one never runs.
func TestCorpus(t *testing.T) {
	borrowed := httptest.NewTLSServer(nil) // for its certificate
	t.Cleanup(borrowed.Close)
	certificates := borrowed.TLS.Certificates
	var wait sync.WaitGroup
	turn := make(chan struct{}, 48) // nearly all of the time is spent waiting
	for _, w := range ways {
		for _, e := range corpus(t) {
			turn <- struct{}{}
			wait.Go(func() {
				defer func() { <-turn }()
				t.Run(e.ID+" "+w.name, func(t *testing.T) { tryEntry(t, e, w, certificates) })
			})
		}
	}
	wait.Wait()
}

func tryEntry(t *testing.T, e entry, w way, certificates []tls.Certificate) {
	f := newFixture(t, func(o *Options) {
		o.Domains, o.MaxHeaderFields = []string{"piko.test"}, 100
		if w.secure {
			o.TLS = &tls.Config{Certificates: certificates, MinVersion: tls.VersionTLS12}
		}
	})
	var rec recorder
	f.serveRaw(rec.serve)
	c, br := f.dial()
	if w.secure {
		c = tls.Client(c, &tls.Config{InsecureSkipVerify: true})
		br = bufio.NewReader(c)
	}
	// A proxy that refuses may close while we are still sending.
	_ = w.send(c, br, e.Raw)
	got := readQuiet(t, c, br, w.goods+1)
	c.Close()
	f.stopOnce()

	answers := answersIn(t, got)
	for range w.goods {
		if len(answers) == 0 || answers[0].StatusCode != http.StatusOK {
			t.Fatalf("the good request in front was answered by %q", got)
		}
		answers = answers[1:]
	}
	status := 0
	if len(answers) > 0 {
		status = answers[0].StatusCode
	}
	if !e.allows(status) && !e.handsOver(got) {
		t.Errorf("answer %d, want one of %v: %q", status, e.Expect, cutText(got))
	}
	for _, a := range answers {
		if a.StatusCode >= 400 && a.Header.Get("Piko-Error") == "" {
			t.Errorf("an error answer that is not ours: %q", cutText(got))
		}
	}
	rec.check(t, e, w)
}

// handsOver reports whether the entry is the beginning of HTTP/2, which this listener offers.
func (e entry) handsOver(got string) bool {
	return strings.HasPrefix(e.Raw, "PRI ") && !strings.Contains(got, "HTTP/1.1 2")
}

func (r *recorder) check(t *testing.T, e entry, w way) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, err := range r.wrong {
		t.Errorf("%v: %q", err, r.broken)
	}
	seen := strings.Join(append(slices.Clone(r.whole), r.broken...), "\n\x00\n")
	if len(r.whole) > e.Max*w.times+w.goods || e.MustNot && len(r.whole)+len(r.broken) > w.goods {
		t.Errorf("%d whole requests reached the service: %q", len(r.whole), cutText(seen))
	}
	for _, raw := range r.whole {
		if strings.Contains(raw, "/smuggled HTTP/") && !strings.Contains(raw, "Content-Length: 47") {
			t.Errorf("hidden request ran: %q", raw)
		}
	}
	for _, text := range e.Contains {
		if len(r.whole) > w.goods && !strings.Contains(strings.ToLower(seen), strings.ToLower(latin1(text))) {
			t.Errorf("the service has not seen %q in %q", text, cutText(seen))
		}
	}
	for _, text := range e.NotContains {
		if text = latin1(text); !strings.HasPrefix(text, "GET ") { // methods know upper and lower case
			text, seen = strings.ToLower(text), strings.ToLower(seen)
		}
		if strings.Contains(seen, text) {
			t.Errorf("the service has seen %q in %q", text, cutText(seen))
		}
	}
}

// readQuiet reads until nothing comes for a while, then ends its own direction and reads to the end. It has more patience
// while there are fewer answers than it wants, since a slow machine is no refusal.
func readQuiet(t *testing.T, c net.Conn, br *bufio.Reader, want int) string {
	t.Helper()
	var got bytes.Buffer
	p := make([]byte, 4096)
	for quiet := false; ; {
		wait := 250 * time.Millisecond
		switch {
		case quiet:
			wait = patience
		case len(answersIn(t, got.String())) < want:
			wait = 2 * time.Second
		}
		if err := c.SetReadDeadline(time.Now().Add(wait)); err != nil {
			return got.String()
		}
		n, err := br.Read(p)
		got.Write(p[:n])
		switch {
		case err == nil:
		case isTimeout(err) && !quiet:
			quiet = true
			if half, ok := c.(interface{ CloseWrite() error }); ok {
				_ = half.CloseWrite()
			}
		case isTimeout(err):
			t.Errorf("the connection stays open")
			return got.String()
		default:
			return got.String()
		}
	}
}

// answersIn takes the final answers apart; a 100 counts as the first of an entry.
func answersIn(t *testing.T, got string) []*http.Response {
	t.Helper()
	var answers []*http.Response
	br := bufio.NewReader(strings.NewReader(got))
	for {
		a, err := http.ReadResponse(br, nil)
		if err != nil {
			return answers
		}
		_, err = io.Copy(io.Discard, a.Body)
		a.Body.Close()
		if err != nil {
			return answers // more of it may be on its way
		}
		answers = append(answers, a)
	}
}

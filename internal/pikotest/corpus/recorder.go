package corpus

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// Recorder is a service that trusts nobody: it keeps the bytes of each request, and knows a whole one when it sees it.
// The zero value is ready for use, by any number of goroutines.
type Recorder struct {
	mu     sync.Mutex
	whole  []string
	broken []string // requests that ended early, or are no HTTP
	wrong  []error
}

// Serve answers the requests on a connection until one is none, or the connection ends.
func (r *Recorder) Serve(conn net.Conn) {
	var raw bytes.Buffer
	br := bufio.NewReader(io.TeeReader(single{conn}, &raw))
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

// single yields single bytes, so that a buffered reader never reads beyond what was asked for.
type single struct{ io.Reader }

func (r single) Read(p []byte) (int, error) { return r.Reader.Read(p[:min(len(p), 1)]) }

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

func (r *Recorder) check(t testing.TB, e Entry, w Way) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, err := range r.wrong {
		t.Errorf("%v: %q", err, r.broken)
	}
	seen := strings.Join(append(slices.Clone(r.whole), r.broken...), "\n\x00\n")
	if len(r.whole) > e.Max*w.times+w.goods || e.MustNot && len(r.whole)+len(r.broken) > w.goods {
		t.Errorf("%d whole requests reached the service: %q", len(r.whole), cut(seen))
	}
	for _, raw := range r.whole {
		if strings.Contains(raw, "/smuggled HTTP/") && !strings.Contains(raw, "Content-Length: 47") {
			t.Errorf("hidden request ran: %q", raw)
		}
	}
	for _, text := range e.Contains {
		if len(r.whole) > w.goods && !strings.Contains(strings.ToLower(seen), strings.ToLower(latin1(text))) {
			t.Errorf("the service has not seen %q in %q", text, cut(seen))
		}
	}
	for _, text := range e.NotContains {
		if text = latin1(text); !strings.HasPrefix(text, "GET ") { // methods know upper and lower case
			text, seen = strings.ToLower(text), strings.ToLower(seen)
		}
		if strings.Contains(seen, text) {
			t.Errorf("the service has seen %q in %q", text, cut(seen))
		}
	}
}

// isToken reports whether s is a token of RFC 9110, 5.6.2.
func isToken(s string) bool {
	return s != "" && strings.Trim(s, "!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz") == ""
}

// isValue reports whether s may stand in a field, with white space around it.
func isValue(s string) bool {
	return strings.IndexFunc(s, func(c rune) bool { return c < ' ' && c != '\t' || c == 0x7f }) < 0
}

func trimOWS(s string) string { return strings.Trim(s, " \t") }

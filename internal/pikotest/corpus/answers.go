package corpus

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// readQuiet reads until nothing comes for a while, then ends its own direction and reads to the end. While there are fewer
// answers than it wants it waits for longer, since a slow machine is no refusal.
func readQuiet(t testing.TB, c net.Conn, br *bufio.Reader, want int, longer time.Duration) string {
	t.Helper()
	var got bytes.Buffer
	p := make([]byte, 4096)
	for quiet := false; ; {
		wait := 250 * time.Millisecond
		switch {
		case quiet:
			wait = patience
		case len(answersIn(got.String())) < want:
			wait = longer
		}
		if err := c.SetReadDeadline(time.Now().Add(wait)); err != nil {
			return got.String()
		}
		n, err := br.Read(p)
		got.Write(p[:n])
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded) && !quiet:
			quiet = true
			if half, ok := c.(interface{ CloseWrite() error }); ok {
				_ = half.CloseWrite()
			}
		case errors.Is(err, os.ErrDeadlineExceeded):
			t.Errorf("the connection stays open")
			return got.String()
		default:
			return got.String()
		}
	}
}

// answer is what counts of one.
type answer struct {
	status int
	header http.Header
}

// answersIn takes the final answers apart; a 100 counts as the first of an entry.
func answersIn(got string) []answer {
	var answers []answer
	br := bufio.NewReader(strings.NewReader(got))
	for {
		a, err := http.ReadResponse(br, nil)
		if err != nil {
			return answers
		}
		_, err = io.Copy(io.Discard, a.Body)
		_ = a.Body.Close()
		if err != nil {
			return answers // more of it may be on its way
		}
		answers = append(answers, answer{a.StatusCode, a.Header})
	}
}

package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/pikoproxy/piko/internal/pikotest/corpus"
)

// What a service sends to make two readers of its answer disagree ends in an error, or in what looks broken.
func TestHostileAnswers(t *testing.T) {
	for _, c := range corpus.Replies {
		t.Run(c.Name, func(t *testing.T) {
			f := newFixture(t, nil)
			s := f.serveRaw(func(conn net.Conn, br *bufio.Reader) {
				for {
					if _, err := readRequestHead(br); err != nil {
						return
					}
					if _, err := io.WriteString(conn, c.Text); err != nil || !c.Reuse {
						// Not closed before it was read: an answer must be refused for what it says.
						conn.(*net.TCPConn).CloseWrite()
						io.Copy(io.Discard, br)
						return
					}
				}
			})
			for i := range 2 {
				resp, body, err := f.raw("POST /a HTTP/1.1\r\nHost: ep1.piko.test\r\nContent-Length: 0\r\n\r\n")
				switch {
				case resp == nil:
					t.Fatalf("request %d: no answer: %v", i, err)
				case resp.StatusCode != c.Want:
					t.Fatalf("request %d: status %d %q, want %d", i, resp.StatusCode, body, c.Want)
				case (err != nil) != c.Broken:
					t.Fatalf("request %d: body %q ends with %v, want broken: %v", i, body, err, c.Broken)
				case strings.Contains(body, "poison"):
					t.Fatalf("request %d got what belongs to no request", i)
				case c.Want == 502 && resp.Header.Get("Piko-Error") == "":
					t.Fatalf("request %d: 502 without a code", i)
				}
			}
			if n := len(s.opened()); (n == 1) != c.Reuse {
				t.Errorf("%d streams for two requests, want reuse: %v", n, c.Reuse)
			}
		})
	}
}

// Each byte at which an answer can be cut must give an error, or an answer that looks broken.
func TestAnswerCutAtEachByte(t *testing.T) {
	const whole = "HTTP/1.1 200 OK\r\nX: y\r\nTransfer-Encoding: chunked\r\n\r\n2;e=f\r\nok\r\n1\r\n!\r\n0\r\nT: u\r\n\r\n"
	f := newFixture(t, nil)
	cut := 0
	f.serveRaw(func(conn net.Conn, br *bufio.Reader) {
		if _, err := readRequestHead(br); err == nil {
			io.WriteString(conn, whole[:cut])
		}
	})
	for cut = range len(whole) + 1 {
		resp, body, err := f.raw("POST / HTTP/1.1\r\nHost: ep1.piko.test\r\nContent-Length: 0\r\n\r\n")
		if resp == nil {
			t.Fatalf("cut at %d: no answer: %v", cut, err)
		}
		complete := resp.StatusCode == 200 && err == nil
		if complete != (cut == len(whole)) || (complete && body != "ok!") {
			t.Errorf("cut at %d: %d %q %v", cut, resp.StatusCode, body, err)
		}
	}
}

// The same bytes, however the network cuts them, are the same answer.
func TestAnswerInPieces(t *testing.T) {
	head := "HTTP/1.1 200 OK\r\nX-Long: " + strings.Repeat("l", 9000) + "\r\n"
	for _, text := range []string{
		head + "Content-Length: 3\r\n\r\nok!",
		head + "Transfer-Encoding: chunked\r\n\r\n1\r\no\r\n2;x\r\nk!\r\n0\r\n\r\n",
	} {
		for _, size := range []int{1, 2, 3, 1000, 4095, 4096, 4097} {
			t.Run(fmt.Sprint(size), func(t *testing.T) {
				f := newFixture(t, nil)
				f.serveRaw(func(conn net.Conn, br *bufio.Reader) {
					if _, err := readRequestHead(br); err != nil {
						return
					}
					for rest := text; rest != ""; {
						n := min(size, len(rest))
						io.WriteString(conn, rest[:n])
						rest = rest[n:]
					}
				})
				resp, body, err := f.raw("GET / HTTP/1.1\r\nHost: ep1.piko.test\r\n\r\n")
				if err != nil || resp.StatusCode != http.StatusOK || body != "ok!" || len(resp.Header.Get("X-Long")) != 9000 {
					t.Errorf("%v %q %v", resp, body, err)
				}
			})
		}
	}
}

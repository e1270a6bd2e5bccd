package proxy

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/pikoproxy/piko/internal/fault"
	"github.com/pikoproxy/piko/internal/logline"
)

// What the guard refuses is answered like every other fault: with a code and a problem, then the connection ends.
func TestRefusalsAreProblems(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.MaxHeaderFields = 20 })
	f.serveRaw(func(_ net.Conn, br *bufio.Reader) {
		// Of a body that is streamed the beginning may have gone on, and the end must not.
		if got, err := io.ReadAll(br); err == nil || !strings.Contains(string(got), "chunked") {
			t.Errorf("the service has seen %q, %v", got, err)
		}
	})
	const host = "Host: ep1.piko.test\r\n"
	for _, c := range []struct {
		name, sent string
		status     int
		code       string
	}{
		{"framing", "POST / HTTP/1.1\r\n" + host + "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "PIKO-E1011"},
		{"syntax", "GET / HTTP/1.1\r\n" + host + "X : y\r\n\r\n", 400, "PIKO-E1017"},
		{"target", "GET /#a HTTP/1.1\r\n" + host + "\r\n", 400, "PIKO-E1004"},
		{"refusal's own target", "GET /# HTTP/1.1\r\n" + host + "\r\n", 400, "PIKO-E1004"},
		{"long target", "GET /" + strings.Repeat("a", 17<<10) + " HTTP/1.1\r\n" + host + "\r\n", 414, "PIKO-E1016"},
		{"large head", "GET / HTTP/1.1\r\n" + host + "X: " + strings.Repeat("a", 33<<10) + "\r\n\r\n", 431, "PIKO-E1012"},
		{"many fields", "GET / HTTP/1.1\r\n" + host + strings.Repeat("X: y\r\n", 21) + "\r\n", 431, "PIKO-E1006"},
		{"CONNECT", "CONNECT ep1.piko.test:443 HTTP/1.1\r\n" + host + "\r\n", 405, "PIKO-E1007"},
		{"slow head", "GET / HTTP/1.1\r\n" + host, 408, "PIKO-E1013"},
		{"chunk", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\nx\r\n", 400, "PIKO-E1011"},
	} {
		want := fmt.Sprintf("%d, the last answer: true, {Status:%d Code:%s}, and it was: true", c.status, c.status, c.code)
		if c.code != fault.RequestTimeout.Code {
			if got := f.refusal(c.sent); got != want {
				t.Errorf("%s: %s; want %s", c.name, got, want)
			}
			continue
		}
		patiently(t, func(limit time.Duration) error {
			hasty := newFixture(t, func(o *Options) { o.ReadHeaderTimeout = limit })
			if got := hasty.refusal(c.sent); got != want {
				return fmt.Errorf("%s: %s; want %s", c.name, got, want)
			}
			return nil
		})
	}
}

// refusal sends bytes and returns in words how they are refused.
func (f *fixture) refusal(sent string) string {
	f.t.Helper()
	conn, br := f.dial()
	if _, err := io.WriteString(conn, sent); err != nil {
		return err.Error()
	}
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	var problem struct {
		Status int
		Code   string
	}
	if err := json.NewDecoder(resp.Body).Decode(&problem); err != nil {
		return fmt.Sprintf("body: %v", err)
	}
	resp.Body.Close()
	_, err = br.ReadByte()
	return fmt.Sprintf("%d, the last answer: %v, %+v, and it was: %v", resp.StatusCode, resp.Close, problem, err != nil)
}

// A client that sends on behind what was refused still gets to read why, although nobody reads what it sends.
func TestRefusalArrivesWhileTheClientSends(t *testing.T) {
	f := newFixture(t, nil)
	f.serveRaw(func(_ net.Conn, br *bufio.Reader) { _, _ = io.Copy(io.Discard, br) })
	for name, head := range map[string]string{
		"head":  "POST / HTTP/1.1\r\nHost: ep1.piko.test\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
		"chunk": "POST / HTTP/1.1\r\nHost: ep1.piko.test\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
	} {
		for range 20 {
			resp, _, err := f.raw(head + strings.Repeat("x", 100<<10))
			if err != nil || resp.StatusCode != 400 {
				t.Fatalf("%s: %v, %v", name, resp, err)
			}
		}
	}
}

// The log says why, and nothing of what the client sent.
func TestRefusalIsLogged(t *testing.T) {
	var out bytes.Buffer
	logger := logrus.New()
	logger.SetOutput(&out)
	logger.SetFormatter(&logline.Formatter{JSON: true})
	f := newFixture(t, func(o *Options) { o.Log, o.AccessLog = logger, true })
	if _, _, err := f.raw("GET /secret HTTP/1.1\r\nSecret : x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	f.stopOnce()
	if line := out.String(); !strings.Contains(line, "PIKO-E1017") || !strings.Contains(line, "field name is no token") ||
		strings.Contains(strings.ToLower(line), "secret") {
		t.Errorf("logged %s", line)
	}
}

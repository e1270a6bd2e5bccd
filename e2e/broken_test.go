package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
)

// half begins an answer of 100,000 bytes and does not end it.
const half = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"

// dieMidBody is a service that reads a request, begins its answer, and dies as the path of the request says.
func dieMidBody(c *net.TCPConn) {
	r, err := http.ReadRequest(bufio.NewReader(c))
	if err != nil {
		return
	}
	piece := strings.Repeat("x", 1000)
	if strings.Contains(r.URL.Path, "length") {
		_, _ = io.WriteString(c, half+"Content-Length: 100000\r\n\r\n"+piece)
	} else {
		_, _ = io.WriteString(c, half+"Transfer-Encoding: chunked\r\n\r\n3e8\r\n"+piece+"\r\n")
	}
	if strings.Contains(r.URL.Path, "reset") {
		_ = c.SetLinger(0)
	}
	_ = c.Close()
}

func TestAnswerThatBreaksOffIsSeenAsBroken(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{})
	service := serveTCP(t, dieMidBody)
	startAgent(t, n, agentOptions{}, offer{Endpoint: "e", Addr: service},
		offer{Endpoint: "read", Addr: service, More: "access_log = true"})
	for version, want := range map[string]int{"--http1.1": 18, "--http2-prior-knowledge": 92} {
		for _, path := range []string{"length-fin", "length-reset", "chunked-fin", "chunked-reset"} {
			t.Run(version+" "+path, func(t *testing.T) {
				for i := range 6 {
					endpoint := "x-piko-endpoint: " + []string{"e", "read"}[i%2]
					out, errs, code := curl(t, version, "-H", endpoint, "http://"+n.proxy+"/"+path)
					// A reset may overtake the bytes sent before it, and then nothing was delivered: 502.
					if strings.Contains(path, "reset") && code == 0 && strings.Contains(out, "upstream unreachable") {
						continue
					}
					if code != want {
						t.Fatalf("%s: curl exits %d after %d bytes: %s: want %d", endpoint, code, len(out), errs, want)
					}
				}
			})
		}
	}
}

func TestAnswerIsBrokenWhenAnyProcessOnTheWayIsKilled(t *testing.T) {
	t.Parallel()
	for _, victim := range []string{"piko-agent", "pikod"} {
		for _, version := range []string{"--http1.1", "--http2-prior-knowledge"} {
			t.Run(victim+" "+version, func(t *testing.T) {
				t.Parallel()
				n := startNode(t, nodeOptions{})
				agent := startAgent(t, n, agentOptions{}, offer{Endpoint: "e",
					Addr: serve(t, func(w http.ResponseWriter, r *http.Request) {
						_, _ = io.WriteString(w, "begin")
						_ = http.NewResponseController(w).Flush()
						<-r.Context().Done()
					})})
				got := writeFile(t, "answer", "")
				code := make(chan int, 1)
				go func() {
					_, _, c := curl(t, version, "-N", "-o", got, "-H", "x-piko-endpoint: e", "http://"+n.proxy+"/")
					code <- c
				}()
				await(t, "the answer has begun", settle, func() error {
					b, err := os.ReadFile(got)
					if err == nil && string(b) != "begin" {
						err = fmt.Errorf("%q has arrived", b)
					}
					return err
				})
				if victim == "pikod" {
					n.kill(t)
				} else {
					agent.kill(t)
				}
				if c := wait(t, "curl ends", settle, code); c == 0 {
					t.Error("curl exits 0: want an error")
				}
			})
		}
	}
}

func TestServiceThatGivesNoAnswer(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{})
	var asked atomic.Int32
	startAgent(t, n, agentOptions{},
		offer{Endpoint: "closes", Addr: serveTCP(t, func(c *net.TCPConn) {
			asked.Add(1)
			_, _ = http.ReadRequest(bufio.NewReader(c))
		})},
		offer{Endpoint: "babbles", Addr: serveTCP(t, func(c *net.TCPConn) {
			_, _ = http.ReadRequest(bufio.NewReader(c))
			_, _ = io.WriteString(c, "SSH-2.0-OpenSSH_9.2\r\n")
		})})
	for name, c := range n.versions(t) {
		for _, endpoint := range []string{"closes", "babbles"} {
			r := request(t, http.MethodPost, at(endpoint, "/"), strings.NewReader("order"))
			a := do(t, c, r)
			if a.StatusCode != http.StatusBadGateway || !errorCode.MatchString(a.Header.Get("Piko-Error")) {
				t.Errorf("%s over %s: status %d %s: want a 502 of ours", endpoint, name, a.StatusCode, a.body)
			}
		}
	}
	if got := asked.Load(); got != 2 {
		t.Errorf("the service was asked %d times for 2 POST requests: want each delivered once", got)
	}
}

func TestRequestIsCancelledWhenItsClientIsGone(t *testing.T) {
	t.Parallel()
	began, ended := make(chan struct{}, 1), make(chan error, 1)
	n := oneService(t, nodeOptions{}, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/wait" {
			_, _ = io.WriteString(w, "begin")
			_ = http.NewResponseController(w).Flush()
		}
		began <- struct{}{}
		if r.Method == http.MethodPost {
			_, err := io.Copy(io.Discard, r.Body)
			ended <- err
			return
		}
		<-r.Context().Done()
		ended <- r.Context().Err()
	})
	for name, c := range n.ways(t) {
		for _, test := range []struct{ name, method, path string }{
			{"before the answer", http.MethodGet, "/wait"},
			{"during the answer", http.MethodGet, "/begin"},
			{"during an upload", http.MethodPost, "/wait"},
		} {
			t.Run(name+" "+test.name, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				r := request(t, test.method, at("e", test.path), nil).WithContext(ctx)
				body, w := io.Pipe()
				if test.method == http.MethodPost {
					r.Body, r.ContentLength = body, -1
					go func() { _, _ = io.WriteString(w, "a piece") }()
				}
				done := make(chan error, 1)
				go func() {
					a, err := try(c, r)
					if err == nil {
						err = fmt.Errorf("status %d: %w", a.StatusCode, errors.ErrUnsupported)
					}
					done <- err
				}()
				wait(t, "the service has the request", settle, began)
				cancel()
				_ = w.CloseWithError(context.Canceled)
				if err := wait(t, "the service sees that the client is gone", settle, ended); err == nil {
					t.Error("the service saw a clean end of the upload: want an error")
				}
				if err := wait(t, "the client is done", settle, done); !errors.Is(err, context.Canceled) {
					t.Errorf("client: %v: want cancelled", err)
				}
			})
		}
	}
}

func TestUploadThatBreaksOffIsNotACleanEnd(t *testing.T) {
	t.Parallel()
	began, ended := make(chan struct{}, 1), make(chan error, 1)
	n := oneService(t, nodeOptions{}, func(_ http.ResponseWriter, r *http.Request) {
		_, err := io.ReadFull(r.Body, make([]byte, 5))
		began <- struct{}{}
		if err == nil {
			_, err = io.Copy(io.Discard, r.Body)
		}
		ended <- err
	})
	for name, head := range map[string]string{
		"length":        "Host: e.piko.test\r\nContent-Length: 100000\r\n\r\n",
		"chunked":       "Host: e.piko.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n",
		"length, read":  "Host: read.piko.test\r\nContent-Length: 100000\r\n\r\n",
		"chunked, read": "Host: read.piko.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n",
	} {
		c := connect(t, n.proxy)
		mustWrite(t, c, "POST / HTTP/1.1\r\n"+head+"piece\r\n")
		wait(t, "the service has the piece", settle, began)
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if err := wait(t, "the service sees the end", settle, ended); err == nil {
			t.Errorf("%s: the service saw a clean end: want an error", name)
		}
	}
}

var errorCode = regexp.MustCompile(`^PIKO-E\d{4}$`)

func TestEveryFailureOfOursIsMarked(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{Proxy: `endpoint_wait = "0s"`})
	hasty := startNode(t, nodeOptions{Proxy: `response_header_timeout = "300ms"`})
	startAgent(t, hasty, agentOptions{},
		offer{Endpoint: "slow", Addr: serve(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })})
	startAgent(t, n, agentOptions{},
		offer{Endpoint: "dead", Addr: freeAddress(t)},
		offer{Endpoint: "liar", Addr: serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Piko-Error", "PIKO-E9999")
			w.WriteHeader(http.StatusBadGateway)
		})})
	c := n.client(t)
	codes := map[string]bool{}
	for _, test := range []struct {
		name, url, text string
		status          int
	}{
		{"no endpoint", "http://localhost/", "missing endpoint id", 400},
		{"nobody there", at("absent", "/"), "no available upstreams", 502},
		{"service not there", at("dead", "/"), "upstream unreachable", 502},
		{"service too slow", at("slow", "/"), "upstream timeout", 504},
		{"TCP to nobody", "http://localhost/_piko/v1/tcp/absent", "no available upstreams", 502},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := request(t, http.MethodGet, test.url, nil)
			if strings.Contains(test.url, "_piko") {
				r.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"},
					"Sec-Websocket-Version": {"13"}, "Sec-Websocket-Key": {"dGhlIHNhbXBsZSBub25jZQ=="}}
			}
			client := c
			if test.status == http.StatusGatewayTimeout {
				client = hasty.client(t)
			}
			a := do(t, client, r)
			var problem struct {
				Error, Title string
				Status       int
			}
			if err := json.Unmarshal([]byte(a.body), &problem); err != nil {
				t.Fatalf("body %q: %v", a.body, err)
			}
			code := a.Header.Get("Piko-Error")
			if a.StatusCode != test.status || problem.Error != test.text || !errorCode.MatchString(code) ||
				!strings.HasPrefix(a.Header.Get("Content-Type"), "application/problem+json") {
				t.Errorf("status %d, code %q, type %q, body %s: want %d with %q", a.StatusCode, code,
					a.Header.Get("Content-Type"), a.body, test.status, test.text)
			}
			codes[code] = true
		})
	}
	if len(codes) < 4 {
		t.Errorf("%d different codes: want one for each meaning: %v", len(codes), codes)
	}
	t.Run("a service cannot send one", func(t *testing.T) {
		if a := get(t, c, at("liar", "/")); a.StatusCode != 502 || a.Header.Get("Piko-Error") != "" {
			t.Errorf("status %d, code %q: want the service's 502 without a code", a.StatusCode, a.Header.Get("Piko-Error"))
		}
	})
	t.Run("a browser gets a page", func(t *testing.T) {
		r := request(t, http.MethodGet, at("absent", "/"), nil)
		r.Header.Set("Accept", "text/html,application/xhtml+xml,*/*;q=0.8")
		a := do(t, c, r)
		if !strings.HasPrefix(a.Header.Get("Content-Type"), "text/html") ||
			!errorCode.MatchString(a.Header.Get("Piko-Error")) {
			t.Errorf("type %q, code %q: want HTML with a code", a.Header.Get("Content-Type"), a.Header.Get("Piko-Error"))
		}
	})
	t.Run("each code is explained", func(t *testing.T) {
		for code := range codes {
			p := start(t, nil, "pikod", "explain", code)
			if exit := p.exit(t, settle); exit != 0 || !strings.Contains(p.output(t), code) {
				t.Errorf("pikod explain %s exits %d with %q", code, exit, p.output(t))
			}
		}
		p := start(t, nil, "pikod", "explain", "PIKO-E0000")
		if exit := p.exit(t, settle); exit == 0 {
			t.Error("pikod explain of a code that is none exits 0")
		}
	})
}

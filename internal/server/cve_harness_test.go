package server_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/tunnel"
)

// recorder is a service behind a native agent that keeps every byte it is sent, and answers what it takes for requests.
type recorder struct {
	*tunnel.AgentSession
	mu  sync.Mutex
	got bytes.Buffer
	ran []string // what it took for requests
}

// served are the paths of all requests, in the order of their coming.
func (r *recorder) served() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.ran, " ")
}

// Write keeps what was sent.
func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.got.Write(p)
}

func (r *recorder) text() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.got.String()
}

func (n *running) recorder(endpoint, token string) *recorder {
	n.t.Helper()
	r := &recorder{}
	var err error
	r.AgentSession, err = tunnel.Dial(n.t.Context(), tunnel.DialOptions{
		URL: n.url("upstream", ""), Token: token, Hello: tunnel.Hello{AgentID: "recorder"},
	})
	if err != nil {
		n.t.Fatal(err)
	}
	if err := r.Listen(n.t.Context(), tunnel.Listen{Endpoint: endpoint, Protocol: tunnel.ProtocolHTTP}); err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(n.t.Context()))
	var work sync.WaitGroup
	work.Go(func() {
		for {
			in, err := r.Accept(ctx)
			if err != nil {
				return
			}
			work.Go(func() {
				st, err := in.Accept()
				if err != nil {
					return
				}
				defer st.Close()
				r.serve(st)
			})
		}
	})
	n.t.Cleanup(func() {
		_ = r.CloseNow(errors.New("end of the test"))
		cancel()
		work.Wait()
		r.Wait()
	})
	return r
}

// serve answers at once, before it has read a body that it is asked to wait for.
func (r *recorder) serve(c net.Conn) {
	br := bufio.NewReader(io.TeeReader(c, r))
	for {
		req, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		r.mu.Lock()
		r.ran = append(r.ran, req.URL.Path)
		r.mu.Unlock()
		if req.Header.Get("Expect") == "" {
			_, _ = io.Copy(io.Discard, req.Body)
		}
		if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nseen"); err != nil {
			return
		}
	}
}

// exposed is a node with a service at the endpoint "e".
func exposed(t *testing.T, change func(*config.Pikod)) (*running, *recorder) {
	t.Helper()
	n := start(t, change)
	return n, n.recorder("e", "")
}

// exchange sends bytes on a connection of their own and returns what comes until the node closes it, or says nothing more for
// a while once it has answered.
func (n *running) exchange(raw string) string {
	n.t.Helper()
	conn, err := net.Dial("tcp", n.server.Addr("proxy").String())
	if err != nil {
		n.t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetWriteDeadline(time.Now().Add(patience))
	_, _ = io.WriteString(conn, raw) // the node may close before it has read all
	var out bytes.Buffer
	buf := make([]byte, 4096)
	for {
		quiet := patience
		if have := statuses(out.String()); have != "" && have != "100" && whole(out.String()) {
			quiet = 300 * time.Millisecond
		}
		_ = conn.SetReadDeadline(time.Now().Add(quiet))
		k, err := conn.Read(buf)
		out.Write(buf[:k])
		if err != nil {
			return out.String()
		}
	}
}

// whole reports whether no answer breaks off.
func whole(text string) bool {
	br := bufio.NewReader(strings.NewReader(text))
	for {
		if _, err := br.Peek(1); err != nil {
			return true
		}
		a, err := http.ReadResponse(br, nil)
		if err != nil {
			return false
		}
		_, err = io.Copy(io.Discard, a.Body)
		_ = a.Body.Close()
		if err != nil {
			return false
		}
	}
}

// statuses are those of the answers in what came, in order.
func statuses(text string) string {
	var all []string
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, "HTTP/1.1 "); ok {
			all = append(all, rest[:3])
		}
	}
	return strings.Join(all, " ")
}

// refused sends a request with another one hidden in it, and wants the first to be answered with one of the statuses and
// the connection to be over, and no byte of the hidden one at the service.
func (n *running) refused(r *recorder, raw string, want ...string) {
	n.t.Helper()
	text := n.exchange(raw + "GET /hidden HTTP/1.1\r\nHost: e.piko.test\r\n\r\n")
	have := statuses(text)
	ok := len(want) == 0 && have == ""
	for _, w := range want {
		ok = ok || have == w
	}
	if !ok {
		n.t.Errorf("%.80q is answered %q, want one of %q", raw, have, want)
	}
	if strings.Contains(r.text(), "hidden") {
		n.t.Errorf("%.80q: a hidden request reached the service:\n%s", raw, r.text())
	}
}

const postChunked = "POST / HTTP/1.1\r\nHost: e.piko.test\r\nTransfer-Encoding: chunked\r\n\r\n"

// get is a request with more fields.
func getWith(fields ...string) string {
	return "GET / HTTP/1.1\r\nHost: e.piko.test\r\n" + strings.Join(fields, "\r\n") + "\r\n\r\n"
}

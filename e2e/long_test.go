package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// minute is longer than any default timeout that could be hidden on the way, by a little.
const minute = 61 * time.Second

// TestNothingIsCutAfterAMinute holds a dozen exchanges open at once, so that together they cost one minute.
func TestNothingIsCutAfterAMinute(t *testing.T) {
	t.Parallel()
	n := startNode(t, nodeOptions{})
	service := serve(t, slowService)
	startAgent(t, n, agentOptions{},
		offer{Endpoint: "e", Addr: service},
		offer{Endpoint: "read", Addr: service, More: "access_log = true"},
		offer{Endpoint: "tcp", Addr: serveTCP(t, echo), Protocol: "tcp"})
	address, _ := startForward(t, n, "tcp")
	tests := map[string]func() error{
		"connection that says nothing for a minute": func() error { return idleTCP(address) },
		"WebSocket that says nothing for a minute":  func() error { return idleWebSocket(t.Context(), n.client(t)) },
		"upload by curl at 100 KB/s": func() error {
			return slowCurl(t, n, "--limit-rate", "100K", "-T", writeFile(t, "upload", strings.Repeat("u", 6_200_000)))
		},
	}
	for version, c := range n.ways(t) {
		tests["answer after a minute, "+version] = func() error { return slowAnswer(t.Context(), c) }
		tests["events for a minute, "+version] = func() error { return slowEvents(t.Context(), c) }
		tests["upload at 100 KB/s, "+version] = func() error { return slowUpload(t.Context(), c) }
	}
	var all sync.WaitGroup
	for name, f := range tests {
		all.Go(func() {
			if err := f(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	all.Wait()
}

func slowService(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/answer":
		select {
		case <-time.After(minute):
			_, _ = io.WriteString(w, "at last")
		case <-r.Context().Done():
		}
	case "/events":
		w.Header().Set("Content-Type", "text/event-stream")
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for began := time.Now(); time.Since(began) < minute; {
			if _, err := io.WriteString(w, "data: x\n\n"); err != nil || http.NewResponseController(w).Flush() != nil {
				return
			}
			<-tick.C
		}
		_, _ = io.WriteString(w, "data: end\n\n")
	case "/upload":
		k, err := io.Copy(io.Discard, r.Body)
		_, _ = fmt.Fprintf(w, "%d %v", k, err)
	default:
		echoWebSocket(w, r)
	}
}

func slowAnswer(ctx context.Context, c *http.Client) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, at("e", "/answer"), nil)
	if err != nil {
		return err
	}
	a, err := try(c, r)
	if err == nil && a.body != "at last" {
		err = fmt.Errorf("status %d: %s", a.StatusCode, a.body)
	}
	return err
}

func slowEvents(ctx context.Context, c *http.Client) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, at("e", "/events"), nil)
	if err != nil {
		return err
	}
	resp, err := c.Do(r)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	lines := bufio.NewScanner(resp.Body)
	last := ""
	for lines.Scan() {
		if lines.Text() != "" {
			last = lines.Text()
		}
	}
	if last != "data: end" {
		return errors.Join(fmt.Errorf("ended with %q", last), lines.Err())
	}
	return lines.Err()
}

// trickle is a body that gives 10 kB ten times a second for a minute.
type trickle struct {
	tick *time.Ticker
	left int
}

func newTrickle() *trickle { return &trickle{time.NewTicker(100 * time.Millisecond), 6_100_000} }

func (s *trickle) Read(p []byte) (int, error) {
	if s.left == 0 {
		s.tick.Stop()
		return 0, io.EOF
	}
	<-s.tick.C
	n := min(len(p), 10_000, s.left)
	s.left -= n
	return n, nil
}

func slowUpload(ctx context.Context, c *http.Client) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, at("e", "/upload"), newTrickle())
	if err != nil {
		return err
	}
	a, err := try(c, r)
	if err == nil && a.body != "6100000 <nil>" {
		err = fmt.Errorf("status %d: %s", a.StatusCode, a.body)
	}
	return err
}

func slowCurl(t testing.TB, n *node, args ...string) error {
	out, errs, code := curl(t, append(args, "-H", "x-piko-endpoint: e", "http://"+n.proxy+"/upload")...)
	if code != 0 || out != "6200000 <nil>" {
		return fmt.Errorf("curl exits %d with %q %s", code, out, errs)
	}
	return nil
}

func idleTCP(address string) error {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	for i := range 2 {
		if i > 0 {
			<-time.After(minute)
		}
		if _, err := io.WriteString(c, "ping"); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
			return err
		}
	}
	return nil
}

func idleWebSocket(ctx context.Context, c *http.Client) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	ws, err := webSocket(ctx, c, "/ws", websocket.DialOptions{})
	if err != nil {
		return err
	}
	defer func() { _ = ws.CloseNow() }()
	<-time.After(minute)
	if err := ws.Write(ctx, websocket.MessageText, []byte("ping")); err != nil {
		return err
	}
	_, b, err := ws.Read(ctx)
	if err == nil && string(b) != "ping" {
		err = fmt.Errorf("read %q", b)
	}
	return err
}

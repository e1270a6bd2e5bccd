package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// crowd is what clients behind a balancer do: each takes a node that is ready, and retries nothing.
type crowd struct {
	cluster *cluster
	turn    atomic.Int64
	clients []*http.Client
	ctx     context.Context
	stop    context.CancelFunc
	running sync.WaitGroup

	sent, tunnels atomic.Int64
	mu            sync.Mutex
	failures      []failure
	waits         []failure // requests of a second or more that were answered, except those that are to last
}

// failure is a request that got no right answer.
type failure struct {
	node         int
	what         string
	began, ended time.Time
	err          error
}

func (f failure) String() string {
	return fmt.Sprintf("%s through n%d at %s, after %s: %v", f.what, f.node+1, f.began.Format("05.000"),
		f.ended.Sub(f.began), f.err)
}

// loadService answers what traffic asks: at once, after some seconds, or as a WebSocket.
func loadService(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/ws":
		echoWebSocket(w, r)
		return
	case "/slow":
		reply(w, "begin ")
		_ = http.NewResponseController(w).Flush()
		select {
		case <-time.After(3 * time.Second):
		case <-r.Context().Done():
			return
		}
	}
	reply(w, "ok")
}

// startCrowd sends rate requests a second to the endpoint "e", one in a hundred of which lasts 3 s, and keeps some
// WebSockets and, through the address of a forwarder, TCP connections busy, each for 3 s at a time.
func startCrowd(t testing.TB, c *cluster, rate int, forward string) *crowd {
	f := &crowd{cluster: c}
	f.ctx, f.stop = context.WithCancel(t.Context())
	for _, m := range c.nodes {
		f.clients = append(f.clients, m.client(t))
	}
	f.running.Go(func() {
		tick := time.NewTicker(time.Second / time.Duration(rate))
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-tick.C:
				f.running.Go(func() { f.request(t, i) })
			case <-f.ctx.Done():
				return
			}
		}
	})
	for range 6 {
		f.running.Go(func() { f.repeat("WebSocket", f.webSocket) })
		if forward != "" {
			f.running.Go(func() { f.repeat("TCP", func(*http.Client) error { return stream(forward) }) })
		}
	}
	return f
}

// node is the next that the balancer would take, or -1.
func (f *crowd) node() int {
	i, err := f.cluster.pick(int(f.turn.Add(1)))
	if err != nil {
		return -1
	}
	return i
}

// request sends one, with a body as often as without, so that the client's transport can't repeat it silently.
func (f *crowd) request(t testing.TB, i int) {
	m := f.node()
	if m < 0 {
		return
	}
	began := time.Now()
	method, url, want := http.MethodGet, at("e", "/"), "ok"
	if i%100 == 0 {
		url, want = at("e", "/slow"), "begin ok"
	}
	var err error
	r, err := http.NewRequestWithContext(context.WithoutCancel(f.ctx), method, url, nil)
	if i%2 == 1 && err == nil {
		method = http.MethodPost
		r, err = http.NewRequestWithContext(context.WithoutCancel(f.ctx), method, url, strings.NewReader("body"))
	}
	if err != nil {
		t.Error(err)
		return
	}
	f.sent.Add(1)
	a, err := try(f.clients[m], r)
	if err == nil && (a.StatusCode != http.StatusOK || a.body != want) {
		err = fmt.Errorf("status %d: %q", a.StatusCode, a.body)
	}
	f.note(m, method+" "+url, began, err)
	if took := time.Since(began); err == nil && want == "ok" && took > time.Second {
		f.mu.Lock()
		f.waits = append(f.waits, failure{m, method, began, time.Now(), nil})
		f.mu.Unlock()
	}
}

func (f *crowd) note(m int, what string, began time.Time, err error) {
	if err == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failures = append(f.failures, failure{m, what, began, time.Now(), err})
}

// repeat holds one connection after the other until the traffic ends.
func (f *crowd) repeat(what string, one func(*http.Client) error) {
	for f.ctx.Err() == nil {
		m := f.node()
		if m < 0 {
			return
		}
		began := time.Now()
		f.tunnels.Add(1)
		f.note(m, what, began, one(f.clients[m]))
	}
}

// webSocket says something and hears it for 3 s, and says goodbye.
func (f *crowd) webSocket(c *http.Client) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(f.ctx), settle)
	defer cancel()
	ws, err := webSocket(ctx, c, "/ws", websocket.DialOptions{})
	if err != nil {
		return err
	}
	defer func() { _ = ws.CloseNow() }()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for range 30 {
		<-tick.C
		if err := ws.Write(ctx, websocket.MessageText, []byte("hello")); err != nil {
			return err
		}
		if _, b, err := ws.Read(ctx); err != nil || string(b) != "hello" {
			return fmt.Errorf("%q: %w", b, err)
		}
	}
	if err := ws.Close(websocket.StatusNormalClosure, ""); err != nil {
		return fmt.Errorf("goodbye: %w", err)
	}
	return nil
}

// stream does the same over TCP.
func stream(address string) error {
	c, err := net.DialTimeout("tcp", address, settle)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for range 30 {
		<-tick.C
		if _, err := io.WriteString(c, "hello"); err != nil {
			return err
		}
		b := make([]byte, 5)
		if _, err := io.ReadFull(c, b); err != nil || string(b) != "hello" {
			return fmt.Errorf("%q: %w", b, err)
		}
	}
	return nil
}

// end waits for what runs and gives what failed.
func (f *crowd) end() []failure {
	f.stop()
	f.running.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.failures
}

// complain shows the first failures.
func complain(t testing.TB, failures []failure, sent int64) {
	t.Helper()
	if len(failures) == 0 {
		return
	}
	var errs []error
	for _, f := range failures[:min(len(failures), 12)] {
		errs = append(errs, errors.New(f.String()))
	}
	t.Errorf("%d of %d requests failed: want none; the first ones:\n%v", len(failures), sent, errors.Join(errs...))
}

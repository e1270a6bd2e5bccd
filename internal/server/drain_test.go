package server_test

import (
	"errors"
	"io"
	"net"
	"net/http"
	"syscall"
	"testing"
	"time"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/websocket"
)

// running request: its body has not ended, and its service answers only then.
type request struct {
	body *io.PipeWriter
	got  chan result
}

type result struct {
	answer
	err error
}

// begin sends a request that runs until its end is called.
func (n *running) begin(endpoint string) *request {
	n.t.Helper()
	r, w := io.Pipe()
	req, err := http.NewRequestWithContext(n.t.Context(), http.MethodPost, n.url("proxy", "/"), r)
	if err != nil {
		n.t.Fatal(err)
	}
	req.Header.Set("x-piko-endpoint", endpoint)
	q := &request{body: w, got: make(chan result, 1)}
	go func() {
		resp, err := n.client.Do(req)
		if err != nil {
			q.got <- result{err: err}
			return
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		q.got <- result{answer{resp.StatusCode, resp.Header, string(body)}, err}
	}()
	if _, err := w.Write([]byte("begin")); err != nil { // returns when the transport has taken it
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { _ = w.CloseWithError(io.ErrUnexpectedEOF) })
	return q
}

func (q *request) end(t *testing.T) result {
	t.Helper()
	_ = q.body.Close()
	return await(t, "the answer", q.got)
}

// inFlight waits until so many streams are in use on an endpoint.
func (n *running) inFlight(endpoint string, want int) {
	n.t.Helper()
	eventually(n.t, "the request is on its way", func() bool {
		var x struct {
			Upstreams []struct {
				InFlight int `json:"in_flight"`
			} `json:"upstreams"`
		}
		n.status("/status/routes/"+endpoint, &x)
		return len(x.Upstreams) == 1 && x.Upstreams[0].InFlight == want
	})
}

// wantReset checks that a classic agent was told to come back, and saw a reset and no clean end.
func (c *classicAgent) wantReset(t *testing.T) {
	t.Helper()
	await(t, "the classic session ends", c.CloseChan())
	c.wire.mu.Lock()
	defer c.wire.mu.Unlock()
	_ = c.wire.Conn.SetReadDeadline(time.Now().Add(patience))
	if n, err := c.wire.Conn.Read(make([]byte, 1)); n != 0 || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the connection ends with %d bytes and %v, want a reset", n, err)
	}
	if goAway := []byte{0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2}; string(c.wire.last) != string(goAway) {
		t.Errorf("the last frame is %v, want %v", c.wire.last, goAway)
	}
}

func TestADrainFailsNothingThatRuns(t *testing.T) {
	t.Parallel()
	n := start(t, nil)
	a, old := n.agent("a1", "web"), n.classic("old", "old agent")
	n.wantEndpoints(map[string]int{"web": 1, "old": 1})
	n.ask("web").want(t, http.StatusOK, "a1") // leaves an idle stream, which must not count as running
	n.ask("old").want(t, http.StatusOK, "old agent")
	web, classic := n.begin("web"), n.begin("old")
	n.inFlight("web", 1)
	n.inFlight("old", 1)

	n.stop()
	await(t, "the agent is told", a.Draining())
	n.get(n.url("admin", "/ready")).want(t, http.StatusServiceUnavailable, "draining")
	n.get(n.url("admin", "/health")).want(t, http.StatusOK, "ok")
	_, err := n.dial("a2", "", "")
	var status *websocket.StatusError
	if !errors.As(err, &status) || status.Status != http.StatusServiceUnavailable {
		t.Errorf("an agent that comes now: %v, want 503", err)
	}
	eventually(t, "the proxy accepts nobody", func() bool {
		c, err := net.Dial("tcp", n.server.Addr("proxy").String())
		if err == nil {
			_ = c.Close()
		}
		return err != nil
	})
	select {
	case <-old.CloseChan():
		t.Error("the classic session ended before its request")
	case <-a.Done():
		t.Error("the native session ended before its request")
	case err := <-n.ended:
		t.Errorf("run ended before the requests: %v", err)
	default:
	}

	for q, want := range map[*request]string{web: "a1", classic: "old agent"} {
		got := q.end(t)
		if got.err != nil {
			t.Errorf("the running request failed: %v", got.err)
		}
		got.want(t, http.StatusOK, want)
	}
	if err := await(t, "the end", n.ended); err != nil {
		t.Errorf("run: %v", err)
	}
	old.wantReset(t)
	await(t, "the native session ends", a.Done())
}

func TestADrainEndsAtItsDeadline(t *testing.T) {
	t.Parallel()
	n := start(t, func(c *config.Pikod) { c.DrainTimeout = config.Duration(300 * time.Millisecond) })
	n.agent("a1", "web")
	old := n.classic("old", "old agent")
	n.wantEndpoints(map[string]int{"web": 1, "old": 1})
	web, classic := n.begin("web"), n.begin("old")
	n.inFlight("web", 1)
	n.inFlight("old", 1)
	n.stop()
	if err := await(t, "the end", n.ended); err != nil {
		t.Errorf("run: %v", err)
	}
	old.wantReset(t)
	for _, q := range []*request{web, classic} {
		if got := q.end(t); got.err == nil && got.status == http.StatusOK {
			t.Errorf("a request that was cut off looks complete: %v", got)
		}
	}
}

func TestTheNoticeChangesReadinessOnly(t *testing.T) {
	t.Parallel()
	n := start(t, func(c *config.Pikod) { c.DrainNotice = config.Duration(15 * time.Second) }) // in which an agent can come
	n.stop()
	eventually(t, "readiness goes off", func() bool {
		return n.get(n.url("admin", "/ready")).status == http.StatusServiceUnavailable
	})
	a := n.agent("a1", "web") // may still come
	n.ask("web").want(t, http.StatusOK, "a1")
	await(t, "the agent is told after the notice", a.Draining())
	if err := await(t, "the end", n.ended); err != nil {
		t.Errorf("run: %v", err)
	}
}

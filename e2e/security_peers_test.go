//go:build security

package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// Frames of yamux, as its specification has them.
const (
	frameData, frameWindow, framePing = 0, 1, 2
	flagSYN, flagACK                  = 1, 2
	windowAtFirst                     = 256 << 10
)

func frameOf(kind byte, flags uint16, stream, length uint32) []byte {
	b := append([]byte{0, kind}, binary.BigEndian.AppendUint16(nil, flags)...)
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(b, stream), length)
}

// badAgent is a classic agent that a test plays frame by frame.
type badAgent struct {
	net.Conn // frames, each write a message
	ws       *websocket.Conn
	sent     *atomic.Int64
}

func (n *node) badAgent(t *testing.T, endpoint string, sent *atomic.Int64) *badAgent {
	t.Helper()
	ws, _, err := websocket.Dial(t.Context(), "ws://"+n.upstream+"/piko/v1/upstream/"+endpoint, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ws.CloseNow() })
	ws.SetReadLimit(-1)
	return &badAgent{websocket.NetConn(context.WithoutCancel(t.Context()), ws, websocket.MessageBinary), ws, sent}
}

// Write counts what was sent.
func (b *badAgent) Write(p []byte) (int, error) {
	_ = b.SetWriteDeadline(time.Now().Add(10 * time.Second)) // a node that takes no more has won
	n, err := b.Conn.Write(p)
	b.sent.Add(int64(n))
	return n, err
}

// flood sends the same bytes up to count times, many at once.
func (b *badAgent) flood(count int, frame []byte) {
	const batch = 100
	all := bytes.Repeat(frame, batch)
	for range count / batch {
		if _, err := b.Write(all); err != nil {
			return
		}
	}
}

// onStreams reads what the node sends until the session ends, and calls f for each stream that it opens.
func (b *badAgent) onStreams(f func(stream uint32)) {
	head := make([]byte, 12)
	for {
		if _, err := io.ReadFull(b, head); err != nil {
			return
		}
		length := binary.BigEndian.Uint32(head[8:])
		if head[1] == frameData {
			if _, err := io.CopyN(io.Discard, b, int64(length)); err != nil {
				return
			}
		}
		if binary.BigEndian.Uint16(head[2:])&flagSYN == 0 {
			continue
		}
		if head[1] == framePing {
			_, _ = b.Write(frameOf(framePing, flagACK, 0, length))
			continue
		}
		f(binary.BigEndian.Uint32(head[4:]))
	}
}

// badPeers are the ways in which an agent can be bad. Those with asked are attacked by their own clients' requests too. With
// abuse the session must be ended by the node, for that.
var badPeers = []struct {
	name, abuse string
	asked       bool
	do          func(b *badAgent)
}{
	{"floods pings and never reads", "tunnel_ping_flood", false, func(b *badAgent) {
		b.flood(300_000, frameOf(framePing, flagSYN, 0, 1))
	}},
	{"opens streams", "agent_stream", false, func(b *badAgent) {
		b.flood(10_000, append(frameOf(frameData, flagSYN, 1, 1000), make([]byte, 1000)...))
	}},
	{"sends frames of no stream", "tunnel_glitches", false, func(b *badAgent) {
		b.flood(100_000, frameOf(frameWindow, 0, 1000, 10))
	}},
	{"sends garbage", "tunnel_protocol", false, func(b *badAgent) {
		garbage, random := make([]byte, 64<<10), rand.NewChaCha8([32]byte{1})
		_, _ = random.Read(garbage)
		garbage[0] = 7 // no version
		_, _ = b.Write(garbage)
	}},
	{"sends text", "tunnel_websocket", false, func(b *badAgent) {
		_ = b.ws.Write(context.Background(), websocket.MessageText, []byte("text"))
	}},
	{"never reads", "", true, func(*badAgent) {}},
	{"never acknowledges a stream", "", true, func(b *badAgent) { b.onStreams(func(uint32) {}) }},
	{"overflows a window", "tunnel_window", true, func(b *badAgent) {
		b.onStreams(func(id uint32) {
			_, _ = b.Write(append(frameOf(frameWindow, flagACK, id, 0), frameOf(frameWindow, 0, id, 1<<32-windowAtFirst)...))
		})
	}},
	{"sends more than the window", "tunnel_window", true, func(b *badAgent) {
		b.onStreams(func(id uint32) {
			const head = "HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n"
			_, _ = b.Write(frameOf(frameWindow, flagACK, id, 0))
			_, _ = b.Write(append(frameOf(frameData, 0, id, uint32(len(head))), head...))
			b.flood(10_000, append(frameOf(frameData, 0, id, 8000), make([]byte, 8000)...))
		})
	}},
	{"announces a large frame and keeps silent", "", true, func(b *badAgent) {
		b.onStreams(func(id uint32) {
			_, _ = b.Write(append(frameOf(frameWindow, flagACK, id, 0), frameOf(frameData, 0, id, windowAtFirst)...))
		})
	}},
}

// An agent that misbehaves costs a bounded amount of memory and its own session at most: what goes through another session
// at that time goes on, all that is asked of its services is answered, and the bad one is gone soon.
func TestSecurityBadAgentsHarmOnlyThemselves(t *testing.T) {
	const (
		peers           = 8
		classicSessions = `piko_server_sessions{kind="classic"}`
	)
	n := startNode(t, nodeOptions{
		Proxy: "access_log = false\nresponse_header_timeout = \"5s\"",
	})
	startAgent(t, n, agentOptions{}, offer{Endpoint: "web", Addr: serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/endless" {
			endless(w, r)
			return
		}
		echoBody(w, r)
	})}, offer{Endpoint: "tcp", Addr: serveTCP(t, echo), Protocol: "tcp"})
	long := get2(t, n.client(t), at("web", "/endless"))
	tcp := dialTCP(t, n, "").(io.ReadWriter)
	client := n.client(t)
	for i, bad := range badPeers {
		t.Run(bad.name, func(t *testing.T) {
			var sent atomic.Int64
			var agents []*badAgent
			for k := range peers {
				agents = append(agents, n.badAgent(t, fmt.Sprintf("bad-%d-%d", i, k), &sent))
			}
			await(t, "the bad agents", settle, func() error {
				if open := n.series(t, classicSessions); open != peers {
					return fmt.Errorf("%v sessions", open)
				}
				return nil
			})
			abuse := fmt.Sprintf("piko_server_abuses_total{reason=%q}", bad.abuse)
			before, abused := n.rss(t), n.series(t, abuse)
			stop, most := make(chan struct{}), before
			var watch, attack sync.WaitGroup
			var failed []string
			asked := 0
			watch.Go(func() {
				took, f := pace(t, client, at("web", "/"), stop)
				asked, failed = len(took), f
			})
			for k, b := range agents {
				attack.Go(func() { bad.do(b) })
				if bad.asked {
					attack.Go(func() { sent.Add(n.askBad(fmt.Sprintf("bad-%d-%d", i, k))); _ = b.ws.CloseNow() })
				}
			}
			done := make(chan struct{})
			go func() { attack.Wait(); close(done) }()
			tick := time.NewTicker(20 * time.Millisecond)
			defer tick.Stop()
			least := time.Now().Add(time.Second) // for some honest requests
			for running := true; running || time.Now().Before(least); most = max(most, n.rss(t)) {
				select {
				case <-done:
					running, done = false, nil
				case <-tick.C:
				}
			}
			if bad.abuse != "" {
				await(t, "the end of the bad sessions", 10*time.Second, func() error {
					if got := n.series(t, abuse) - abused; got != peers {
						return fmt.Errorf("%v ended for %s, want %d of\n%s", got, bad.abuse, peers, n.faults(t))
					}
					return nil
				})
			}
			close(stop)
			watch.Wait()
			for _, b := range agents {
				_ = b.ws.CloseNow()
			}
			await(t, "the bad sessions to be gone", settle, func() error {
				if open := n.series(t, classicSessions); open != 0 {
					return fmt.Errorf("%v sessions", open)
				}
				return nil
			})
			// The runtime does not collect garbage below 4 MiB.
			limit := 10*sent.Load() + peers*64<<10 + 4<<20
			t.Logf("%d honest requests beside it; %d bytes sent, %d KiB more held at most", asked, sent.Load(), (most-before)>>10)
			if len(failed) > 0 || asked == 0 {
				t.Errorf("%d of %d honest requests failed: %s", len(failed), asked, strings.Join(failed[:min(3, len(failed))], "; "))
			}
			if most-before > limit {
				t.Errorf("%d bytes make the node hold %d", sent.Load(), most-before)
			}
			mustWrite(t, tcp, "ping")
			mustRead(t, tcp, "ping")
			mustRead(t, long.Body, "more\n")
		})
	}
}

// get2 begins a request whose answer does not end.
func get2(t *testing.T, c *http.Client, url string) *http.Response {
	t.Helper()
	resp, err := c.Do(request(t, http.MethodGet, url, nil))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

// askBad sends what clients of a bad agent might, which is answered with an error or not at all, and tells how much it was.
func (n *node) askBad(endpoint string) int64 {
	const clients, size = 4, 64 << 10
	var work sync.WaitGroup
	for range clients {
		work.Go(func() {
			c := &http.Client{Timeout: 8 * time.Second, Transport: &http.Transport{DialContext: dialTo(n.proxy), DisableKeepAlives: true}}
			r, err := http.NewRequest(http.MethodPost, at(endpoint, "/"), bytes.NewReader(make([]byte, size)))
			if err != nil {
				panic(err) // of constants
			}
			if a, err := try(c, r); err == nil && a.StatusCode < http.StatusInternalServerError && !errors.Is(err, io.EOF) {
				panic(fmt.Sprintf("a bad agent answers %d", a.StatusCode))
			}
		})
	}
	work.Wait()
	return clients * size
}

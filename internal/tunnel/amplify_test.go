package tunnel

import (
	"context"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// countedConn counts what is written.
type countedConn struct {
	net.Conn
	n *atomic.Int64
}

func (c countedConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.n.Add(int64(n))
	return n, err
}

// footprint is what the process holds in its heap and its stacks.
func footprint() int64 {
	runtime.GC()
	runtime.GC() // pools give up what they hold at the second
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// A peer that misbehaves makes us hold at most ten times what it has sent, and 64 KiB, whether its session ends by it or
// not. Several do the same here, so that what is theirs stands out.
func TestSecurityAmplification(t *testing.T) {
	const peers, factor, base = 16, 10, 64 << 10
	for _, c := range []struct {
		name   string
		attack func(t *testing.T, p *badPeer)
	}{
		{"pings, never read", func(_ *testing.T, p *badPeer) {
			p.flood(20_000, makeFrame(kindPing, flagSYN, 0, 1), nil)
		}},
		{"just as many pings as are allowed, never read", func(_ *testing.T, p *badPeer) {
			p.flood(100, makeFrame(kindPing, flagSYN, 0, 1), nil)
		}},
		{"opens streams", func(_ *testing.T, p *badPeer) {
			p.flood(2000, makeFrame(kindData, flagSYN, 1, 1000), make([]byte, 1000))
		}},
		{"opens streams without data", func(_ *testing.T, p *badPeer) {
			for id := uint32(1); id < 2000; id += 2 {
				if _, err := p.Write(frameBytes(makeFrame(kindWindow, flagSYN, id, 0))); err != nil {
					return
				}
			}
		}},
		{"frames of streams that do not exist", func(_ *testing.T, p *badPeer) {
			p.flood(10_000, makeFrame(kindWindow, 0, 1000, 10), nil)
		}},
		{"overflows a window", func(t *testing.T, p *badPeer) {
			_, id := p.open(t)
			p.send(t, makeFrame(kindWindow, 0, id, 1<<32-initialWindow), nil)
		}},
		{"sends more than its window", func(t *testing.T, p *badPeer) {
			_, id := p.open(t)
			p.flood(2000, makeFrame(kindData, 0, id, 1000), make([]byte, 1000))
		}},
		{"announces a large frame and keeps silent", func(t *testing.T, p *badPeer) {
			_, id := p.open(t)
			p.send(t, makeFrame(kindData, 0, id, initialWindow), nil)
		}},
		{"never acknowledges", func(_ *testing.T, p *badPeer) {
			for range 4 {
				ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
				_, _ = p.s.Open(ctx, Header{})
				cancel()
			}
		}},
		{"garbage", func(_ *testing.T, p *badPeer) {
			src := rand.NewChaCha8([32]byte{1})
			b := make([]byte, 64<<10)
			_, _ = src.Read(b)
			_, _ = p.Write(b)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			noLeaks(t)
			var sent atomic.Int64
			var all []*badPeer
			for range peers {
				p := newBadPeer(t, NodeOptions{})
				p.mute = true
				p.Conn = countedConn{p.Conn, &sent}
				all = append(all, p)
			}
			before := footprint()
			var attacks sync.WaitGroup
			for _, p := range all {
				attacks.Go(func() { c.attack(t, p) })
			}
			attacks.Wait()
			limit := before + factor*sent.Load() + peers*base
			held := footprint()
			for deadline := time.Now().Add(testTimeout / 2); held > limit && time.Now().Before(deadline); held = footprint() {
				runtime.Gosched() // what a session held may still be on its way out
			}
			t.Logf("%d peers sent %d bytes and hold %d", peers, sent.Load(), held-before)
			if held > limit {
				t.Errorf("%d peers sent %d bytes and make us hold %d", peers, sent.Load(), held-before)
			}
			runtime.KeepAlive(all)
		})
	}
}

func frameBytes(h [frameSize]byte) []byte { return h[:] }

// Clients whose agent never reads pay for what waits for it: one of them does not make us hold more than it has sent,
// and what a stream may hold.
func TestSecurityAgentThatNeverReads(t *testing.T) {
	const streams, each = 32, 1 << 20
	noLeaks(t)
	p := newBadPeer(t, NodeOptions{})
	var all []*Stream
	for range streams {
		st, _ := p.open(t)
		all = append(all, st)
	}
	before := footprint()
	var writers sync.WaitGroup
	data := make([]byte, each)
	for _, st := range all {
		writers.Go(func() { _, _ = st.Write(data) }) // until the session ends
	}
	held := int64(0)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for range 20 { // they all wait soon
		<-tick.C
		held = max(held, footprint()-before-each)
	}
	t.Logf("%d streams hold %d bytes", streams, held)
	if held > streams*(64<<10) {
		t.Errorf("%d streams whose agent reads nothing hold %d bytes", streams, held)
	}
	_ = p.s.CloseNow(nil)
	writers.Wait()
}

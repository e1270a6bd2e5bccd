package router

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/pikoproxy/piko/internal/tunnel"
)

type nullSession struct{ closing chan struct{} }

func (nullSession) Open(context.Context, tunnel.Header) (Conn, error) { return nullConn{}, nil }
func (nullSession) ID() string                                        { return "null" }
func (s nullSession) Closing() <-chan struct{}                        { return s.closing }

type nullConn struct{ net.Conn }

func (nullConn) CloseWrite() error               { return nil }
func (nullConn) Reset() error                    { return nil }
func (nullConn) Close() error                    { return nil }
func (nullConn) SetReadDeadline(time.Time) error { return nil }

// crowded returns a router with 10,000 endpoints of n upstreams each.
func crowded(n int, p Policy) (*Router, []Key) {
	r := New(Options{Settings: Settings{Policy: p, EjectAfter: 5, RetryBudget: 0.2}})
	keys := make([]Key, 10000)
	for j := range n {
		s := nullSession{make(chan struct{})}
		for i := range keys {
			keys[i] = fmt.Sprintf("endpoint-%d", i)
			r.Add(keys[i], s, UpstreamOptions{Protocol: tunnel.ProtocolHTTP, Weight: 1 + j%2})
		}
	}
	return r, keys
}

// TestCostOfARequest is the gate on allocations: choosing costs none, and a stream from the pool one, its handle.
func TestCostOfARequest(t *testing.T) {
	ctx := t.Context()
	for _, policy := range []Policy{PolicyP2C, PolicyLocalFirst, PolicyRoundRobin} {
		r, keys := crowded(3, policy)
		req := Request{Key: keys[7], Header: tunnel.Header{Endpoint: keys[7], Protocol: tunnel.ProtocolHTTP}}
		picks := testing.AllocsPerRun(1000, func() {
			c := chooser{policy: policy, protocol: tunnel.ProtocolHTTP, now: r.now()}
			if u, _ := r.choose(&c, keys[7]); u == nil {
				t.Fatal("nothing chosen")
			}
		})
		if picks != 0 {
			t.Errorf("%s: choosing allocates %v times, want 0", policy, picks)
		}
		exchange := func() {
			s, err := r.Open(ctx, req)
			if err != nil {
				t.Fatal(err)
			}
			s.Release()
		}
		for range 100 {
			exchange() // fills the pools
		}
		if opens := testing.AllocsPerRun(1000, exchange); opens > 1 {
			t.Errorf("%s: a stream from the pool allocates %v times, want 1", policy, opens)
		}
	}
}

func BenchmarkPick(b *testing.B) {
	for _, n := range []int{1, 2, 10} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			r, keys := crowded(n, PolicyP2C)
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for i := 0; pb.Next(); i++ {
					c := chooser{policy: PolicyP2C, protocol: tunnel.ProtocolHTTP, now: 1}
					r.choose(&c, keys[i%len(keys)])
				}
			})
		})
	}
}

func BenchmarkExchange(b *testing.B) {
	r, keys := crowded(2, PolicyP2C)
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			key := keys[i%64]
			s, err := r.Open(b.Context(), Request{Key: key, Header: tunnel.Header{Protocol: tunnel.ProtocolHTTP}})
			if err != nil {
				b.Fatal(err)
			}
			s.Release()
		}
	})
}

func BenchmarkAddRemove(b *testing.B) {
	r, keys := crowded(1, PolicyP2C)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		s := nullSession{make(chan struct{})}
		r.Add(keys[i%len(keys)], s, UpstreamOptions{})
		r.RemoveSession(s)
	}
}

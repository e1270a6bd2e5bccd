package e2e

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pikoproxy/piko/internal/tunnel"
)

// fleet is a great many endpoints on few sessions, without processes and services of their own: each answers with its name.
// A session that ends is made again, to the next node that takes it.
type fleet struct {
	t       testing.TB
	ctx     context.Context
	running sync.WaitGroup
	listens atomic.Int64 // that were answered
}

const fleetSession = 1000 // endpoints on one session

// enlist offers count endpoints, named by the prefix and a number from 0, at home, and when that is gone at one of the refuges.
func (f *fleet) enlist(prefix string, count int, home *node, refuges ...*node) {
	for k := 0; k < count; k += fleetSession {
		f.running.Go(func() {
			f.serve(home.upstream, prefix, k, min(fleetSession, count-k))
			for turn := k / fleetSession; f.ctx.Err() == nil && len(refuges) > 0; turn++ {
				f.serve(refuges[turn%len(refuges)].upstream, prefix, k, min(fleetSession, count-k))
			}
		})
	}
}

// newFleet ends with its test.
func newFleet(t testing.TB) *fleet {
	ctx, cancel := context.WithCancel(context.Background())
	f := &fleet{t: t, ctx: ctx}
	t.Cleanup(func() { cancel(); f.running.Wait() })
	return f
}

// serve keeps one session to its end.
func (f *fleet) serve(upstream, prefix string, first, count int) {
	s, err := tunnel.Dial(f.ctx, tunnel.DialOptions{URL: "http://" + upstream})
	if err != nil {
		select { // another node may take it
		case <-time.After(20 * time.Millisecond):
		case <-f.ctx.Done():
		}
		return
	}
	var work sync.WaitGroup
	work.Go(func() {
		select {
		case <-s.Done():
		case <-f.ctx.Done():
			_ = s.CloseNow(context.Canceled)
		}
	})
	const writers = 100
	for w := range writers {
		work.Go(func() {
			for k := first + w; k < first+count; k += writers {
				if s.Listen(f.ctx, tunnel.Listen{Endpoint: fmt.Sprint(prefix, k)}) != nil {
					return
				}
				f.listens.Add(1)
			}
		})
	}
	for {
		in, err := s.Accept(f.ctx)
		if err != nil {
			break
		}
		work.Go(func() { answerWithName(in) })
	}
	work.Wait()
	s.Wait()
}

// answerWithName serves a stream: each request is answered with the name of the endpoint.
func answerWithName(in *tunnel.Incoming) {
	st, err := in.Accept()
	if err != nil {
		return
	}
	defer func() { _ = st.Close() }()
	name := in.Header().Endpoint
	r := bufio.NewReader(st)
	for {
		if _, err := http.ReadRequest(r); err != nil {
			return
		}
		reply(st, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(name), name)
	}
}

// holding is how many endpoints each node has, as one of them sees it.
func (n *node) holding() (map[string]int, error) {
	_, body, err := fetch("http://" + n.admin + "/status/cluster/nodes")
	if err != nil {
		return nil, err
	}
	return decodeHolding(body)
}

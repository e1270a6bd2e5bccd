package server_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/pikotest/consultest"
	"github.com/pikoproxy/piko/internal/pikotest/corpus"
	"github.com/pikoproxy/piko/internal/tunnel"
)

// lane is a cluster of two nodes: clients come to one, the agent is at the other.
type lane struct {
	front, back *running
	agent       *agent

	mu      sync.Mutex
	rec     *corpus.Recorder
	streams sync.WaitGroup
}

func newLane(t *testing.T, c *consultest.Consul, name string) *lane {
	t.Helper()
	change := func(p *config.Pikod) {
		p.Cluster.Name = name
		p.Proxy.EndpointWait = 0
		p.Proxy.Domains = []string{"piko.test"}
		p.Proxy.MaxHeaderFields = 100
	}
	l := &lane{front: member(t, c, "front", change), back: member(t, c, "back", change), rec: &corpus.Recorder{}}
	l.front.wantNodes("back up 0", "front up 0")
	l.back.wantNodes("back up 0", "front up 0")
	session, err := tunnel.Dial(t.Context(), tunnel.DialOptions{URL: l.back.url("upstream", "")})
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() { l.serve(t.Context(), session) })
	t.Cleanup(func() {
		_ = session.CloseNow(errors.New("end of the test"))
		serving.Wait()
		l.streams.Wait()
		session.Wait()
	})
	l.agent = &agent{AgentSession: session, t: t}
	return l
}

// serve passes streams to the recorder, byte for byte, as an agent does.
func (l *lane) serve(ctx context.Context, s *tunnel.AgentSession) {
	for {
		in, err := s.Accept(context.WithoutCancel(ctx))
		if err != nil {
			return
		}
		l.streams.Go(func() {
			st, err := in.Accept()
			if err != nil {
				return
			}
			l.mu.Lock()
			rec := l.rec
			l.mu.Unlock()
			rec.Serve(st)
			_ = st.Close()
		})
	}
}

// Every entry of the corpus gets the answer, and does to the service, through a second node what it does through one.
func TestCorpusThroughASecondNode(t *testing.T) {
	const lanes = 6 // nearly all of the time is spent waiting
	c := consultest.Start(t, consultest.Options{})
	all := corpus.Load(t, "../guard/testdata/http1_corpus.json")
	entries := make(chan corpus.Entry, len(all))
	for _, e := range all {
		entries <- e
	}
	close(entries)
	var wait sync.WaitGroup
	for k := range lanes {
		wait.Go(func() {
			t.Run(fmt.Sprint("lane ", k), func(t *testing.T) {
				l := newLane(t, c, fmt.Sprint("lane-", k))
				for e := range entries {
					t.Run(e.ID, func(t *testing.T) { l.try(t, e) })
				}
			})
		})
	}
	wait.Wait()
}

func (l *lane) try(t *testing.T, e corpus.Entry) {
	rec := &corpus.Recorder{}
	l.mu.Lock()
	l.rec = rec
	l.mu.Unlock()
	dial := func() net.Conn {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", l.front.server.Addr("proxy").String())
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	// Streams that were kept for another request would lead to the recorder of this one: an agent that has gone ends them.
	settle := func() {
		if err := l.agent.Unlisten("ep1"); err != nil {
			t.Error(err)
		}
		l.streams.Wait()
	}
	l.agent.listen("ep1")
	corpus.Front{Dial: dial, Recorder: rec, Settle: settle}.Try(t, e, corpus.Ways[0])
}

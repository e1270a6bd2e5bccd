//go:build security

package e2e

import (
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/pikoproxy/piko/internal/pikotest/corpus"
)

// lane is a node with a service that records, behind one agent after another.
type lane struct {
	*node
	service net.Listener
	mu      sync.Mutex
	rec     *corpus.Recorder // of the entry of the moment
	serving sync.WaitGroup
}

func newLane(t *testing.T, secure bool) *lane {
	t.Helper()
	l := &lane{service: listen(t), rec: &corpus.Recorder{}}
	proxy := "domains = [\"piko.test\"]\nendpoint_wait = \"0s\"\naccess_log = false\n"
	if secure {
		cert, key := newAuthority(t).issue(t, "ep1.piko.test")
		proxy += fmt.Sprintf("tls = {cert = %q, key = %q}\n", cert, key)
	}
	l.node = startNode(t, nodeOptions{Proxy: proxy})
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			c, err := l.service.Accept()
			if err != nil {
				return
			}
			l.mu.Lock()
			rec := l.rec
			l.serving.Add(1)
			l.mu.Unlock()
			accepting.Go(func() {
				defer l.serving.Done()
				rec.Serve(c)
				_ = c.Close()
			})
		}
	})
	t.Cleanup(accepting.Wait)
	t.Cleanup(func() { _ = l.service.Close() })
	return l
}

// try sends an entry through an agent of its own: what is still on its way when the agent has ended will never come.
func (l *lane) try(t *testing.T, e corpus.Entry, w corpus.Way) {
	rec := &corpus.Recorder{}
	l.mu.Lock()
	l.rec = rec
	l.mu.Unlock()
	agent := launchAgent(t, l.node, agentOptions{}, offer{Endpoint: "ep1", Addr: l.service.Addr().String()})
	l.awaitEndpoint(t, "ep1", 1)
	corpus.Front{
		Dial:     func() net.Conn { return connect(t, l.proxy) },
		Recorder: rec,
		Settle: func() {
			agent.signal(t, syscall.SIGTERM)
			agent.exit(t, settle)
			l.serving.Wait()
		},
	}.Try(t, e, w)
}

// Every entry of the corpus, in every way of sending, gets an answer that it may get from a real node and a real agent, and the
// service is sent what it may be sent, byte for byte: nothing that is hidden in an entry ever runs.
func TestSecurityCorpus(t *testing.T) {
	const lanes = 2 // for each way; nearly all of the time is spent waiting
	entries := corpus.Load(t, "../internal/guard/testdata/http1_corpus.json")
	var tried atomic.Int64
	var wait sync.WaitGroup
	for _, w := range corpus.Ways {
		next := make(chan corpus.Entry, len(entries))
		for _, e := range entries {
			next <- e
		}
		close(next)
		for k := range lanes {
			wait.Go(func() {
				t.Run(fmt.Sprintf("%s, lane %d", w.Name, k), func(t *testing.T) {
					l := newLane(t, w.Secure)
					for e := range next {
						t.Run(e.ID, func(t *testing.T) { l.try(t, e, w) })
						tried.Add(1)
					}
				})
			})
		}
	}
	wait.Wait()
	t.Logf("%d entries in %d ways: %d connections", len(entries), len(corpus.Ways), tried.Load())
}

package proxy

import (
	"bufio"
	"crypto/tls"
	"net"
	"net/http/httptest"
	"sync"
	"testing"

	"github.com/pikoproxy/piko/internal/pikotest/corpus"
)

// Every entry of the corpus is answered as it must be and reaches the service as it may, whichever way it is sent. What
// is hidden in one never runs.
func TestCorpus(t *testing.T) {
	borrowed := httptest.NewTLSServer(nil) // for its certificate
	t.Cleanup(borrowed.Close)
	certificates := borrowed.TLS.Certificates
	var wait sync.WaitGroup
	turn := make(chan struct{}, 48) // nearly all of the time is spent waiting
	for _, w := range corpus.Ways {
		for _, e := range corpus.Load(t, "../guard/testdata/http1_corpus.json") {
			turn <- struct{}{}
			wait.Go(func() {
				defer func() { <-turn }()
				t.Run(e.ID+" "+w.Name, func(t *testing.T) { tryEntry(t, e, w, certificates) })
			})
		}
	}
	wait.Wait()
}

func tryEntry(t *testing.T, e corpus.Entry, w corpus.Way, certificates []tls.Certificate) {
	f := newFixture(t, func(o *Options) {
		o.Domains, o.MaxHeaderFields = []string{"piko.test"}, 100
		if w.Secure {
			o.TLS = &tls.Config{Certificates: certificates, MinVersion: tls.VersionTLS12}
		}
	})
	var rec corpus.Recorder
	f.serveRaw(func(c net.Conn, _ *bufio.Reader) { rec.Serve(c) })
	dial := func() net.Conn {
		c, _ := f.dial()
		return c
	}
	corpus.Front{Dial: dial, Recorder: &rec, Settle: f.stopOnce}.Try(t, e, w)
}

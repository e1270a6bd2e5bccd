package proxy

import (
	"context"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"
)

// endingListener accepts connections that say together that they are about to end.
type endingListener struct {
	net.Listener
	ending   atomic.Bool
	accepted atomic.Int64
}

func (l *endingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.accepted.Add(1)
	return endingConn{c, &l.ending}, nil
}

type endingConn struct {
	net.Conn
	ending *atomic.Bool
}

func (c endingConn) Ending() bool { return c.ending.Load() }

func TestAnswersOnAConnectionThatIsAboutToEndAreTheLastOnes(t *testing.T) {
	f := newFixture(t, nil)
	f.serveRaw(answer("hello"))
	below, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &endingListener{Listener: below}
	served := make(chan error, 1)
	go func() { served <- f.server.Serve(context.Background(), l) }()
	f.addr = l.Addr().String()
	for name, c := range map[string]struct {
		client *http.Client
		path   string
		close  bool // said so that net/http tells; for HTTP/2 it is a GOAWAY
	}{
		"HTTP/1.1": {f.client(), "/", true}, "a refusal": {f.client(), "/_piko/none", true}, "HTTP/2": {f.h2client(), "/", false},
	} {
		l.ending.Store(false)
		ask := func() *http.Response {
			resp, err := c.client.Do(f.request(http.MethodGet, c.path, nil))
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			return resp
		}
		if resp := ask(); resp.Close {
			t.Errorf("%s: the first answer says that it is the last", name)
		}
		l.ending.Store(true)
		if resp := ask(); resp.Close != c.close {
			t.Errorf("%s: the last answer says %v", name, resp.Close)
		}
		if c.close {
			continue
		}
		// When GOAWAY has come, the client connects anew.
		before, limit := l.accepted.Load(), time.Now().Add(patience)
		for l.accepted.Load() == before && time.Now().Before(limit) {
			ask()
		}
		if l.accepted.Load() == before {
			t.Errorf("%s: the connection goes on", name)
		}
	}
	f.stopOnce()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

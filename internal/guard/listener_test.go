package guard_test

import (
	"crypto/tls"
	"net"
	"sync"
	"testing"

	"github.com/pikoproxy/piko/internal/guard"
)

// A server that is stopped while it starts closes its listener beside the first Accept. The race detector is the judge.
func TestListenerIsClosedBesideItsFirstAccept(t *testing.T) {
	for range 200 {
		inner, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		l := guard.NewListener(inner, guard.Options{TLS: &tls.Config{MinVersion: tls.VersionTLS12}})
		var both sync.WaitGroup
		both.Go(func() {
			if _, err := l.Accept(); err == nil {
				t.Error("a connection that nobody made")
			}
		})
		both.Go(func() { _ = l.Close() })
		both.Wait()
	}
}

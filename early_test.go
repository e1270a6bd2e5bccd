package piko_test

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/pikoproxy/piko"
	"github.com/pikoproxy/piko/internal/tunnel"
)

// hasty is a node that takes back an endpoint which nobody has offered yet.
type hasty struct{ tunnel.Handler }

func (h hasty) Listen(s *tunnel.Session, l tunnel.Listen) { _ = s.Listening(l.Endpoint) }

func (h hasty) Unlisten(*tunnel.Session, string)    {}
func (h hasty) Drain(*tunnel.Session, tunnel.Drain) {}
func (h hasty) Token(*tunnel.Session, string)       {}
func (h hasty) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s, err := tunnel.AcceptNative(w, r, tunnel.NodeOptions{NodeID: "n1", Handler: h})
	if err != nil {
		return
	}
	_ = s.Refuse("e", tunnel.CodeNotListening, "too early")
	<-s.Done()
}

// What a node says of an endpoint before it was offered means nothing, at whatever moment it comes.
func TestARefusalOfWhatWasNotOfferedIsPassedOver(t *testing.T) {
	node := httptest.NewServer(hasty{})
	defer node.Close()
	for range 10 {
		c := newClient(t, node.URL)
		l := listen(t, c, "e", piko.InBackground())
		eventually(t, "the node offers the endpoint", func() bool { return len(l.Nodes()) == 1 })
		_ = c.Close()
	}
}

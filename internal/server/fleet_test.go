package server_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"sync"
	"testing"

	"github.com/sirupsen/logrus/hooks/test"

	"github.com/pikoproxy/piko"
	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/server"
)

// far makes connections that come from one address elsewhere, as those of a fleet behind one router do.
type far struct{ net.Listener }

func (l far) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return farConn{c}, nil
}

type farConn struct{ net.Conn }

func (c farConn) RemoteAddr() net.Addr {
	port := c.Conn.RemoteAddr().(*net.TCPAddr).Port
	return &net.TCPAddr{IP: net.IPv4(203, 0, 113, 7), Port: port}
}

// fleet runs a node to which all agents seem to come from one address, connects as many agents at once, and waits until all
// offer their endpoints.
func fleet(t *testing.T, agents int, change func(*config.UpstreamLimits)) *running {
	t.Helper()
	c := config.DefaultPikod()
	c.Proxy.Listen, c.Upstream.Listen, c.Admin.Listen = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	change(&c.Upstream.Limits)
	log, hook := test.NewNullLogger()
	ready := make(chan struct{})
	s, err := server.New(c, server.Options{
		Log: log, Version: "test", Ready: func() { close(ready) },
		Listen: func(name, address string, _ bool) (net.Listener, error) {
			l, err := net.Listen("tcp", address)
			if err == nil && name == "upstream" {
				l = far{l}
			}
			return l, err
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	n := &running{t: t, server: s, log: hook, client: &http.Client{Transport: &http.Transport{}}, stop: cancel, settings: c}
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		n.client.CloseIdleConnections()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	await(t, "ready", ready)
	limited, done := context.WithTimeout(t.Context(), patience)
	defer done()
	var all sync.WaitGroup
	for i := range agents {
		client := &piko.Client{URL: n.url("upstream", ""), Connections: 1}
		t.Cleanup(func() { _ = client.Close() })
		all.Go(func() {
			if _, err := client.Listen(limited, fmt.Sprint("e", i), piko.InBackground()); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	eventually(t, "all agents are connected", func() bool { return len(n.endpoints()) == agents })
	return n
}

// After a failure of the network a fleet comes back at once, and often from one address.
func TestAFleetBehindOneAddressIsTakenAtOnce(t *testing.T) {
	n := fleet(t, 200, func(*config.UpstreamLimits) {})
	if got := n.rejected("upstream", "registration_rate"); got != "0" {
		t.Errorf("%s attempts were turned away by the defaults", got)
	}
}

// What is turned away comes again, after a time that chance decides, until all are there.
func TestAFleetOverTheRateOfOneAddressIsTakenInTime(t *testing.T) {
	n := fleet(t, 60, func(c *config.UpstreamLimits) { c.SessionsPerAddress, c.SessionsPerAddressBurst = 20, 10 })
	if n.rejected("upstream", "registration_rate") == "0" {
		t.Error("nobody was turned away")
	}
	n.wantLogged(t, "agent refused", "setting", "upstream.limits.sessions_per_address")
}

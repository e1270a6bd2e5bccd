package server

import (
	"context"
	"crypto/tls"
	"net/netip"
	"testing"
	"time"

	"github.com/sirupsen/logrus/hooks/test"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/tlsconf"
)

// The networks that nodes may come from are those of a cluster, and seldom 127.0.0.0/8: there two processes of one node meet.
func TestNetworksOfNodesDoNotKeepAHandoverApart(t *testing.T) {
	for name, change := range map[string]func(*config.Cluster){
		"allow": func(c *config.Cluster) { c.Allow = config.CIDRs{netip.MustParsePrefix("192.0.2.0/24")} },
		"deny":  func(c *config.Cluster) { c.Deny = config.CIDRs{netip.MustParsePrefix("127.0.0.0/8")} },
	} {
		t.Run(name, func(t *testing.T) {
			c := config.DefaultPikod()
			c.Proxy.Listen, c.Upstream.Listen, c.Admin.Listen = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
			change(&c.Cluster)
			log, _ := test.NewNullLogger()
			ready := make(chan struct{})
			s, err := New(c, Options{Log: log, Version: "test", Ready: func() { close(ready) }})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			ended := make(chan error, 1)
			go func() { ended <- s.Run(ctx) }()
			defer func() {
				cancel()
				if err := <-ended; err != nil {
					t.Error(err)
				}
			}()
			select {
			case <-ready:
			case <-ctx.Done():
				t.Fatal("never ready")
			}
			offer, err := heir{s}.Offer(ctx)
			if err != nil {
				t.Fatal(err)
			}
			k, ok := offer.(kin)
			if !ok {
				t.Fatalf("offers a %T", offer)
			}
			_, client, err := tlsconf.Secret(k.Secret, pairName, "http/1.1")
			if err != nil {
				t.Fatal(err)
			}
			conn, err := (&tls.Dialer{Config: client}).DialContext(ctx, "tcp", k.Addr)
			if err != nil {
				t.Fatalf("the next process is turned away: %v", err)
			}
			_ = conn.Close()
		})
	}
}

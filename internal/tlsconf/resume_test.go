package tlsconf_test

import (
	"crypto/tls"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/tlsconf"
)

// visit opens one connection, lets a byte come, and reports whether its session was resumed.
func visit(addr string, c *tls.Config) (resumed bool, err error) {
	conn, err := tls.Dial("tcp", addr, c)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	_, err = io.ReadFull(conn, make([]byte, 1)) // after it the ticket is there, and a refusal too
	return conn.ConnectionState().DidResume, err
}

// A session that was begun under one CA must not be resumed when another has taken its place: crypto/tls itself had this
// fault (CVE-2025-68121), and would hand on ticket keys from one configuration to the next.
func TestCVE_2025_68121_NoSessionOutlivesItsCA(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			own, old, next := newAuthority(t, "servers"), newAuthority(t, "old clients"), newAuthority(t, "new clients")
			cert, key := own.issue(t, time.Hour, "localhost")
			under := func(ca *authority) *tls.Config {
				c, err := tlsconf.Server("proxy.tls", config.TLS{Cert: cert, Key: key, ClientCA: ca.file, MinVersion: "1.2"})
				if err != nil {
					t.Fatal(err)
				}
				return c
			}
			var current atomic.Pointer[tls.Config]
			current.Store(under(old))
			// As the proxy does it: one configuration for the life of the listener asks for that of the moment.
			l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
				GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return current.Load(), nil },
			})
			if err != nil {
				t.Fatal(err)
			}
			served := make(chan struct{})
			go func() {
				defer close(served)
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					go func(c net.Conn) {
						_, _ = c.Write([]byte("x"))
						_ = c.Close()
					}(c)
				}
			}()
			defer func() { _ = l.Close(); <-served }()
			clientCert, clientKey := old.issue(t, time.Hour, "client")
			client, err := tlsconf.Client("connect.tls", config.ClientTLS{Cert: clientCert, Key: clientKey, CA: own.file, ServerName: "localhost"})
			if err != nil {
				t.Fatal(err)
			}
			client.ClientSessionCache, client.MaxVersion = tls.NewLRUClientSessionCache(4), version
			if _, err := visit(l.Addr().String(), client); err != nil {
				t.Fatal(err)
			}
			if resumed, err := visit(l.Addr().String(), client); err != nil || !resumed {
				t.Fatalf("under the same CA: resumed %v, %v; want it resumed, else this test shows nothing", resumed, err)
			}
			current.Store(under(next))
			if resumed, err := visit(l.Addr().String(), client); err == nil {
				t.Errorf("a client of the old CA was let in, resumed %v", resumed)
			}
		})
	}
}

func TestExpires(t *testing.T) {
	a := newAuthority(t, "ca")
	long, longKey := a.issue(t, 10*time.Hour, "long.test")
	short, shortKey := a.issue(t, time.Hour, "short.test")
	c, err := tlsconf.Server("proxy.tls", config.TLS{
		Cert: long, Key: longKey, Certificates: []config.Certificate{{Cert: short, Key: shortKey}},
	})
	if err != nil {
		t.Fatal(err)
	}
	at, life, ok := tlsconf.Expires(c)
	if left := time.Until(at); !ok || left > time.Hour || left < 59*time.Minute || life < 3*time.Hour-time.Second {
		t.Errorf("Expires = %v, %v, %v; want an hour from now, of three in all", at, life, ok)
	}
	if _, _, ok := tlsconf.Expires(nil); ok {
		t.Error("plain text expires")
	}
}

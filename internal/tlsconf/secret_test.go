package tlsconf_test

import (
	"crypto/tls"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/pikoproxy/piko/internal/tlsconf"
)

// meet connects two configurations over a socket and returns what each end thinks of it, after a byte went each way.
func meet(t *testing.T, server, client *tls.Config) (serverErr, clientErr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	talk := func(c *tls.Conn) error {
		defer c.Close()
		if err := c.Handshake(); err != nil {
			return err
		}
		if _, err := c.Write([]byte("x")); err != nil {
			return err
		}
		_, err := io.ReadFull(c, make([]byte, 1))
		return err
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		c, err := l.Accept()
		if err != nil {
			serverErr = err
			return
		}
		serverErr = talk(tls.Server(c, server))
	})
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	clientErr = talk(tls.Client(c, client))
	wg.Wait()
	return serverErr, clientErr
}

func secretOf(t *testing.T, secret, name string) (server, client *tls.Config) {
	t.Helper()
	server, client, err := tlsconf.Secret(secret, name, "http/1.1")
	if err != nil {
		t.Fatal(err)
	}
	return server, client
}

func TestOnlyThoseWithTheSecretMeet(t *testing.T) {
	right := strings.Repeat("s", 32)
	server, client := secretOf(t, right, "piko")
	other, _ := secretOf(t, right, "piko")
	if s, c := meet(t, other, client); s != nil || c != nil {
		t.Errorf("two nodes with the same secret: %v, %v", s, c)
	}
	wrongServer, wrongClient := secretOf(t, right+"x", "piko")
	elsewhereServer, elsewhereClient := secretOf(t, right, "other")
	for name, stranger := range map[string]*tls.Config{
		"another secret":      wrongClient,
		"another cluster":     elsewhereClient,
		"no certificate":      {InsecureSkipVerify: true},
		"TLS 1.2":             {InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12, Certificates: client.Certificates},
		"a resumed session":   {InsecureSkipVerify: true, ClientSessionCache: tls.NewLRUClientSessionCache(1)},
		"its own certificate": {InsecureSkipVerify: true, Certificates: wrongServer.Certificates},
	} {
		if s, c := meet(t, server, stranger); s == nil || c == nil {
			t.Errorf("client with %s: server says %v, client %v; want errors", name, s, c)
		}
	}
	for name, impostor := range map[string]*tls.Config{"another secret": wrongServer, "another cluster": elsewhereServer} {
		if _, c := meet(t, impostor, client); c == nil {
			t.Errorf("a server with %s was accepted", name)
		}
	}
}

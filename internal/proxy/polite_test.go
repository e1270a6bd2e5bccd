package proxy

import (
	"context"
	"net"
	"net/http"
	"testing"

	"github.com/pikoproxy/piko/internal/socket"
)

// wrapping is a listener whose connections are read and written by package socket, as they are behind the limits.
type wrapping struct {
	net.Listener
	conns chan *socket.Conn
}

func (l wrapping) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c, ok := socket.Wrap(conn).(*socket.Conn)
	if !ok {
		return nil, net.ErrClosed
	}
	l.conns <- c
	return c, nil
}

// Answers on one connection of HTTP/2 that are ready together are to be written together. One of HTTP/1.1 has one at a time.
func TestConnectionsOfHTTP2GiveWay(t *testing.T) {
	f := newFixture(t, nil)
	f.serveHTTP(func(http.ResponseWriter, *http.Request) {})
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := wrapping{raw, make(chan *socket.Conn, 2)}
	over := make(chan error, 1)
	go func() { over <- f.server.Serve(context.Background(), l) }()
	f.addr = raw.Addr().String()
	for version, client := range map[int]*http.Client{1: f.client(), 2: f.h2client()} {
		resp, err := client.Do(f.request("GET", "/", nil))
		if err != nil || resp.StatusCode != 200 || resp.ProtoMajor != version {
			t.Fatal(resp, err)
		}
		readAll(t, resp)
		if c := await(t, l.conns, "a connection"); c.GivesWay() != (version == 2) {
			t.Errorf("a connection of HTTP/%d gives way: %t", version, c.GivesWay())
		}
	}
	raw.Close()
	await(t, over, "end of Serve")
}

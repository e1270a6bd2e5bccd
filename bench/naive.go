package main

import (
	"errors"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"
	// House rule: the yardstick is yamux itself, without what internal/tunnel does around it.
	"github.com/hashicorp/yamux"
)

// A tunnel in the plainest way that works: yamux over a WebSocket library, one message for each write, one stream for each
// connection. It is the yardstick for what joining writes is worth, and its three roles are those of pikod, piko-agent and
// piko-forward.

// messageConn makes a byte stream of a WebSocket, for yamux.
type messageConn struct {
	*websocket.Conn
	rest io.Reader
}

// Read reads from the current message, or the next.
func (c *messageConn) Read(p []byte) (int, error) {
	for {
		if c.rest == nil {
			_, r, err := c.NextReader()
			if err != nil {
				return 0, err
			}
			c.rest = r
		}
		n, err := c.rest.Read(p)
		if errors.Is(err, io.EOF) {
			c.rest, err = nil, nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// Write sends one message.
func (c *messageConn) Write(p []byte) (int, error) {
	if err := c.WriteMessage(websocket.BinaryMessage, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

func serveNaive(l net.Listener) error {
	var agent atomic.Pointer[yamux.Session]
	upgrade := websocket.Upgrader{}
	mux := http.NewServeMux()
	mux.HandleFunc("/agent", func(w http.ResponseWriter, r *http.Request) {
		c, err := upgrade.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		if s, err := yamux.Client(&messageConn{Conn: c}, quiet()); err == nil {
			agent.Store(s)
		}
	})
	mux.HandleFunc("/tcp", func(w http.ResponseWriter, r *http.Request) {
		session := agent.Load()
		if session == nil {
			http.Error(w, "no agent", http.StatusServiceUnavailable)
			return
		}
		c, err := upgrade.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		stream, err := session.Open()
		if err != nil {
			_ = c.Close()
			return
		}
		join(&messageConn{Conn: c}, stream)
	})
	server := http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	return server.Serve(l)
}

func runNaiveAgent(server, service string) error {
	c, err := dialMessages("ws://" + server + "/agent")
	if err != nil {
		return err
	}
	session, err := yamux.Server(c, quiet())
	if err != nil {
		return err
	}
	return serveRelay(session, service)
}

func serveNaiveForward(l net.Listener, server string) error {
	return serve(l, func(c net.Conn) {
		if m, err := dialMessages("ws://" + server + "/tcp"); err == nil {
			join(c, m)
		}
	})
}

func dialMessages(url string) (*messageConn, error) {
	c, res, err := websocket.DefaultDialer.Dial(url, nil)
	if err != nil {
		return nil, err
	}
	_ = res.Body.Close()
	return &messageConn{Conn: c}, nil
}

func quiet() *yamux.Config {
	c := yamux.DefaultConfig()
	c.LogOutput = io.Discard
	return c
}

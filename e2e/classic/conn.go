package classic

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync"
	"time"

	"github.com/coder/websocket"
)

// Dial reaches a TCP endpoint through the proxy listener at base, as the originals' forwarder does: every binary
// message is a piece of the byte stream. A refusal is a *StatusError. The connection lives no longer than ctx; it has
// no deadlines of its own.
func Dial(ctx context.Context, base, endpoint, token string) (net.Conn, error) {
	header := http.Header{}
	if token != "" {
		header.Set("Authorization", "Bearer "+token)
	}
	c, err := dial(ctx, base+"/_piko/v1/tcp/"+endpoint, header)
	if err != nil {
		return nil, err
	}
	c.polite = true
	return c, nil
}

// conn is a byte stream over the binary messages of a WebSocket.
type conn struct {
	ws            *websocket.Conn
	ctx           context.Context
	cancel        context.CancelFunc
	local, remote net.Addr
	polite        bool
	reader        io.Reader // the message being read; only Read touches it

	mu  sync.Mutex
	err error // the first error of Read
}

var _ net.Conn = (*conn)(nil)

func dial(ctx context.Context, url string, header http.Header) (*conn, error) {
	handshake, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	c := &conn{}
	handshake = httptrace.WithClientTrace(handshake, &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) {
		c.local, c.remote = i.Conn.LocalAddr(), i.Conn.RemoteAddr()
	}})
	// One transport for one connection: the environment's proxies and other connections have no part in it.
	client := &http.Client{Transport: &http.Transport{}}
	//nolint:bodyclose // the library keeps no body open: it is the connection, or read already
	ws, resp, err := websocket.Dial(handshake, websocketURL(url), &websocket.DialOptions{
		HTTPClient: client, HTTPHeader: header, CompressionMode: websocket.CompressionDisabled,
	})
	if err != nil {
		if resp == nil {
			return nil, fmt.Errorf("dial %s: %w", url, err)
		}
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		return nil, &StatusError{Status: resp.StatusCode, Body: string(body)}
	}
	ws.SetReadLimit(-1)
	c.ws = ws
	c.ctx, c.cancel = context.WithCancel(ctx)
	return c, nil
}

// Read gives the bytes of the messages in order. A text message is an error, as it was in the originals.
func (c *conn) Read(p []byte) (int, error) {
	for {
		if c.reader == nil {
			kind, r, err := c.ws.Reader(c.ctx)
			if err == nil && kind != websocket.MessageBinary {
				err = fmt.Errorf("message of kind %s: want binary", kind)
			}
			if err != nil {
				return 0, c.fail(err)
			}
			c.reader = r
		}
		n, err := c.reader.Read(p)
		if errors.Is(err, io.EOF) {
			c.reader, err = nil, nil
		}
		if err != nil {
			err = c.fail(err)
		}
		if n > 0 || err != nil || len(p) == 0 {
			return n, err
		}
	}
}

func (c *conn) fail(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
	}
	return err
}

// cause prefers what ended the reading of the connection to what the layer above made of it.
func (c *conn) cause(above error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	return above
}

// Write sends p as one binary message.
func (c *conn) Write(p []byte) (int, error) {
	if err := c.ws.Write(c.ctx, websocket.MessageBinary, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Close ends the connection: with a Close frame when it is a client's, without one when it is an agent's.
func (c *conn) Close() error {
	defer c.cancel()
	if c.polite {
		return c.ws.Close(websocket.StatusNormalClosure, "")
	}
	return c.ws.CloseNow()
}

// LocalAddr is the address of the socket here.
func (c *conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr is the address of the socket there.
func (c *conn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline does nothing, like the two below: the library takes contexts, not deadlines, and yamux has deadlines of
// its own for streams.
func (c *conn) SetDeadline(time.Time) error { return nil }

// SetReadDeadline does nothing.
func (c *conn) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline does nothing.
func (c *conn) SetWriteDeadline(time.Time) error { return nil }

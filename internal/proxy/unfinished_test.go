package proxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// The time for a head is none for the body behind it.
func TestUploadLongerThanHeaderTimeout(t *testing.T) {
	patiently(t, func(limit time.Duration) error { return longUpload(t, limit) })
}

func longUpload(t *testing.T, limit time.Duration) error {
	f := newFixture(t, func(o *Options) { o.ReadHeaderTimeout = limit })
	f.serveHTTP(func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprintf(w, "%d bytes, %v", n, err)
	})
	for _, size := range []int{10, 20000} { // one that is read in advance, and one that is not
		c, br := f.dial()
		body := strings.Repeat("z", size)
		fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: ep1.piko.test\r\nContent-Length: %d\r\n\r\n%s", size, body[:size/2])
		// A client that came later has had its time for a head, so this one has too.
		_, idle := f.dial()
		if _, err := idle.ReadByte(); err == nil || isTimeout(err) {
			return errors.New("a silent client was not sent away")
		}
		io.WriteString(c, body[size/2:])
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			return err
		}
		if have, want := readAll(t, resp), fmt.Sprintf("%d bytes, <nil>", size); have != want {
			return fmt.Errorf("%s %s, want %s", resp.Status, have, want)
		}
	}
	return nil
}

// A switch of protocols that nobody asked for may come while the body of the request is still being sent.
func TestUnaskedSwitchBeforeTheBodyEnds(t *testing.T) {
	f := newFixture(t, nil)
	f.serveRaw(func(c net.Conn, br *bufio.Reader) {
		if _, err := readRequestHead(br); err == nil {
			io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")
			io.Copy(io.Discard, br)
		}
	})
	for range 20 {
		c, br := f.dial()
		fmt.Fprint(c, "POST / HTTP/1.1\r\nHost: ep1.piko.test\r\nContent-Length: 200000\r\n\r\n")
		go func() { // ends with the connection
			for range 20 {
				io.WriteString(c, strings.Repeat("z", 10000))
			}
		}()
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		if body := readAll(t, resp); resp.StatusCode != http.StatusBadGateway || !strings.Contains(body, "PIKO-E4006") {
			t.Fatalf("%s %s", resp.Status, body)
		}
		c.Close()
	}
}

// heldConn is a client's connection on which the first answer is not written before it may.
type heldConn struct {
	net.Conn
	writing, may, closed chan struct{}
	once                 sync.Once
}

func (c *heldConn) Write(p []byte) (int, error) {
	close(c.writing)
	select {
	case <-c.may:
		return c.Conn.Write(p)
	case <-c.closed:
		return 0, net.ErrClosed
	}
}

func (c *heldConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// heldListener accepts one connection.
type heldListener struct {
	net.Listener
	conns chan *heldConn
}

func (l heldListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	held := &heldConn{Conn: c, writing: make(chan struct{}), may: make(chan struct{}), closed: make(chan struct{})}
	l.conns <- held
	return held, nil
}

// The service has answered, but the answer has not gone out yet.
func TestShutdownWaitsForWhatIsBeingWritten(t *testing.T) {
	f := newFixture(t, nil)
	f.serveRaw(answer("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"))
	below, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := heldListener{below, make(chan *heldConn, 1)}
	served := make(chan error, 1)
	go func() { served <- f.server.Serve(context.Background(), l) }()
	f.addr = below.Addr().String()
	c, br := f.dial()
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: ep1.piko.test\r\n\r\n")
	held := await(t, l.conns, "accepting")
	await(t, held.writing, "writing")
	done := make(chan struct{})
	go func() {
		f.stopOnce()
		close(done)
	}()
	select {
	case <-held.closed:
		t.Error("cut off while it was being written")
	case <-time.After(2 * lastCall):
	}
	close(held.may)
	if _, err := http.ReadResponse(br, nil); err != nil {
		t.Error(err)
	}
	await(t, done, "the end")
	if err := await(t, served, "the end of the listener"); err != nil {
		t.Error(err)
	}
}

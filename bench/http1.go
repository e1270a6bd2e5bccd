package main

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

// question is what an HTTP/1.1 client asks, again and again.
type question struct {
	addr, host, path string
	upload           int  // bytes to send with it
	fresh            bool // on a new connection each time
	tls              bool
}

func (q question) bytes() []byte {
	var b strings.Builder
	method := "GET"
	if q.upload > 0 {
		method = "POST"
	}
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: bench\r\nAccept: */*\r\n", method, q.path, q.host)
	if q.fresh {
		b.WriteString("Connection: close\r\n")
	}
	if q.upload > 0 {
		fmt.Fprintf(&b, "Content-Length: %d\r\n", q.upload)
	}
	b.WriteString("\r\n")
	b.WriteString(strings.Repeat("x", q.upload))
	return []byte(b.String())
}

// http1 is a client that knows of HTTP/1.1 what the answers here need: a length or chunks, and nothing after the end.
type http1 struct {
	q     question
	ask   []byte
	conn  net.Conn // nil between exchanges if each has a connection of its own
	limit time.Time
	buf   []byte
}

func openHTTP1(q question) func(time.Time) (client, error) {
	return func(limit time.Time) (client, error) {
		c := &http1{q: q, ask: q.bytes(), limit: limit, buf: make([]byte, 32<<10)}
		if q.fresh {
			return c, nil
		}
		return c, c.connect()
	}
}

func (c *http1) connect() error {
	conn, err := dial(c.q.addr, c.limit)
	if err != nil {
		return err
	}
	if c.q.tls {
		t := tls.Client(conn, &tls.Config{
			InsecureSkipVerify: true, //nolint:gosec // G402: the certificate is a throw-away of this run
			NextProtos:         []string{"http/1.1"},
		})
		if err := t.Handshake(); err != nil {
			return errors.Join(err, conn.Close())
		}
		conn = t
	}
	c.conn = conn
	return nil
}

func (c *http1) step(m *meter) error {
	began := time.Now()
	if c.q.fresh {
		if err := c.connect(); err != nil {
			return err
		}
		defer c.close()
	}
	if _, err := c.conn.Write(c.ask); err != nil {
		return err
	}
	n, err := c.answer()
	if err != nil {
		return err
	}
	m.moved(n + c.q.upload)
	m.exchanged(began)
	return nil
}

func (c *http1) close() {
	if c.conn != nil {
		_ = c.conn.Close()
	}
}

// answer reads one answer to its end and returns the size of its body.
func (c *http1) answer() (int, error) {
	have, end := 0, -1
	for end < 0 {
		if have == len(c.buf) {
			return 0, errors.New("the head of the answer is too long")
		}
		n, err := c.conn.Read(c.buf[have:])
		if n == 0 && err != nil {
			return 0, err
		}
		have += n
		end = bytes.Index(c.buf[:have], []byte("\r\n\r\n"))
	}
	head, body := c.buf[:end], have-end-4
	if !bytes.HasPrefix(head, []byte("HTTP/1.1 200 ")) {
		return 0, fmt.Errorf("the answer is %.300q", c.buf[:have])
	}
	length, err := bodyLength(head)
	if err != nil {
		return 0, err
	}
	if length < 0 {
		return c.chunks(bytes.Clone(c.buf[end+4 : have]))
	}
	for rest := length - body; rest != 0; {
		if rest < 0 {
			return 0, errors.New("more came than the answer")
		}
		n, err := c.conn.Read(c.buf[:min(rest, len(c.buf))])
		if n == 0 && err != nil {
			return 0, err
		}
		rest -= n
	}
	return length, nil
}

// bodyLength reads Content-Length; -1 means chunks.
func bodyLength(head []byte) (int, error) {
	for line := range bytes.SplitSeq(head, []byte("\r\n")) {
		name, value, _ := bytes.Cut(line, []byte(":"))
		switch {
		case len(name) == len("content-length") && strings.EqualFold(string(name), "content-length"):
			return strconv.Atoi(string(bytes.TrimSpace(value)))
		case len(name) == len("transfer-encoding") && strings.EqualFold(string(name), "transfer-encoding"):
			return -1, nil
		}
	}
	return 0, fmt.Errorf("the answer has no length: %.300q", head)
}

// chunks reads until the last chunk. The bodies here are made of one letter, so its mark cannot be part of them.
func (c *http1) chunks(first []byte) (int, error) {
	size, last := len(first), first
	for !bytes.HasSuffix(last, []byte("0\r\n\r\n")) {
		n, err := c.conn.Read(c.buf)
		if n == 0 && err != nil {
			return 0, err
		}
		size += n
		last = append(last[max(len(last)-5, 0):], c.buf[max(n-5, 0):n]...)
	}
	return size, nil
}

// openWebSocket echoes short messages.
func openWebSocket(addr, host string) func(time.Time) (client, error) {
	return func(limit time.Time) (client, error) {
		conn, err := dial(addr, limit)
		if err != nil {
			return nil, err
		}
		c := &echo{conn: conn, send: messageFrame(bytes.Repeat([]byte("x"), smallBody)), receive: make([]byte, 2+smallBody)}
		_, err = fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
			"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", host)
		if err == nil {
			err = readSwitch(conn)
		}
		if err != nil {
			return nil, errors.Join(err, conn.Close())
		}
		return c, nil
	}
}

// readSwitch reads the head of a 101, byte by byte since what follows is not its business.
func readSwitch(r io.Reader) error {
	var head []byte
	for b := make([]byte, 1); !bytes.HasSuffix(head, []byte("\r\n\r\n")) && len(head) < 4096; head = append(head, b...) {
		if _, err := io.ReadFull(r, b); err != nil {
			return err
		}
	}
	if !bytes.HasPrefix(head, []byte("HTTP/1.1 101 ")) {
		return fmt.Errorf("the answer to an upgrade is %q", head)
	}
	return nil
}

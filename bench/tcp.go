package main

import (
	"bytes"
	"errors"
	"io"
	"net"
	"time"
)

// echo sends a message and waits until as much as it expects has come back.
type echo struct {
	conn          net.Conn
	send, receive []byte
}

func openEcho(addr string) func(time.Time) (client, error) {
	return func(limit time.Time) (client, error) {
		conn, err := dialMode(addr, modeEcho, limit)
		if err != nil {
			return nil, err
		}
		return &echo{conn: conn, send: bytes.Repeat([]byte("x"), smallBody), receive: make([]byte, smallBody)}, nil
	}
}

func (c *echo) step(m *meter) error {
	began := time.Now()
	if _, err := c.conn.Write(c.send); err != nil {
		return err
	}
	if _, err := io.ReadFull(c.conn, c.receive); err != nil {
		return err
	}
	m.moved(len(c.receive))
	m.exchanged(began)
	return nil
}

func (c *echo) close() { _ = c.conn.Close() }

// transfer moves blocks in one direction as fast as they go.
type transfer struct {
	conn  net.Conn
	block []byte
	up    bool
}

func openTransfer(addr string, up bool) func(time.Time) (client, error) {
	return func(limit time.Time) (client, error) {
		mode := byte(modePour)
		if up {
			mode = modeSink
		}
		conn, err := dialMode(addr, mode, limit)
		if err != nil {
			return nil, err
		}
		return &transfer{conn: conn, block: make([]byte, 4*blockSize), up: up}, nil
	}
}

func (c *transfer) step(m *meter) error {
	began := time.Now()
	move := c.conn.Read
	if c.up {
		move = c.conn.Write
	}
	n, err := move(c.block)
	if n > 0 {
		m.moved(n)
		m.exchanged(began)
		return nil
	}
	return err
}

func (c *transfer) close() { _ = c.conn.Close() }

func dialMode(addr string, mode byte, limit time.Time) (net.Conn, error) {
	conn, err := dial(addr, limit)
	if err != nil {
		return nil, err
	}
	if _, err := conn.Write([]byte{mode}); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// beside opens clients that share the way with a download that goes on all the time: as fast as it can, or at slowRate.
func beside(q question, slow bool) func(time.Time) (client, error) {
	first := true
	return func(limit time.Time) (client, error) {
		c, err := openHTTP1(q)(limit)
		if err != nil || !first {
			return c, err
		}
		first = false
		conn, err := dial(q.addr, limit)
		if err != nil {
			c.close()
			return nil, err
		}
		bulk := q
		bulk.path = "/bulk"
		if _, err := conn.Write(bulk.bytes()); err != nil {
			c.close()
			return nil, errors.Join(err, conn.Close())
		}
		go func() { // ends when the client below closes the connection
			block := make([]byte, blockSize)
			for {
				if _, err := conn.Read(block); err != nil {
					return
				}
				if slow {
					time.Sleep(slowPause)
				}
			}
		}()
		return &companion{c, conn}, nil
	}
}

// slowPause is between two reads of a slow reader: 64 KiB each second.
const slowPause = time.Second

// companion is a client with a download beside it.
type companion struct {
	client
	download net.Conn
}

func (c *companion) close() {
	_ = c.download.Close()
	c.client.close()
}

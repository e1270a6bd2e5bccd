package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/net/http2"
)

// http2Client keeps a number of requests running on one connection. It writes the frames itself and looks at the headers of an
// answer no further than :status, since a full client would take more of the machine than what is measured.
type http2Client struct {
	conn    net.Conn
	in      *bufio.Reader
	out     *bufio.Writer // flushed before waiting
	framer  *http2.Framer
	headers []byte
	body    []byte // sent with each request; nil: none
	streams int
	next    uint32
	began   map[uint32]time.Time // by stream, of what runs
	unacked uint32               // bytes of bodies not yet given back to the window of the connection
}

// openHTTP2 makes clients that ask for / or, with calls, make calls of gRPC with one message each way.
func openHTTP2(addr, host string, streams int, calls bool) func(time.Time) (client, error) {
	return func(limit time.Time) (client, error) {
		conn, err := dial(addr, limit)
		if err != nil {
			return nil, err
		}
		c := &http2Client{conn: conn, streams: streams, next: 1, began: map[uint32]time.Time{}}
		c.in, c.out = bufio.NewReaderSize(conn, 16<<10), bufio.NewWriterSize(conn, 16<<10)
		c.framer = http2.NewFramer(c.out, c.in)
		// :method GET, :scheme http, :path /
		c.headers = literals([]byte{0x82, 0x86, 0x84}, [2]string{":authority", host}, [2]string{"user-agent", "bench"})
		if calls {
			// :method POST
			c.headers = literals([]byte{0x83, 0x86}, [2]string{":path", "/bench.Echo/Call"}, [2]string{":authority", host},
				[2]string{"user-agent", "bench"}, [2]string{"content-type", "application/grpc"}, [2]string{"te", "trailers"})
			c.body = message
		}
		_, err = io.WriteString(c.out, http2.ClientPreface)
		if err == nil {
			err = c.framer.WriteSettings(http2.Setting{ID: http2.SettingEnablePush, Val: 0})
		}
		if err != nil {
			return nil, errors.Join(err, conn.Close())
		}
		return c, nil
	}
}

func (c *http2Client) close() { _ = c.conn.Close() }

// step keeps the requests running and handles one frame.
func (c *http2Client) step(m *meter) error {
	for len(c.began) < c.streams {
		id := c.next
		c.next += 2
		c.began[id] = time.Now()
		p := http2.HeadersFrameParam{StreamID: id, BlockFragment: c.headers, EndStream: c.body == nil, EndHeaders: true}
		if err := c.framer.WriteHeaders(p); err != nil {
			return err
		}
		if c.body == nil {
			continue
		}
		if err := c.framer.WriteData(id, true, c.body); err != nil {
			return err
		}
	}
	if c.in.Buffered() == 0 {
		if err := c.out.Flush(); err != nil {
			return err
		}
	}
	frame, err := c.framer.ReadFrame()
	if err != nil {
		return err
	}
	switch f := frame.(type) {
	case *http2.SettingsFrame:
		if !f.IsAck() {
			return c.framer.WriteSettingsAck()
		}
	case *http2.PingFrame:
		if !f.IsAck() {
			return c.framer.WritePing(true, f.Data)
		}
	case *http2.RSTStreamFrame:
		return fmt.Errorf("stream %d was reset: %s", f.StreamID, f.ErrCode)
	case *http2.GoAwayFrame:
		return fmt.Errorf("the server goes away: %s", f.ErrCode)
	case *http2.HeadersFrame:
		if trailers := c.body != nil && f.StreamEnded(); !trailers && !ok(f.HeaderBlockFragment()) {
			return fmt.Errorf("the answer is not 200: % x", f.HeaderBlockFragment())
		}
		c.ended(m, f.StreamID, f.StreamEnded())
	case *http2.DataFrame:
		c.unacked += f.Length
		m.moved(len(f.Data()))
		c.ended(m, f.StreamID, f.StreamEnded())
	}
	if c.unacked < 16<<10 {
		return nil
	}
	defer func() { c.unacked = 0 }()
	return c.framer.WriteWindowUpdate(0, c.unacked)
}

func (c *http2Client) ended(m *meter, stream uint32, end bool) {
	if !end {
		return
	}
	m.exchanged(c.began[stream])
	delete(c.began, stream)
}

// ok looks for the byte that means :status 200, which stands first, or behind one change of the table's size.
func ok(headers []byte) bool {
	for len(headers) > 1 && headers[0]&0xe0 == 0x20 {
		headers = headers[1:]
	}
	return len(headers) > 0 && headers[0] == 0x88
}

package websocket

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
	"unicode/utf8"

	kernel "github.com/pikoproxy/piko/internal/socket"
)

// bufferData is how many bytes of data a buffer is good for.
const bufferData = 2 * kernel.Block

// buffer is what reads and writes borrow for the time of one burst. It has room for such data with its header, and for all that
// a sender may have put around and between.
type buffer struct {
	bytes [128 << 10]byte
}

// blockRoom is what writes of one block or less borrow.
type blockRoom [HeaderRoom + kernel.Block]byte

// The caches are shared by all connections, so that idle ones hold nothing.
var (
	buffers    = sync.Pool{New: func() any { return new(buffer) }}
	blockRooms = sync.Pool{New: func() any { return new(blockRoom) }}
)

// directRead is the size from which a caller's slice is good enough to always read into it from the socket.
const directRead = 16 << 10

// Read reads data of the peer. It returns [io.EOF] when the peer has ended its direction, [io.ErrUnexpectedEOF] when
// the connection ended inside a message, a [*CloseError] or a [*ProtocolError] as described there. Pings are answered
// from within Read, without waiting for the peer to take the answer.
//
// The socket is read into p itself, headers and all, and the data moved together in place. Only while p comes back full
// is a larger buffer borrowed, and given back when it is empty.
func (c *Conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	c.rmu.Lock()
	defer c.rmu.Unlock()
	for {
		if len(c.rest) > 0 {
			n := copy(p, c.rest)
			if c.rest = c.rest[n:]; len(c.rest) == 0 && !c.full {
				c.release()
			}
			return n, nil
		}
		if c.rerr != nil {
			c.release()
			return 0, c.rerr
		}
		var n int
		var err error
		if c.full && len(p) < directRead {
			if c.buf == nil {
				c.buf = buffers.Get().(*buffer)
			}
			n, err = c.receive(c.buf.bytes[:])
			c.rest = c.buf.bytes[:n]
		} else {
			c.release()
			if n, err = c.receive(p); n > 0 {
				return n, nil // an error, if any, is kept in rerr or comes again
			}
		}
		if n == 0 && err != nil {
			c.release()
			return 0, err
		}
	}
}

// release gives back the buffer, if there is one. The caller holds rmu, and rest is empty.
func (c *Conn) release() {
	if c.buf != nil {
		buffers.Put(c.buf)
		c.buf, c.rest = nil, nil
	}
}

// receive reads once from the socket into b and leaves the data at its front. An error that ends reading is kept in
// rerr. The caller holds rmu.
func (c *Conn) receive(b []byte) (int, error) {
	n, err := 0, error(nil)
	if len(c.early) > 0 {
		n = copy(b, c.early)
		if c.early = c.early[n:]; len(c.early) == 0 {
			c.early = nil
		}
	} else {
		n, err = c.conn.Read(b)
		c.full = n == len(b)
		if n > 0 {
			c.lastRead.Store(int64(time.Since(c.start)))
		}
	}
	m, fault := c.in.decode(b[:n])
	if fault != nil {
		return m, c.faulted(fault)
	}
	if err != nil {
		err = c.readFailed(err)
	}
	return m, err
}

// spend pays for a frame that carries no data. The caller holds rmu.
func (c *Conn) spend() error {
	if c.budget.take(time.Since(c.start)) {
		return nil
	}
	return &ProtocolError{closePolicy, "too many control frames or empty messages"}
}

// controlFrame acts on a control frame of the peer. The caller holds rmu.
func (c *Conn) controlFrame(op byte, payload []byte) error {
	if err := c.spend(); err != nil {
		return err
	}
	switch op {
	case opPing:
		c.queuePong(payload)
	case opPong:
		if c.onPong != nil {
			c.onPong(payload)
		}
	case opClose:
		err := closeReason(payload)
		if errors.Is(err, io.EOF) && c.in.open {
			return io.ErrUnexpectedEOF
		}
		return err
	}
	return nil
}

// closeReason returns what a Close frame means for a reader: io.EOF, a *CloseError, or a *ProtocolError.
func closeReason(payload []byte) error {
	if len(payload) == 0 {
		return io.EOF
	}
	if len(payload) == 1 {
		return &ProtocolError{closeProtocol, "close code of one byte"}
	}
	code, reason := int(binary.BigEndian.Uint16(payload)), payload[2:]
	if !validCloseCode(code) {
		return &ProtocolError{closeProtocol, fmt.Sprintf("close code %d, which may not be sent", code)}
	}
	if !utf8.Valid(reason) {
		return &ProtocolError{closeProtocol, "close reason that is not UTF-8"}
	}
	if code == closeNormal || code == closeGoingAway {
		return io.EOF
	}
	return &CloseError{code, string(reason)}
}

// validCloseCode says whether a peer may send code: RFC 6455, 7.4 and the registry it founded.
func validCloseCode(code int) bool {
	switch {
	case code >= 1000 && code <= 1003, code >= 1007 && code <= 1014, code >= 3000 && code <= 4999:
		return true
	}
	return false
}

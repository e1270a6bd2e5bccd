package websocket

import (
	"errors"
	"io"
	"net"
	"time"
)

// restingBuffer is what a connection that is no bare socket waits with, in bytes: enough for a sign of life. What is longer
// follows from the buffers of TLS.
const restingBuffer = 128

// receiver is what Receive keeps between calls.
type receiver struct {
	socket  *socket // nil: not a bare socket
	resting []byte
}

// Receive waits until something has come from the peer, and calls use with the data in it, if any; use must not keep it.
// It returns the errors of [Conn.Read], and that of use. On a plain TCP socket no buffer is held while it waits, else 128 bytes.
// What a Read has left behind comes first.
func (c *Conn) Receive(use func(data []byte) error) error {
	c.rmu.Lock()
	defer c.rmu.Unlock()
	if len(c.rest) > 0 {
		defer c.release()
		return use(c.rest)
	}
	if c.rerr != nil {
		return c.rerr
	}
	if !c.opened {
		c.into.socket, c.opened = newSocket(c.conn), true
	}
	if c.into.socket == nil || len(c.early) > 0 {
		return c.receiveInto(use)
	}
	buf, n, err := c.into.socket.read()
	if err != nil {
		return c.readFailed(err)
	}
	defer buffers.Put(buf)
	c.lastRead.Store(int64(time.Since(c.start)))
	return c.deliver(buf.bytes[:n], use)
}

// WriteTo implements [io.WriterTo]: it writes what the peer sends to w until the peer has ended its direction, as [Conn.Receive]
// does, so that no large buffer is held while nothing comes.
func (c *Conn) WriteTo(w io.Writer) (int64, error) {
	total := int64(0)
	var failed error // a Write
	use := func(data []byte) error {
		n, err := w.Write(data)
		total += int64(n)
		failed = err
		return err
	}
	for {
		err := c.Receive(use)
		switch {
		case failed != nil:
			return total, failed
		case errors.Is(err, io.EOF):
			return total, nil
		case err != nil:
			return total, err
		}
	}
}

// receiveInto is Receive with a buffer: a small one as long as that is not filled.
func (c *Conn) receiveInto(use func(data []byte) error) error {
	var p []byte
	if c.full || len(c.early) > 0 {
		buf := buffers.Get().(*buffer)
		defer buffers.Put(buf)
		p = buf.bytes[:]
	} else {
		if c.into.resting == nil {
			c.into.resting = make([]byte, restingBuffer)
		}
		p = c.into.resting
	}
	n := copy(p, c.early)
	if n > 0 {
		if c.early = c.early[n:]; len(c.early) == 0 {
			c.early = nil
		}
		return c.deliver(p[:n], use)
	}
	n, err := c.conn.Read(p)
	c.full = n == len(p)
	if n > 0 {
		c.lastRead.Store(int64(time.Since(c.start)))
		if fault := c.deliver(p[:n], use); fault != nil {
			return fault
		}
	}
	if err != nil {
		return c.readFailed(err)
	}
	return nil
}

// deliver decodes what was read and hands the data on. The caller holds rmu.
func (c *Conn) deliver(b []byte, use func(data []byte) error) error {
	n, fault := c.in.decode(b)
	if n > 0 {
		if err := use(b[:n]); err != nil {
			return err
		}
	}
	if fault != nil {
		return c.faulted(fault)
	}
	return nil
}

// faulted notes that the peer broke the protocol, or ended its direction. The caller holds rmu.
func (c *Conn) faulted(fault error) error {
	c.rerr = fault
	if broken, ok := errors.AsType[*ProtocolError](fault); ok {
		c.queueClose(broken.Code, broken.Reason)
	}
	return fault
}

// readFailed notes why the connection beneath cannot be read any more, unless that is only for now. The caller holds rmu.
func (c *Conn) readFailed(err error) error {
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		return err
	}
	if errors.Is(err, io.EOF) && !c.in.border() {
		err = io.ErrUnexpectedEOF
	}
	c.rerr = err
	return err
}

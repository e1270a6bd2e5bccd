package websocket

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"time"

	kernel "github.com/pikoproxy/piko/internal/socket"
)

// joinFrom is the length from which it pays to write a message from two places instead of copying.
const joinFrom = 16 << 10

// errWriteClosed is what writes return after CloseWrite.
var errWriteClosed = fmt.Errorf("websocket write after close: %w", io.ErrClosedPipe)

// controls are the control frames waiting to be sent. One of each kind is enough: RFC 6455, 5.5.3 lets a pong answer
// only the latest ping.
type controls struct {
	pong, ping, close []byte // whole frames
	fault             error  // why close is to be sent
}

// Write sends p, in as many messages as needed, each by one write to the socket. Concurrent writes do not mix. The
// count is that of the bytes in messages sent as a whole; after an error no more can be written.
func (c *Conn) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	c.wmu.Lock()
	defer c.unlock()
	sent := 0
	for sent < len(p) {
		n, err := c.writeSome(p[sent:])
		if err != nil {
			return sent, err
		}
		if sent += n; sent < len(p) && c.queued.Load() {
			c.sendControlsLocked()
		}
	}
	return sent, nil
}

// writeSome sends a message with the beginning of p, and returns how much that is. What waits for a peer that is slow takes no
// larger buffer than it needs. The caller holds wmu.
func (c *Conn) writeSome(p []byte) (int, error) {
	p = p[:min(len(p), c.maxMessage)]
	joiner := kernel.JoinerOf(c.conn)
	if joiner != nil && !c.client && len(p) >= joinFrom {
		// Nothing is masked and nothing encrypted, so that the kernel can take the data from where it is.
		at := putHeader(c.header[:], opBinary, len(p), false, 0)
		if end := c.wend.Load(); end != nil {
			return 0, end.err
		}
		_, err := joiner.WriteAfter(c.header[at:], p)
		return len(p), c.wrote(err)
	}
	p = p[:min(len(p), bufferData)]
	if len(p) <= kernel.Block {
		room := blockRooms.Get().(*blockRoom)
		defer blockRooms.Put(room)
		return len(p), c.sendLocked(c.frame(room[:HeaderRoom+len(p)], p))
	}
	buf := buffers.Get().(*buffer)
	defer buffers.Put(buf)
	return len(p), c.sendLocked(c.frame(buf.bytes[:HeaderRoom+len(p)], p))
}

// WriteReserved sends p[HeaderRoom:] as one message with one write to the socket. It overwrites p[:HeaderRoom], and on
// the client the data too. The caller keeps the message within what the peer takes. No memory is allocated. After an
// error no more can be written.
func (c *Conn) WriteReserved(p []byte) error {
	if len(p) <= HeaderRoom {
		return nil
	}
	frame := c.frame(p, p[HeaderRoom:])
	c.wmu.Lock()
	defer c.unlock()
	return c.sendLocked(frame)
}

// Key returns a key to mask a message for [Conn.WriteMasked] with; 0 when it needs none.
func (c *Conn) Key() uint32 { return c.maskKey() }

// Mask writes src, masked with key, to dst, which must be as long, and returns the key for the bytes that follow.
func Mask(dst, src []byte, key uint32) uint32 { return xor(dst, src, key) }

// WriteMasked is WriteReserved for data that has been masked with a key of [Conn.Key] already: at one go with the copying of it
// to p, that costs next to nothing. Each key is for one message.
func (c *Conn) WriteMasked(p []byte, key uint32) error {
	if len(p) <= HeaderRoom {
		return nil
	}
	at := putHeader(p[:HeaderRoom], opBinary, len(p)-HeaderRoom, c.client, key)
	c.wmu.Lock()
	defer c.unlock()
	return c.sendLocked(p[at:])
}

// TryWrite sends the beginning of p as one message without waiting, and returns how much that is. When the socket takes only
// a part of the message, the rest follows in the background, before anything else. Without a plain TCP socket it sends nothing.
// What is wrong, the next Write tells.
func (c *Conn) TryWrite(p []byte) int {
	if len(p) == 0 || !c.wmu.TryLock() {
		return 0
	}
	if c.nudge == nil {
		c.nudge = newNudge(c.conn)
	}
	if c.nudge == nil || c.wend.Load() != nil {
		c.unlockSoon(nil)
		return 0
	}
	p = p[:min(len(p), bufferData, c.maxMessage)]
	buf := buffers.Get().(*buffer)
	frame := c.frame(buf.bytes[:HeaderRoom+len(p)], p)
	n := c.nudge.write(frame)
	var rest []byte
	if n > 0 {
		rest = bytes.Clone(frame[n:])
	}
	buffers.Put(buf)
	c.unlockSoon(rest)
	if n == 0 {
		return 0
	}
	return len(p)
}

// unlockSoon is unlock for those who must not wait: the rest of a frame and control frames are sent in the background.
func (c *Conn) unlockSoon(rest []byte) {
	for len(rest) == 0 && !c.queued.Load() {
		c.wmu.Unlock()
		if !c.queued.Load() || !c.wmu.TryLock() {
			return
		}
	}
	c.cmu.Lock()
	defer c.cmu.Unlock()
	switch {
	case !c.closing:
		c.background.Go(func() {
			defer c.unlock()
			if len(rest) > 0 {
				_ = c.sendLocked(rest) // kept in wend
			}
		})
	case len(rest) > 0: // Close waits for wmu, and is not to wait for more
		_ = c.wrote(net.ErrClosed)
		c.wmu.Unlock()
	default: // Close sends the control frames
		c.wmu.Unlock()
	}
}

// frame makes a binary message of data in room, whose first HeaderRoom bytes are for the header, and returns it. The
// data may be in its place already.
func (c *Conn) frame(room, data []byte) []byte {
	key := c.maskKey()
	at := putHeader(room[:HeaderRoom], opBinary, len(data), c.client, key)
	xor(room[HeaderRoom:], data, key)
	return room[at:]
}

// sendLocked writes whole frames to the socket. The caller holds wmu.
func (c *Conn) sendLocked(frames []byte) error {
	if end := c.wend.Load(); end != nil {
		return end.err
	}
	_, err := c.conn.Write(frames)
	return c.wrote(err)
}

// wrote ends writing if err says that a write to the socket went wrong: a frame may have been cut.
func (c *Conn) wrote(err error) error {
	if err != nil {
		c.wend.CompareAndSwap(nil, &failure{err, false})
	}
	return err
}

// unlock releases wmu, and sends what control frames were queued in the meantime: who queues one does not wait for wmu,
// but leaves it to the holder.
func (c *Conn) unlock() {
	for {
		if c.queued.Load() {
			c.sendControlsLocked()
		}
		c.wmu.Unlock()
		if !c.queued.Load() || !c.wmu.TryLock() {
			return
		}
	}
}

// sendControlsLocked sends all queued control frames. The caller holds wmu.
func (c *Conn) sendControlsLocked() {
	c.cmu.Lock()
	q := c.control
	c.control = controls{}
	c.queued.Store(false)
	c.cmu.Unlock()
	frames := append(append(q.pong, q.ping...), q.close...)
	_ = c.sendLocked(frames) // kept in wend
	if q.close != nil {
		c.wend.CompareAndSwap(nil, &failure{q.fault, true})
	}
}

// queue changes the queued control frames by set and has them sent soon, without waiting for the socket.
func (c *Conn) queue(set func(*controls)) error {
	c.cmu.Lock()
	defer c.cmu.Unlock()
	if c.closing {
		return net.ErrClosed
	}
	set(&c.control)
	c.queued.Store(true)
	if c.wmu.TryLock() {
		c.background.Go(c.unlock)
	}
	return nil
}

// Ping has a ping with payload, of at most 125 bytes, sent to the peer. It does not wait: behind a write that is stuck
// the ping waits too, and a later one replaces it. The error says that nothing can be sent any more.
func (c *Conn) Ping(payload []byte) error {
	if len(payload) > controlLimit {
		return fmt.Errorf("ping payload of %d bytes, at most %d are allowed", len(payload), controlLimit)
	}
	if end := c.wend.Load(); end != nil {
		return end.err
	}
	frame := c.controlBytes(opPing, payload)
	return c.queue(func(q *controls) { q.ping = frame })
}

// maskKey returns the key for the next frame; 0 changes nothing.
func (c *Conn) maskKey() uint32 {
	if !c.client || c.zeroMask {
		return 0
	}
	return rand.Uint32() //nolint:gosec // ChaCha8: no peer can foresee it, which is all that RFC 6455, 10.3 wants
}

func (c *Conn) queuePong(payload []byte) {
	frame := c.controlBytes(opPong, payload)
	_ = c.queue(func(q *controls) { q.pong = frame }) // a connection being closed answers no ping
}

func (c *Conn) queueClose(code int, reason string) {
	frame := c.closeBytes(code, reason)
	fault := &ProtocolError{code, reason}
	_ = c.queue(func(q *controls) { q.close, q.fault = frame, fault }) // Close sends its own
}

func (c *Conn) controlBytes(op byte, payload []byte) []byte {
	key := c.maskKey()
	b := make([]byte, HeaderRoom+len(payload))
	at := putHeader(b, op, len(payload), c.client, key)
	xor(b[HeaderRoom:], payload, key)
	return b[at:]
}

func (c *Conn) closeBytes(code int, reason string) []byte {
	payload := binary.BigEndian.AppendUint16(nil, uint16(code)) //nolint:gosec // codes have 16 bits
	payload = append(payload, reason[:min(len(reason), controlLimit-2)]...)
	return c.controlBytes(opClose, payload)
}

// CloseWrite ends our direction with a Close frame; reading goes on until the peer ends its own. Nothing can be sent
// after it, and pings are no longer answered. Called again it does nothing.
func (c *Conn) CloseWrite() error {
	c.wmu.Lock()
	defer c.unlock()
	return c.sendCloseLocked(closeNormal, "")
}

// sendCloseLocked ends writing with a Close frame, unless one was sent before. The caller holds wmu.
func (c *Conn) sendCloseLocked(code int, reason string) error {
	if end := c.wend.Load(); end != nil && end.closed {
		return nil
	}
	if err := c.sendLocked(c.closeBytes(code, reason)); err != nil {
		return err
	}
	c.wend.CompareAndSwap(nil, &failure{errWriteClosed, true})
	return nil
}

// Close ends the connection: it sends a Close frame, unless one was sent, and closes the socket. It waits at most a
// second for the peer to take it; then the connection is reset. A peer may lose what it has not read yet if we have not
// read all that it sent, as with any socket: for a graceful end call CloseWrite, read up to [io.EOF], then Close.
func (c *Conn) Close() error { return c.CloseWith(closeNormal, "") }

// CloseWith is Close with a code of RFC 6455, 7.4 and a reason of up to 123 bytes.
func (c *Conn) CloseWith(code int, reason string) error {
	if !c.beginClose() {
		c.background.Wait()
		return nil
	}
	c.dmu.Lock()
	c.pinned = true
	_ = c.conn.SetWriteDeadline(time.Now().Add(closeTimeout)) // frees wmu in time
	c.dmu.Unlock()
	c.wmu.Lock()
	if c.queued.Load() {
		c.sendControlsLocked() // among them may be a Close frame that says more
	}
	err := c.sendCloseLocked(code, reason)
	c.wmu.Unlock()
	if err != nil {
		err = c.abort() // what the peer got is incomplete, and must not look otherwise
	} else {
		err = c.conn.Close()
	}
	c.background.Wait()
	return err
}

// Reset ends the connection at once and unclean: the peer's TCP sees a reset, so that it does not take the end for that
// of the data. It interrupts a Close that is waiting.
func (c *Conn) Reset() error {
	c.beginClose()
	err := c.abort()
	c.background.Wait()
	return err
}

// beginClose reports whether it is the first call.
func (c *Conn) beginClose() bool {
	c.cmu.Lock()
	defer c.cmu.Unlock()
	first := !c.closing
	c.closing = true
	return first
}

// abort makes the kernel send a reset and closes all layers.
func (c *Conn) abort() error {
	tcp := c.TCPConn()
	if tcp != nil {
		_ = tcp.SetLinger(0) // fails only on a closed socket
	}
	if tcp == nil || tcp == c.conn {
		return c.conn.Close()
	}
	err := tcp.Close() // before the outer layers can say a friendly goodbye
	_ = c.conn.Close() // they may keep accounts
	return err
}

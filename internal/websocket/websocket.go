// Package websocket carries a byte stream in the binary messages of a WebSocket (RFC 6455): both ends, with its own
// handshake and framing. [Accept] takes over a request of a net/http server, [Dial] connects to a server, directly or
// through an HTTP or SOCKS5 proxy. Both return a [Conn], which is a [net.Conn].
//
// # What goes over the wire
//
// Data is sent in unfragmented binary messages. Where one ends means nothing: a receiver must not draw any conclusion
// from it. Extensions, compression among them, are never offered and never accepted. A Close frame ends one direction
// and leaves the other open, so that half-closed TCP connections pass through:
//
//	A                                   B
//	|-- binary ... binary ------------->|
//	|-- Close 1000 -------------------->|  Conn.CloseWrite at A; Conn.Read at B returns io.EOF
//	|<-------------- binary ... binary -|  B goes on for as long as it likes
//	|<---------------------- Close 1000-|  Conn.CloseWrite or Conn.Close at B
//
// RFC 6455, 5.5.1 lets B finish what it is sending before it answers the Close frame; peers of other make answer at
// once. A peer that closes its TCP connection between two messages, without a Close frame, has ended its direction
// too; one that does so inside a message gives [io.ErrUnexpectedEOF].
//
// # What a peer may do
//
// A peer that breaks the protocol or one of the limits below gets a Close frame with the code, and [Conn.Read] returns
// a [*ProtocolError]. Nothing it sends makes a Conn hold more than one buffer of 128 KiB.
//
//	message longer than MaxMessage                              1009
//	more than 64 fragments in a message, and one for each KiB   1008
//	more than 20 control frames or empty messages a second,
//	  after a burst of 100                                      1008
//	text message                                                1003
//	reserved bits or opcodes, wrong masking, bad lengths,
//	  bad order of frames, bad close code                       1002
//
// # Concurrency
//
// All methods may be called at any time from any goroutine. Reads take turns, writes take turns; [Conn.Ping] and the
// answer to a peer's ping never wait for either. A Conn runs no goroutine and holds no buffer while nothing happens; a
// short-lived goroutine sends control frames, and Close and Reset wait for it.
package websocket

import (
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	kernel "github.com/pikoproxy/piko/internal/socket"
)

const (
	// HeaderRoom is the space in bytes that [Conn.WriteReserved] needs in front of the data: the longest frame header.
	HeaderRoom = 14

	// DefaultMaxMessage is the longest message accepted when the options name no other, in bytes: a multiplexer's frame
	// of 256 KiB with its header of 12 bytes.
	DefaultMaxMessage = 256<<10 + 12

	maxFragments   = 64
	closeTimeout   = time.Second // for the Close frame of Conn.Close
	controlLimit   = 125         // payload of a control frame, RFC 6455, 5.5
	controlEvery   = time.Second / 20
	controlBurst   = 100
	closeNormal    = 1000
	closeGoingAway = 1001
	closeProtocol  = 1002
	closeText      = 1003
	closePolicy    = 1008
	closeTooBig    = 1009
)

// ProtocolError says that the peer broke the protocol or a limit. Code is the close code that it was sent.
type ProtocolError struct {
	Code   int
	Reason string
}

func (e *ProtocolError) Error() string {
	return fmt.Sprintf("websocket peer at fault (%d): %s", e.Code, e.Reason)
}

// CloseError says that the peer ended the connection with a Close frame whose code is neither 1000 (done) nor 1001
// (going away) nor absent: what was read before may be incomplete.
type CloseError struct {
	Code   int
	Reason string
}

func (e *CloseError) Error() string {
	return fmt.Sprintf("websocket closed by peer (%d): %q", e.Code, e.Reason)
}

// Conn is one end of a WebSocket, used as a stream of bytes. It is made by [Accept] or [Dial] and must be ended with
// [Conn.Close] or [Conn.Reset], after an error too.
type Conn struct {
	conn        net.Conn
	client      bool // we mask, and the peer must not
	zeroMask    bool
	subprotocol string
	handshake   time.Duration
	maxMessage  int
	start       time.Time
	lastRead    atomic.Int64 // nanoseconds after start
	onPong      func(payload []byte)

	rmu    sync.Mutex // held during socket reads; guards the following
	in     decoder
	budget budget
	early  []byte // received together with the handshake and not decoded yet
	buf    *buffer
	rest   []byte // data within buf that no Read has taken yet
	rerr   error  // why reading ended
	into   receiver
	full   bool // the last socket read filled its buffer, so more is likely waiting
	opened bool // into.socket is set

	wmu    sync.Mutex       // held during socket writes, so that frames do not mix; see Conn.unlock
	nudge  *nudge           // for TryWrite; guarded by wmu
	header [HeaderRoom]byte // of a message whose data is written from where it is; guarded by wmu

	wend atomic.Pointer[failure] // why writing ended; nil while it may go on

	cmu     sync.Mutex // guards the following
	control controls
	closing bool // Close or Reset has begun

	queued     atomic.Bool    // control holds something
	background sync.WaitGroup // senders of control frames

	dmu    sync.Mutex // guards the following
	pinned bool       // Close has set the last write deadline
}

// failure is why writing ended.
type failure struct {
	err    error
	closed bool // a Close frame was sent, so the peer knows that it has everything
}

func newConn(conn net.Conn, client bool, maxMessage int64) *Conn {
	if maxMessage <= 0 {
		maxMessage = DefaultMaxMessage
	}
	c := &Conn{conn: kernel.Wrap(conn), client: client, maxMessage: int(maxMessage), start: time.Now()}
	c.in = decoder{masked: !client, limit: maxMessage, control: c.controlFrame, spend: c.spend}
	return c
}

// Subprotocol returns the subprotocol agreed on in the handshake, or "".
func (c *Conn) Subprotocol() string { return c.subprotocol }

// HandshakeTime returns, on the client, the time between sending the request and having read the answer. It includes
// one round trip to the server itself, also behind a balancer or proxy. On the server it is zero.
func (c *Conn) HandshakeTime() time.Duration { return c.handshake }

// LastRead returns when a byte was last received from the peer, be it data or a pong; at first, when the handshake
// ended.
func (c *Conn) LastRead() time.Time { return c.start.Add(time.Duration(c.lastRead.Load())) }

// OnPong sets the function that is called with the payload of each pong. It must be set before the first Read, is
// called from within Read, must not block, and must not keep payload.
func (c *Conn) OnPong(f func(payload []byte)) { c.onPong = f }

// NetConn returns the connection beneath, which may be a TLS connection. Do not read from it or write to it.
func (c *Conn) NetConn() net.Conn { return c.conn }

// TCPConn returns the TCP connection beneath all layers, for setting socket options; nil when there is none.
func (c *Conn) TCPConn() *net.TCPConn {
	conn := c.conn
	for {
		switch layer := conn.(type) {
		case *net.TCPConn:
			return layer
		case interface{ NetConn() net.Conn }: // crypto/tls, and wrappers of this project
			conn = layer.NetConn()
		case interface{ Raw() net.Conn }: // PROXY protocol
			conn = layer.Raw()
		default:
			return nil
		}
	}
}

// bare returns a TCP connection that may be read and written in other ways than by its own Read and Write: one that nothing
// wraps, but for what only keeps account. Else it returns nil.
func bare(conn net.Conn) *net.TCPConn {
	tcp, _ := kernel.Bare(conn).(*net.TCPConn)
	return tcp
}

// LocalAddr returns the local address of the connection beneath.
func (c *Conn) LocalAddr() net.Addr { return c.conn.LocalAddr() }

// RemoteAddr returns the peer's address as the connection beneath knows it: perhaps that of a proxy.
func (c *Conn) RemoteAddr() net.Addr { return c.conn.RemoteAddr() }

// SetDeadline sets the read and the write deadline.
func (c *Conn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

// SetReadDeadline sets the time after which reads return [os.ErrDeadlineExceeded]. Nothing is lost: with a new deadline
// reading goes on, unless the connection beneath is one that forbids it.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.conn.SetReadDeadline(t) }

// SetWriteDeadline sets the time after which writes return [os.ErrDeadlineExceeded]. A write that was cut off ends
// writing for good, since the peer waits for the rest of a frame.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.dmu.Lock()
	defer c.dmu.Unlock()
	if c.pinned {
		return net.ErrClosed
	}
	return c.conn.SetWriteDeadline(t)
}

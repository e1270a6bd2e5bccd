package tunnel

import (
	"bufio"
	"encoding/binary"
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

// rawPeer is a WebSocket client written from RFC 6455, with none of our code, for peers that are not ours or misbehave. It
// is a byte stream over binary messages, and answers WebSocket pings unless it is told not to.
type rawPeer struct {
	net.Conn
	r    *bufio.Reader
	left uint64
	mute bool // does not answer pings

	mu sync.Mutex // held while a message is written
}

var errCloseFrame = errors.New("close frame")

// dialRaw connects to a test server, given by its URL.
func dialRaw(t testing.TB, base, path, subprotocol string) *rawPeer {
	t.Helper()
	address := strings.TrimPrefix(base, "http://")
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	request := "GET " + path + " HTTP/1.1\r\nHost: " + address + "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
	if subprotocol != "" {
		request += "Sec-WebSocket-Protocol: " + subprotocol + "\r\n"
	}
	if _, err := io.WriteString(conn, request+"\r\n"); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReaderSize(conn, 512)
	answer, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if answer.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("handshake: status %s", answer.Status)
	}
	return &rawPeer{Conn: conn, r: r}
}

// Write sends p as one masked binary message.
func (c *rawPeer) Write(p []byte) (int, error) {
	if err := c.message(0x82, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (c *rawPeer) message(first byte, p []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := []byte{first}
	switch {
	case len(p) < 126:
		b = append(b, 0x80|byte(len(p)))
	case len(p) < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 0x80|126), uint16(len(p)))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 0x80|127), uint64(len(p)))
	}
	mask := [4]byte{1, 2, 3, 4}
	if len(p) > 4<<10 {
		mask = [4]byte{} // legal, and fast
	}
	b = append(append(b, mask[:]...), p...)
	for i := len(b) - len(p); mask[0] != 0 && i < len(b); i++ {
		b[i] ^= mask[(i-len(b)+len(p))&3]
	}
	_, err := c.Conn.Write(b)
	return err
}

// Read reads the payload of binary messages. A Close frame is errCloseFrame.
func (c *rawPeer) Read(p []byte) (int, error) {
	for c.left == 0 {
		if err := c.next(); err != nil {
			return 0, err
		}
	}
	n, err := c.r.Read(p[:min(uint64(len(p)), c.left)])
	c.left -= uint64(n)
	return n, err
}

func (c *rawPeer) next() error {
	var head [2]byte
	if _, err := io.ReadFull(c.r, head[:]); err != nil {
		return err
	}
	size := uint64(head[1] & 0x7f)
	if extra := map[uint64]int{126: 2, 127: 8}[size]; extra > 0 {
		var b [8]byte
		if _, err := io.ReadFull(c.r, b[8-extra:]); err != nil {
			return err
		}
		size = binary.BigEndian.Uint64(b[:])
	}
	switch head[0] & 0xf {
	case 0, 2:
		c.left = size
		return nil
	case 8:
		return errCloseFrame
	}
	payload := make([]byte, size)
	if _, err := io.ReadFull(c.r, payload); err != nil {
		return err
	}
	if head[0]&0xf == 9 && !c.mute {
		return c.message(0x8a, payload)
	}
	return nil
}

// frame reads one yamux frame, and its body if it is data.
func (c *rawPeer) frame() (frame, []byte, error) {
	h := make([]byte, frameSize)
	if _, err := io.ReadFull(c, h); err != nil {
		return nil, nil, err
	}
	var body []byte
	if frame(h).kind() == kindData {
		body = make([]byte, frame(h).length())
		if _, err := io.ReadFull(c, body); err != nil {
			return nil, nil, err
		}
	}
	return h, body, nil
}

// answerPing waits for the ping with which a node measures the way to the agent, and answers it.
func (c *rawPeer) answerPing(t testing.TB) {
	t.Helper()
	h, _ := c.expect(t, kindPing)
	pong := makeFrame(kindPing, flagACK, 0, h.length())
	c.send(t, pong, nil)
}

// expect reads frames until one of the kind comes.
func (c *rawPeer) expect(t testing.TB, kind byte) (frame, []byte) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(time.Minute))
	for {
		h, body, err := c.frame()
		if err != nil {
			t.Fatalf("waiting for a frame of kind %d: %v", kind, err)
		}
		if h.kind() == kind {
			c.SetReadDeadline(time.Time{})
			return h, body
		}
	}
}

// send sends a yamux frame.
func (c *rawPeer) send(t testing.TB, h [frameSize]byte, body []byte) {
	t.Helper()
	if _, err := c.Write(append(h[:], body...)); err != nil {
		t.Fatalf("send frame %v: %v", h, err)
	}
}

// ending reads until the connection ends and says how.
func (c *rawPeer) ending(t testing.TB) (frames []frame, err error) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(time.Minute))
	for {
		h, _, err := c.frame()
		if err != nil {
			return frames, err
		}
		frames = append(frames, h)
	}
}

func (f frame) String() string {
	return fmt.Sprintf("kind %d flags %#x stream %d length %d", f.kind(), f.flags(), f.stream(), f.length())
}

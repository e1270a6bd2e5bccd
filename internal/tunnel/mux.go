package tunnel

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/pikoproxy/piko/internal/websocket"
)

const (
	// defaultPatience is how long the peer may take to make room for a control message, to send the rest of one, or to send
	// the header of a stream it has opened.
	defaultPatience = 10 * time.Second

	// measureTimeout bounds the wait for the answer to the first ping.
	measureTimeout = time.Second
)

// window is how much a peer may send on a stream before we have read it. A stream carries at most a window each round
// trip, so it grows with the round-trip time; where that is small, a small window keeps the streams from delaying
// each other.
func window(rtt time.Duration) int64 {
	switch {
	case rtt < 2*time.Millisecond: // or unknown
		return 512 << 10
	case rtt < 20*time.Millisecond:
		return 2 << 20
	case rtt < 100*time.Millisecond:
		return 8 << 20
	}
	return largestWindow
}

// mux is what both ends of a session have in common.
type mux struct {
	l        *link
	ctl      control
	patience time.Duration
}

// start begins to read from a link, whose arrived is set.
func (m *mux) start(l *link) {
	m.l, m.patience = l, defaultPatience
	l.jobs.Go(l.run)
}

// newID returns a random name for a session.
func newID() string {
	var id [8]byte
	// It never returns an error.
	_, _ = rand.Read(id[:])
	return hex.EncodeToString(id[:])
}

// ID names the session. It is random, and unique among all nodes.
func (m *mux) ID() string { return m.l.id }

// RemoteAddr is where the session comes from or leads to.
func (m *mux) RemoteAddr() net.Addr { return m.l.ws.RemoteAddr() }

// LocalAddr is this end of the connection.
func (m *mux) LocalAddr() net.Addr { return m.l.ws.LocalAddr() }

// Streams is how many streams there are, those that are half closed or being opened included.
func (m *mux) Streams() int { return m.l.number() }

// RTT is the last measured round-trip time, end to end; 0 when none was measured yet.
func (m *mux) RTT() time.Duration { return time.Duration(m.l.rtt.Load()) }

// Silence is for how long nothing has been heard from the far end.
func (m *mux) Silence() time.Duration { return time.Since(m.l.ws.LastRead()) }

// Closing is closed when the session takes nothing new: the far end said so, Shutdown was called, or the session ended.
func (m *mux) Closing() <-chan struct{} { return m.l.closing }

// Done is closed when the session has ended.
func (m *mux) Done() <-chan struct{} { return m.l.done }

// Err says why the session ended, as an error that wraps ErrSessionClosed; nil while it lives.
func (m *mux) Err() error { return m.l.err() }

// Send sends a control message of a type of its own. body must encode as a JSON object of at most 64 KiB. Types that the far
// end does not know are ignored there. On a classic session it does nothing.
func (m *mux) Send(kind string, body any) error { return m.send(kind, body) }

// CloseNow ends the session at once and unclean, by a reset of the connection; cause is what Err will wrap. It does not
// wait: Wait does.
func (m *mux) CloseNow(cause error) error {
	if cause == nil {
		cause = errEnded
	}
	m.l.fail(cause)
	return nil
}

// Wait blocks until the session has ended and all its goroutines are gone. A Handler must not call it.
func (m *mux) Wait() {
	<-m.l.done
	m.l.jobs.Wait()
}

// shutdown ends the session in order: see Session.Shutdown.
func (m *mux) shutdown(ctx context.Context) error {
	m.l.stop()
	empty := m.l.awaitEmpty(ctx.Done())
	m.l.farewell()
	m.l.Close()
	m.Wait()
	if !empty {
		return fmt.Errorf("session %s ended with open streams: %w", m.l.id, context.Cause(ctx))
	}
	return nil
}

// control is the control stream of a native session.
type control struct {
	st *Stream
	mu sync.Mutex // held while a message is written, which has a deadline
}

// send writes a control message. When the peer does not take it, the session ends.
func (m *mux) send(kind string, body any) error {
	c := &m.ctl
	if c.st == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	b, err := appendMessage(nil, kind, body)
	if err != nil {
		return err
	}
	if err := c.st.SetWriteDeadline(time.Now().Add(m.patience)); err != nil {
		return m.lost(kind, err)
	}
	if _, err := c.st.Write(b); err != nil {
		return m.lost(kind, err)
	}
	return nil
}

// lost ends a session whose control stream is no longer in order.
func (m *mux) lost(kind string, err error) error {
	if m.l.ended() {
		return m.l.reason()
	}
	err = fmt.Errorf("send control message %q: %w", kind, err)
	m.l.fail(err)
	return err
}

// listen has handle called for each control message from now on. A goroutine runs only while there are messages: most
// sessions hear none for hours.
func (m *mux) listen(handle func(kind string, object []byte) error) {
	m.l.serve(func() {
		for m.l.heard() {
			if err := m.hear(handle); err != nil {
				m.misheard(err)
				return
			}
		}
	})
}

// hear reads one control message, of which some bytes have come.
func (m *mux) hear(handle func(kind string, object []byte) error) error {
	if err := m.ctl.st.SetReadDeadline(time.Now().Add(m.patience)); err != nil {
		return err
	}
	kind, object, err := readMessage(m.ctl.st, nil)
	if err != nil {
		return err
	}
	return handle(kind, object)
}

// misheard ends a session whose control stream cannot be read any more.
func (m *mux) misheard(err error) {
	switch {
	case errors.Is(err, errMalformed):
		m.l.abuse(&AbuseError{AbuseControl, err.Error()})
	case !m.l.ended():
		m.l.fail(fmt.Errorf("control stream ended: %w", noEOF(err)))
	}
}

// decode decodes a control message.
func decode[T any](object []byte) (T, error) {
	var v T
	if err := json.Unmarshal(object, &v); err != nil {
		return v, fmt.Errorf("%w: %w", errMalformed, err)
	}
	return v, nil
}

// defaults fills in what is zero.
func orDefault[T comparable](v, preset T) T {
	var zero T
	if v == zero {
		return preset
	}
	return v
}

// tune sets the socket options of a session's connection. A classic one is to end with a reset, even when the process is
// killed; any is to notice within seconds that the other host is gone.
func tune(ws *websocket.Conn, classic bool) {
	tcp := ws.TCPConn()
	if tcp == nil {
		return
	}
	if classic {
		_ = tcp.SetLinger(0) // fails only on a closed socket
	}
	setOptions(tcp)
}

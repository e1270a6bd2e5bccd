package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/pikoproxy/piko/internal/websocket"
)

const (
	// nodeBacklog is that of the opening end, where nobody but the agent's control stream waits to be accepted. It bounds
	// the streams of yamux that are not acknowledged too, so it must not be less than our own bound.
	nodeBacklog = maxUnacknowledged

	// agentBacklog is more than any node opens before it is answered.
	agentBacklog = 512
)

// preset fills in what is zero.
func (o NodeOptions) preset() NodeOptions {
	o.MaxStreams = orDefault(o.MaxStreams, defaultMaxStreams)
	o.OpenTimeout = orDefault(o.OpenTimeout, defaultOpenTimeout)
	o.HandshakeTimeout = orDefault(o.HandshakeTimeout, defaultHandshake)
	o.CloseWait = orDefault(o.CloseWait, defaultCloseWait)
	o.WriteTimeout = orDefault(o.WriteTimeout, defaultWrite)
	return o
}

func (o NodeOptions) sizes() sizes { return sizes{nodeBacklog, o.CloseWait, o.WriteTimeout} }

// AcceptClassic answers the handshake of a classic agent, which must have been authenticated, and returns its session. It
// takes a round trip, at most a second. When it returns an error before the upgrade it has answered the request.
// The session lives on after the handler has returned, until it is shut down or closed. [Keeper] watches it.
func AcceptClassic(w http.ResponseWriter, r *http.Request, o NodeOptions) (*Session, error) {
	o = o.preset()
	ws, err := websocket.Accept(w, r, websocket.AcceptOptions{MaxMessage: largestWindow + frameSize})
	if err != nil {
		return nil, fmt.Errorf("accept classic agent %s: %w", r.RemoteAddr, err)
	}
	tune(ws, true)
	s := &Session{o: o, classic: true}
	l := newLink(ws, role{}, o.OnAbuse)
	err = l.measure(min(measureTimeout, o.HandshakeTimeout))
	if err == nil {
		err = s.start(l, o.sizes())
	}
	if err != nil {
		l.fail(err)
		_ = l.Close() // always nil
		return nil, fmt.Errorf("accept classic agent %s: %w", r.RemoteAddr, err)
	}
	s.follow()
	return s, nil
}

// AcceptNative answers the handshake of a native agent, which must have been authenticated, exchanges hellos and returns the
// session. When it returns an error before the upgrade it has answered the request. The session lives on after the handler
// has returned, until it is shut down or closed. [Keeper] watches it. Handler may be called before AcceptNative returns.
func AcceptNative(w http.ResponseWriter, r *http.Request, o NodeOptions) (*Session, error) {
	o = o.preset()
	s := &Session{o: o}
	reply := welcome{Version, o.NodeID, o.Zone, Limits{o.MaxStreams, o.MaxEndpoints}}
	err := s.accept(w, r, &s.hello, reply, acceptance{
		role: role{native: true}, sizes: o.sizes(), handshake: o.HandshakeTimeout, onAbuse: o.OnAbuse,
	})
	if err != nil {
		return nil, fmt.Errorf("accept agent %s: %w", r.RemoteAddr, err)
	}
	s.listen(s.handle)
	s.follow()
	return s, nil
}

// acceptance is what the accepted sessions differ in.
type acceptance struct {
	role
	sizes
	handshake time.Duration
	onAbuse   func(string)
}

// accept answers a native handshake, up to the hellos.
func (m *mux) accept(w http.ResponseWriter, r *http.Request, hello *Hello, reply welcome, a acceptance) error {
	ws, err := websocket.Accept(w, r, websocket.AcceptOptions{
		Subprotocols: []string{Subprotocol},
		Header:       http.Header{HeaderNode: {reply.NodeID}},
	})
	if err != nil {
		return err
	}
	tune(ws, false)
	l := newLink(ws, a.role, a.onAbuse)
	err = l.measure(min(measureTimeout, a.handshake))
	if err == nil {
		err = m.start(l, a.sizes)
	}
	if err != nil {
		l.fail(err)
		_ = l.Close() // always nil
		return err
	}
	ctx, stop := context.WithTimeoutCause(r.Context(), a.handshake, errNoHello)
	defer stop()
	if err := m.greeted(ctx, hello, reply); err != nil {
		m.l.fail(err)
		m.Wait()
		return err
	}
	return nil
}

var errNoHello = errors.New("no hello in time")

// greeted waits for the control stream and the hello on it, and answers.
func (m *mux) greeted(ctx context.Context, hello *Hello, reply welcome) error {
	ys, err := m.ys.AcceptStreamWithContext(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return m.l.reason()
	}
	deadline, _ := ctx.Deadline()
	if err := m.takeControl(ys, deadline); err != nil {
		return err
	}
	*hello, err = expect[Hello](m)
	if err != nil {
		return err
	}
	if err := m.send("hello", reply); err != nil {
		return err
	}
	return m.ctl.st.SetReadDeadline(time.Time{})
}

// takeControl makes a stream the control stream, whose first message is to come before deadline.
func (m *mux) takeControl(ys *yamux.Stream, deadline time.Time) error {
	st := m.stream(ys)
	if st.f.id != controlStream {
		return fmt.Errorf("%w: stream %d where the control stream was expected", ErrProtocol, st.f.id)
	}
	m.ctl.st = st
	return st.SetReadDeadline(deadline)
}

// expect reads the hello of the other end.
func expect[T any](m *mux) (T, error) {
	var none T
	kind, object, err := readMessage(m.ctl.st, nil)
	if err != nil {
		return none, fmt.Errorf("read hello: %w", noEOF(err))
	}
	if kind != "hello" {
		return none, fmt.Errorf("%w: message %q where hello was expected", ErrProtocol, clip(kind))
	}
	return decode[T](object)
}

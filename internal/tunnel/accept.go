package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/pikoproxy/piko/internal/websocket"
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

func (o NodeOptions) limits() limits { return limits{o.CloseWait, o.WriteTimeout, o.Unread} }

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
	s.start(newLink(ws, role{}, o.limits(), o.OnAbuse))
	if err := s.l.measure(min(measureTimeout, o.HandshakeTimeout)); err != nil {
		s.l.fail(err)
		s.Wait()
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
		role: role{native: true}, limits: o.limits(), handshake: o.HandshakeTimeout, onAbuse: o.OnAbuse,
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
	limits
	handshake time.Duration
	onAbuse   func(string)
	arrived   func(*Stream) // takes the streams besides the control stream; nil: there are none
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
	l := newLink(ws, a.role, a.limits, a.onAbuse)
	control := make(chan *Stream, 1)
	l.arrived = func(st *Stream) {
		if st.id == controlStream {
			control <- st // never blocks: there is one in the life of a session
			return
		}
		a.arrived(st)
	}
	m.start(l)
	ctx, stop := context.WithTimeoutCause(r.Context(), a.handshake, errNoHello)
	defer stop()
	err = l.measure(min(measureTimeout, a.handshake))
	if err == nil {
		err = m.greeted(ctx, control, hello, reply)
	}
	if err != nil {
		l.fail(err)
		m.Wait()
	}
	return err
}

var errNoHello = errors.New("no hello in time")

// greeted waits for the control stream and the hello on it, and answers.
func (m *mux) greeted(ctx context.Context, control <-chan *Stream, hello *Hello, reply welcome) (err error) {
	select {
	case m.ctl.st = <-control:
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-m.l.done:
		return m.l.reason()
	}
	deadline, _ := ctx.Deadline()
	if err := m.ctl.st.SetReadDeadline(deadline); err != nil {
		return err
	}
	*hello, err = expect[Hello](m)
	if err != nil {
		return err
	}
	return m.send("hello", reply)
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

package tunnel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// Session is the opening end of a session. Its methods may be called from any goroutine.
type Session struct {
	mux
	o       NodeOptions
	classic bool
	hello   Hello
	node    welcome
}

// Classic reports whether the agent speaks the classic protocol, which has no control messages and no stream headers.
func (s *Session) Classic() bool { return s.classic }

// Agent is how the agent introduced itself; zero for classic ones and for sessions made by DialPeer.
func (s *Session) Agent() Hello { return s.hello }

// NodeID is the node that DialPeer reached; else empty.
func (s *Session) NodeID() string { return s.node.NodeID }

// Listening tells the agent that an endpoint is routable now. On a classic session it does nothing.
func (s *Session) Listening(endpoint string) error {
	return s.send("listening", Listen{Endpoint: endpoint})
}

// Refuse tells the agent that an endpoint is not, or no longer, routed to it. On a classic session it does nothing.
func (s *Session) Refuse(endpoint, code, reason string) error {
	return s.send("refused", verdict{endpoint, code, clip(reason)})
}

// Drain asks the agent to connect elsewhere first, and to be done here by the deadline. Streams can still be opened. On a
// classic session, which knows no such request, it does nothing.
func (s *Session) Drain(reason string, deadline time.Time) error {
	return s.send("drain", Drain{clip(reason), deadline.UTC()})
}

// Shutdown ends the session in order. It opens no new streams, waits until all have ended or ctx ends, and then tells the
// agent: a native one by a clean end of the connection, a classic one by GoAway and a reset. That takes up to two seconds after
// ctx has ended. The error wraps the cause of ctx when streams were cut off. A Handler must not call it.
func (s *Session) Shutdown(ctx context.Context) error { return s.shutdown(ctx) }

// follow has the callbacks called when their time comes.
func (s *Session) follow() {
	if s.o.OnClosing == nil && s.o.OnDone == nil {
		return
	}
	s.l.watch(func() {
		if s.o.OnClosing != nil {
			s.o.OnClosing(s)
		}
		<-s.l.done
		if s.o.OnDone != nil {
			s.o.OnDone(s)
		}
	})
}

// Open opens a stream and waits until the far end has accepted it. On a classic session h is not sent.
//
// A [*RefusedError] means that the far end, or this one before it asked, refused: nothing was delivered. Other errors are that
// of ctx, ErrOpenTimeout after the open timeout, and such as wrap ErrSessionClosed. None but the last affects anything
// but this call.
func (s *Session) Open(ctx context.Context, h Header) (*Stream, error) {
	st, err := s.open(ctx, h)
	if err != nil {
		return nil, fmt.Errorf("open stream on session %s: %w", s.l.id, err)
	}
	return st, nil
}

func (s *Session) open(ctx context.Context, h Header) (*Stream, error) {
	var head []byte
	if !s.classic {
		var err error
		if head, err = appendBlock(nil, h); err != nil {
			return nil, err
		}
	}
	last, err := s.l.admit(s.o.MaxStreams)
	if err != nil {
		return nil, err
	}
	if last {
		s.l.spawn(s.retire)
	}
	timer := time.NewTimer(s.o.OpenTimeout)
	defer timer.Stop()
	p := patience{ctx, timer.C}
	if err := s.l.place(p); err != nil {
		s.l.cancel()
		return nil, err
	}
	st, err := s.l.begin(p, head)
	if err != nil {
		<-s.l.syn // never blocks: place has put one in
		s.l.cancel()
		return nil, err
	}
	if err := s.answered(p, st); err != nil {
		_ = st.Reset() // always nil
		return nil, err
	}
	return st, nil
}

// answered waits until the far end has answered a stream, and returns what it has said.
func (s *Session) answered(p patience, st *Stream) error {
	for {
		switch st.answer(s.classic) {
		case accepted:
			return nil
		case ended:
			return s.unanswered()
		case undecided:
			if err := p.wait(s.l, st.rwake, nil); err != nil {
				return err
			}
		case worded:
			return s.refused(p, st)
		}
	}
}

// unanswered is why a stream ended before it was answered.
func (s *Session) unanswered() error {
	if s.l.ended() {
		return s.l.reason()
	}
	return s.l.refusal()
}

// refused reads an answer that is more than a yes.
func (s *Session) refused(p patience, st *Stream) error {
	unhook := context.AfterFunc(p.ctx, func() { _ = st.SetReadDeadline(time.Unix(1, 0)) }) // else the stream is closed
	defer unhook()
	if err := st.SetReadDeadline(time.Now().Add(s.o.OpenTimeout)); err != nil {
		return err
	}
	err := readAnswer(st)
	switch {
	case err == nil:
		return st.SetReadDeadline(time.Time{})
	case p.ctx.Err() != nil:
		return context.Cause(p.ctx)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return ErrOpenTimeout
	case errors.Is(err, ErrReset):
		return s.l.refusal()
	}
	return err
}

// retire ends a session that has used up the numbers of streams, once the last streams have ended. The agent connects anew.
func (s *Session) retire() {
	// When it cannot be sent, the session has ended.
	_ = s.Drain("all stream numbers are used", time.Time{})
	s.l.awaitEmpty(nil)
	s.l.farewell()
	s.l.Close()
}

// handle acts on a control message of the agent.
func (s *Session) handle(kind string, object []byte) error {
	h := s.o.Handler
	switch kind {
	case "listen":
		l, err := decode[Listen](object)
		if err == nil && h != nil {
			h.Listen(s, l)
		}
		return err
	case "unlisten":
		l, err := decode[Listen](object)
		if err == nil && h != nil {
			h.Unlisten(s, l.Endpoint)
		}
		return err
	case "token":
		t, err := decode[bearer](object)
		if err == nil && h != nil {
			h.Token(s, t.Bearer)
		}
		return err
	case "drain":
		d, err := decode[Drain](object)
		if err == nil {
			s.l.stop()
			if h != nil {
				h.Drain(s, d)
			}
		}
		return err
	}
	if s.o.OnMessage != nil {
		s.o.OnMessage(s, kind, object)
	}
	return nil
}

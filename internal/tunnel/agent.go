package tunnel

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// maxAgentStreams bounds the streams of an accepting end, whatever the node believes the limit to be.
const maxAgentStreams = 16 << 10

// AgentSession is the accepting end of a session: that of an agent, or of a node that another node has dialed. Its methods
// may be called from any goroutine.
type AgentSession struct {
	mux
	o        DialOptions
	node     welcome
	hello    Hello
	incoming chan *Incoming // with room for all that are admitted; never closed
	waiting  atomic.Int32   // streams not returned by Accept
	leaving  atomic.Bool    // Shutdown was called
	draining chan struct{}  // closed, once, by the first drain message or the end of the session

	mu      sync.Mutex // guards the following
	pending map[string][]chan error
	notice  Drain
	drained bool
}

// NodeID is what the node calls itself; for a session made by AcceptPeer it is this node.
func (s *AgentSession) NodeID() string { return s.node.NodeID }

// Zone is where the node says that it runs; empty if it does not say.
func (s *AgentSession) Zone() string { return s.node.Zone }

// Limits is what the node allows this session.
func (s *AgentSession) Limits() Limits { return s.node.Limits }

// Peer is how the node that dialed introduced itself, for sessions made by AcceptPeer.
func (s *AgentSession) Peer() Hello { return s.hello }

// Draining is closed when the node has asked us to connect elsewhere, and when the session takes nothing new for any other
// reason: its end is one.
func (s *AgentSession) Draining() <-chan struct{} { return s.draining }

// DrainNotice is what the node said when it asked us to go; zero if it did not.
func (s *AgentSession) DrainNotice() Drain {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.notice
}

// Listen asks the node to route an endpoint to this session, and waits until it does. A refusal is a [*RefusedError]; the
// session is not affected by it.
func (s *AgentSession) Listen(ctx context.Context, l Listen) error {
	answer := make(chan error, 1)
	s.mu.Lock()
	if s.pending == nil {
		s.pending = make(map[string][]chan error)
	}
	s.pending[l.Endpoint] = append(s.pending[l.Endpoint], answer)
	s.mu.Unlock()
	err := s.send("listen", l)
	if err == nil {
		select {
		case err = <-answer:
		case <-ctx.Done():
			err = context.Cause(ctx)
		case <-s.l.done:
			err = s.l.reason()
		}
	}
	if err != nil {
		return fmt.Errorf("listen on endpoint %s: %w", l.Endpoint, err)
	}
	return nil
}

// Unlisten gives an endpoint up.
func (s *AgentSession) Unlisten(endpoint string) error {
	return s.send("unlisten", Listen{Endpoint: endpoint})
}

// SendToken brings the node a new bearer token for this session.
func (s *AgentSession) SendToken(token string) error { return s.send("token", bearer{token}) }

// SendDrain asks the node for nothing new, and tells it until when we serve what runs.
func (s *AgentSession) SendDrain(reason string, deadline time.Time) error {
	return s.send("drain", Drain{clip(reason), deadline.UTC()})
}

// Shutdown ends the session in order: it refuses new streams, waits until all have ended or ctx ends, and ends the
// connection cleanly, which takes up to two seconds after that. The error wraps the cause of ctx when streams were cut off.
func (s *AgentSession) Shutdown(ctx context.Context) error {
	s.leaving.Store(true)
	return s.shutdown(ctx)
}

// Accept returns the next stream whose header has arrived. It blocks until there is one, ctx ends, or the session has
// ended: the error then wraps ErrSessionClosed.
func (s *AgentSession) Accept(ctx context.Context) (*Incoming, error) {
	select {
	case in := <-s.incoming:
		s.waiting.Add(-1)
		return in, nil
	case <-s.l.done:
		return nil, s.l.reason()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Incoming is a stream that waits for its answer. Exactly one of Accept and Refuse is to be called.
type Incoming struct {
	st     *Stream
	header Header
}

// Header is what the opening end said about the stream.
func (i *Incoming) Header() Header { return i.header }

// Accept answers that the stream is taken, and returns it.
func (i *Incoming) Accept() (*Stream, error) {
	if _, err := i.st.Write([]byte{0, 0}); err != nil {
		_ = i.st.Reset() // always nil
		return nil, fmt.Errorf("accept stream: %w", err)
	}
	return i.st, nil
}

// Refuse answers that the stream is not taken. The code is best one of the Code constants.
func (i *Incoming) Refuse(code, reason string) error {
	answer, err := appendBlock(nil, verdict{Code: code, Reason: clip(reason)})
	if err == nil {
		_, err = i.st.Write(answer)
	}
	if err != nil {
		_ = i.st.Reset() // always nil
		return fmt.Errorf("refuse stream: %w", err)
	}
	return i.st.Close()
}

// run starts the goroutines of the session.
func (s *AgentSession) run() error {
	s.listen(s.handle)
	if !s.l.spawn(s.heartbeat) {
		return s.l.reason()
	}
	return nil
}

// arrived takes a stream from the link, which accepts all so that none is reset for want of room, and limits them afterwards.
func (s *AgentSession) arrived(st *Stream) {
	if int(s.waiting.Add(1)) > s.o.MaxUnaccepted || s.l.number() > maxAgentStreams ||
		!s.l.spawn(func() { s.receive(st) }) {
		s.waiting.Add(-1)
		_ = st.Reset() // always nil
	}
}

// receive reads the header of a stream and passes the stream on.
func (s *AgentSession) receive(st *Stream) {
	h, err := Header{}, st.SetReadDeadline(time.Now().Add(s.patience))
	if err == nil {
		h, err = readHeader(st)
	}
	if err == nil {
		err = st.SetReadDeadline(time.Time{})
	}
	in := &Incoming{st, h}
	switch {
	case err != nil:
		_ = st.Reset() // always nil
	case s.leaving.Load():
		// The stream is reset when it cannot be refused.
		_ = in.Refuse(CodeDraining, "agent is leaving")
	default:
		s.incoming <- in // never blocks: there is room for all that wait
		return
	}
	s.waiting.Add(-1)
}

// heartbeat asks the node for a sign of life when nothing was heard for a while, and ends the session without one.
func (s *AgentSession) heartbeat() {
	every := min(heartbeatTick, s.o.Heartbeat)
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-s.l.done:
			s.end()
			return
		case <-s.l.closing:
			s.drain(nil)
			select {
			case <-s.l.done:
				s.end()
				return
			case <-tick.C:
			}
		case <-tick.C:
		}
		s.l.check(s.o.Heartbeat, s.o.Dead-every, stallTimeout)
	}
}

// end answers all who wait.
func (s *AgentSession) end() {
	s.drain(nil)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending = nil // they watch done themselves
}

// drain notes that the session takes nothing new.
func (s *AgentSession) drain(notice *Drain) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if notice != nil {
		s.notice = *notice
	}
	if !s.drained {
		s.drained = true
		close(s.draining)
	}
}

// handle acts on a control message of the node.
func (s *AgentSession) handle(kind string, object []byte) error {
	switch kind {
	case "listening", "refused":
		v, err := decode[verdict](object)
		if err != nil {
			return err
		}
		if kind == "listening" {
			s.answer(v.Endpoint, nil)
			return nil
		}
		refusal := &RefusedError{Code: clip(v.Code), Reason: clip(v.Reason)}
		if !s.answer(v.Endpoint, refusal) && s.o.OnRefused != nil {
			s.o.OnRefused(v.Endpoint, refusal)
		}
		return nil
	case "drain":
		d, err := decode[Drain](object)
		if err != nil {
			return err
		}
		d.Reason = clip(d.Reason)
		s.drain(&d)
		return nil
	}
	if s.o.OnMessage != nil {
		s.o.OnMessage(kind, object)
	}
	return nil
}

// answer hands an answer to the Listen that waits for it longest, and reports whether there is one.
func (s *AgentSession) answer(endpoint string, err *RefusedError) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	queue := s.pending[endpoint]
	if len(queue) == 0 {
		return false
	}
	var result error
	if err != nil {
		result = err
	}
	queue[0] <- result // never blocks: it has room for one
	if len(queue) == 1 {
		delete(s.pending, endpoint)
	} else {
		s.pending[endpoint] = queue[1:]
	}
	return true
}

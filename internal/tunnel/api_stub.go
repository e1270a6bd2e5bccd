package tunnel

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"
)

var errLater = errors.New("not built yet")

// Session is the opening end.
type Session struct{}

// AcceptNative answers the handshake of a native agent.
func AcceptNative(w http.ResponseWriter, r *http.Request, o NodeOptions) (*Session, error) {
	return nil, errLater
}

// AcceptClassic answers the handshake of a classic agent.
func AcceptClassic(w http.ResponseWriter, r *http.Request, o NodeOptions) (*Session, error) {
	return nil, errLater
}

// DialPeer connects to another node as the opening end.
func DialPeer(ctx context.Context, o DialOptions, n NodeOptions) (*Session, error) {
	return nil, errLater
}

func (s *Session) ID() string                                          { return "" }
func (s *Session) Classic() bool                                       { return false }
func (s *Session) RemoteAddr() net.Addr                                { return nil }
func (s *Session) Agent() Hello                                        { return Hello{} }
func (s *Session) NodeID() string                                      { return "" }
func (s *Session) Open(ctx context.Context, h Header) (*Stream, error) { return nil, errLater }
func (s *Session) Streams() int                                        { return 0 }
func (s *Session) RTT() time.Duration                                  { return 0 }
func (s *Session) Closing() <-chan struct{}                            { return nil }
func (s *Session) Done() <-chan struct{}                               { return nil }
func (s *Session) Err() error                                          { return nil }
func (s *Session) Listening(endpoint string) error                     { return nil }
func (s *Session) Refuse(endpoint, code, reason string) error          { return nil }
func (s *Session) Drain(reason string, deadline time.Time) error       { return nil }
func (s *Session) Send(kind string, body any) error                    { return nil }
func (s *Session) Shutdown(ctx context.Context) error                  { return nil }
func (s *Session) CloseNow(cause error) error                          { return nil }

// Stream is one byte stream.
type Stream struct{ net.Conn }

func (s *Stream) CloseWrite() error { return nil }
func (s *Stream) Reset() error      { return nil }
func (s *Stream) Shrink()           {}
func (s *Stream) Idle() bool        { return false }
func (s *Stream) SessionID() string { return "" }

// Keeper ends sessions whose far end is silent.
type Keeper struct{}

// KeeperOptions say how patient a Keeper is.
type KeeperOptions struct {
	Interval time.Duration
	Dead     time.Duration
}

func NewKeeper(o KeeperOptions) *Keeper         { return nil }
func (k *Keeper) Add(s *Session)                {}
func (k *Keeper) Run(ctx context.Context) error { return nil }

// AgentSession is the accepting end.
type AgentSession struct{}

// Dial connects an agent to a node.
func Dial(ctx context.Context, o DialOptions) (*AgentSession, error) { return nil, errLater }

// AcceptPeer answers the handshake of another node, as the accepting end.
func AcceptPeer(w http.ResponseWriter, r *http.Request, nodeID string, o DialOptions) (*AgentSession, error) {
	return nil, errLater
}

func (s *AgentSession) ID() string                                        { return "" }
func (s *AgentSession) NodeID() string                                    { return "" }
func (s *AgentSession) Peer() Hello                                       { return Hello{} }
func (s *AgentSession) Limits() Limits                                    { return Limits{} }
func (s *AgentSession) RemoteAddr() net.Addr                              { return nil }
func (s *AgentSession) LocalAddr() net.Addr                               { return nil }
func (s *AgentSession) Listen(ctx context.Context, l Listen) error        { return errLater }
func (s *AgentSession) Unlisten(endpoint string) error                    { return errLater }
func (s *AgentSession) Accept(ctx context.Context) (*Incoming, error)     { return nil, errLater }
func (s *AgentSession) SendToken(bearer string) error                     { return errLater }
func (s *AgentSession) SendDrain(reason string, deadline time.Time) error { return errLater }
func (s *AgentSession) Send(kind string, body any) error                  { return nil }
func (s *AgentSession) Draining() <-chan struct{}                         { return nil }
func (s *AgentSession) DrainNotice() Drain                                { return Drain{} }
func (s *AgentSession) Streams() int                                      { return 0 }
func (s *AgentSession) RTT() time.Duration                                { return 0 }
func (s *AgentSession) Done() <-chan struct{}                             { return nil }
func (s *AgentSession) Err() error                                        { return nil }
func (s *AgentSession) Shutdown(ctx context.Context) error                { return errLater }
func (s *AgentSession) CloseNow(cause error) error                        { return nil }

// Incoming is a stream that waits for its answer.
type Incoming struct{}

func (i *Incoming) Header() Header                   { return Header{} }
func (i *Incoming) Accept() (*Stream, error)         { return nil, errLater }
func (i *Incoming) Refuse(code, reason string) error { return errLater }

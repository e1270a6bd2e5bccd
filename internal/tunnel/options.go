package tunnel

import (
	"crypto/tls"
	"net/http"
	"net/url"
	"time"
)

// Defaults of the options.
const (
	defaultMaxStreams  = 1024
	defaultOpenTimeout = 10 * time.Second
	defaultHandshake   = 10 * time.Second
	defaultCloseWait   = 10 * time.Second
	defaultHeartbeat   = 10 * time.Second
	defaultWrite       = time.Minute
	defaultDead        = 25 * time.Second
	defaultUnaccepted  = 1024
)

// Handler hears what the agent of a native session asks for. Its methods are called one after another, by a goroutine of
// the session, and must not block. They may call the methods of the session.
type Handler interface {
	// Listen asks for an endpoint. The answer is [Session.Listening] or [Session.Refuse], now or later.
	Listen(s *Session, l Listen)
	// Unlisten gives an endpoint up.
	Unlisten(s *Session, endpoint string)
	// Token brings a new bearer token for the session.
	Token(s *Session, bearer string)
	// Drain asks for nothing new. [Session.Closing] is closed already.
	Drain(s *Session, d Drain)
}

// NodeOptions are the options of the opening end. The zero value is usable.
type NodeOptions struct {
	// NodeID is what the node calls itself towards agents.
	NodeID string
	// Zone is where the node runs, which agents are told; it may be empty.
	Zone string
	// MaxStreams bounds the streams of a session, those that are half closed included; 0 means 1,024.
	MaxStreams int
	// MaxEndpoints is told to the agent as a limit; keeping it is up to the handler.
	MaxEndpoints int
	// Handler hears the agent of a native session; nil ignores it.
	Handler Handler
	// OnMessage hears control messages of types that this package does not know, as whole JSON objects that are valid
	// during the call; nil ignores them. It is called like the methods of Handler.
	OnMessage func(s *Session, kind string, object []byte)
	// OnAbuse hears, once for each session, for which of the Abuse reasons it was closed. It must not block.
	OnAbuse func(reason string)
	// OnClosing is called once when [Session.Closing] is closed, and OnDone once after that, when the session has ended.
	// They save the caller a goroutine for each session. They may come before Accept has returned the session, but not
	// for one that it does not return. They may block, but must not call Wait or Shutdown.
	OnClosing, OnDone func(s *Session)
	// OpenTimeout bounds Open; 0 means 10 s.
	OpenTimeout time.Duration
	// HandshakeTimeout bounds each step of the handshake; 0 means 10 s.
	HandshakeTimeout time.Duration
	// CloseWait is how long a stream that was closed here waits for the far end to close it too, before it is reset;
	// 0 means 10 s.
	CloseWait time.Duration
	// WriteTimeout is how long a frame may wait for its turn to be sent, before the session ends; 0 means a minute. On a
	// slow line many streams may have a frame each in the queue.
	WriteTimeout time.Duration
	// Unread is the account that the session is on; nil: none. While it is full no stream is opened, and from half of it on
	// windows do not grow.
	Unread *Unread
}

// DialOptions say where and how the dialing end connects.
type DialOptions struct {
	// URL is the base of the node's upstream listener: http, https, ws or wss, with or without a path.
	URL string
	// Token is the bearer token, or empty.
	Token string
	// TenantID selects whose keys check the token, or is empty.
	TenantID string
	// Header is sent with the handshake; may be nil.
	Header http.Header
	// Hello introduces the dialing end; Version is filled in.
	Hello Hello
	// TLS is for https and wss; nil means the system's defaults.
	TLS *tls.Config
	// Proxy picks the proxy; nil means the one named by the environment.
	Proxy func(*url.URL) (*url.URL, error)
	// HandshakeTimeout bounds the connect and handshake; 0 means 10 s.
	HandshakeTimeout time.Duration
	// Heartbeat is after how much silence the node is asked for a sign of life; 0 means 10 s.
	Heartbeat time.Duration
	// Dead is after how much silence the session ends with ErrSilent; 0 means 25 s. It is found up to a second earlier.
	Dead time.Duration
	// CloseWait is how long a stream that was closed here waits for the far end to close it too, before it is reset;
	// 0 means 10 s.
	CloseWait time.Duration
	// MaxUnaccepted bounds the streams that Accept has not returned yet; more are reset. 0 means 1,024, which is as many as
	// a node opens by default: a burst is no fault.
	MaxUnaccepted int
	// OnRefused hears of an endpoint that the node takes back after it had been listening. It must not block.
	OnRefused func(endpoint string, err *RefusedError)
	// OnMessage hears control messages of types that this package does not know, as whole JSON objects that are valid
	// during the call. It must not block.
	OnMessage func(kind string, object []byte)
	// Unread is the account that a session made by AcceptPeer is on; nil: none.
	Unread *Unread
	// OnAbuse hears, once, for which of the Abuse reasons the session was closed. It must not block.
	OnAbuse func(reason string)
}

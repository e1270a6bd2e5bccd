package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/pikoproxy/piko/internal/websocket"
)

// preset fills in what is zero.
func (o DialOptions) preset() DialOptions {
	o.HandshakeTimeout = orDefault(o.HandshakeTimeout, defaultHandshake)
	o.Heartbeat = orDefault(o.Heartbeat, defaultHeartbeat)
	o.Dead = orDefault(o.Dead, defaultDead)
	o.CloseWait = orDefault(o.CloseWait, defaultCloseWait)
	o.MaxUnaccepted = orDefault(o.MaxUnaccepted, defaultUnaccepted)
	o.Hello.Version = Version
	return o
}

// Dial connects an agent to a node, and returns when hellos are exchanged. ctx bounds only that. When the node refused the
// handshake, the error wraps a [*websocket.StatusError].
func Dial(ctx context.Context, o DialOptions) (*AgentSession, error) {
	o = o.preset()
	s := newAgentSession(o)
	err := s.dial(ctx, o, PathTunnel, role{client: true, native: true, accepts: true}, &s.node,
		limits{closeWait: o.CloseWait, writeTimeout: defaultWrite}, s.arrived)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", redacted(o.URL), err)
	}
	if err := s.run(); err != nil {
		return nil, err
	}
	return s, nil
}

// DialPeer connects a node to another one, towards which it then opens streams. ctx bounds only the handshake. [Keeper] is to
// watch the session; Heartbeat, MaxUnaccepted and the callbacks of o are not used.
func DialPeer(ctx context.Context, o DialOptions, n NodeOptions) (*Session, error) {
	o, n = o.preset(), n.preset()
	s := &Session{o: n}
	o.OnAbuse = n.OnAbuse
	if err := s.dial(ctx, o, PathPeer, role{client: true, native: true}, &s.node, n.limits(), nil); err != nil {
		return nil, fmt.Errorf("connect to peer %s: %w", redacted(o.URL), err)
	}
	s.listen(s.handle)
	s.follow()
	return s, nil
}

// AcceptPeer answers the handshake of a node, which must have been authenticated, as the accepting end. When it returns an
// error before the upgrade it has answered the request. Of o, URL, Token, TenantID, Header, Hello, TLS and Proxy are not
// used. The session watches its own heartbeat.
func AcceptPeer(w http.ResponseWriter, r *http.Request, nodeID string, o DialOptions) (*AgentSession, error) {
	o = o.preset()
	s := newAgentSession(o)
	s.node = welcome{Version: Version, NodeID: nodeID}
	err := s.accept(w, r, &s.hello, s.node, acceptance{
		role:      role{native: true, accepts: true},
		limits:    limits{o.CloseWait, defaultWrite, o.Unread},
		handshake: o.HandshakeTimeout,
		onAbuse:   o.OnAbuse,
		arrived:   s.arrived,
	})
	if err == nil {
		err = s.run()
	}
	if err != nil {
		return nil, fmt.Errorf("accept peer %s: %w", r.RemoteAddr, err)
	}
	return s, nil
}

func newAgentSession(o DialOptions) *AgentSession {
	return &AgentSession{
		o:        o,
		incoming: make(chan *Incoming, o.MaxUnaccepted),
		draining: make(chan struct{}),
	}
}

// dial connects to a node and exchanges hellos. The streams that the node opens are given to arrived.
func (m *mux) dial(ctx context.Context, o DialOptions, path string, r role, node *welcome, z limits, arrived func(*Stream)) error {
	target, err := join(o.URL, path)
	if err != nil {
		return err
	}
	header := o.Header.Clone()
	if header == nil {
		header = make(http.Header)
	}
	if o.Token != "" {
		header.Set("Authorization", "Bearer "+o.Token)
	}
	if o.TenantID != "" {
		header.Set(HeaderTenant, o.TenantID)
	}
	ctx, stop := context.WithTimeout(ctx, o.HandshakeTimeout)
	defer stop()
	ws, answer, err := websocket.Dial(ctx, target, websocket.DialOptions{
		Header:           header,
		Subprotocols:     []string{Subprotocol},
		TLS:              o.TLS,
		Proxy:            o.Proxy,
		HandshakeTimeout: o.HandshakeTimeout,
		ZeroMask:         true, // TLS hides the bytes from those that masking is against
	})
	if err != nil {
		return err
	}
	if ws.Subprotocol() != Subprotocol {
		_ = ws.Close() // nothing was said yet
		return fmt.Errorf("%w: the server does not speak %s", ErrProtocol, Subprotocol)
	}
	tune(ws, false)
	l := newLink(ws, r, z, o.OnAbuse)
	l.rtt.Store(int64(ws.HandshakeTime()))
	l.widen()
	l.arrived = arrived
	m.start(l)
	// Whatever blocks is freed by the end of the session.
	unhook := context.AfterFunc(ctx, func() { l.fail(context.Cause(ctx)) })
	err = m.introduce(ctx, o.Hello, node)
	if !unhook() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		l.fail(err)
		m.Wait()
		return err
	}
	node.NodeID = orDefault(node.NodeID, answer.Get(HeaderNode))
	return nil
}

// introduce opens the control stream and exchanges hellos.
func (m *mux) introduce(ctx context.Context, hello Hello, node *welcome) error {
	p := patience{ctx: ctx}
	err := m.l.place(p)
	if err != nil {
		return err
	}
	if m.ctl.st, err = m.l.begin(p, nil); err != nil {
		return err
	}
	deadline, _ := ctx.Deadline()
	if err := m.ctl.st.SetReadDeadline(deadline); err != nil {
		return err
	}
	if err := m.send("hello", hello); err != nil {
		return err
	}
	*node, err = expect[welcome](m)
	return err
}

// join adds a path to the base URL of a node.
func join(base, path string) (string, error) {
	u, err := url.Parse(base)
	if err != nil {
		return "", errors.New("server URL is not a URL") // what Parse returns would show a password
	}
	if u.Host == "" {
		return "", fmt.Errorf("server URL %q: want a scheme and a host", u.Redacted())
	}
	u.Path = strings.TrimRight(u.Path, "/") + path
	u.RawPath, u.RawQuery, u.Fragment = "", "", ""
	return u.String(), nil
}

// redacted is a URL as it may be shown.
func redacted(base string) string {
	u, err := url.Parse(base)
	if err != nil {
		return "the server"
	}
	return u.Redacted()
}

// Package tunnel carries many byte streams over one WebSocket: the session between an agent and a node, and between two
// nodes. This comment is the specification of what goes over the wire.
//
// # Layers
//
//	stream    bytes of one client's connection; native streams begin with a header and an answer
//	yamux     streams, flow control and half-close, version 0, in 12 byte frames: the protocol of the Go module
//	          hashicorp/yamux, which classic agents use
//	WebSocket RFC 6455 binary messages; their borders mean nothing: several frames may share a message, and a frame
//	          may be split over messages
//	TCP, TLS
//
// A session has an opening end, which opens data streams ([Session]), and an accepting end ([AgentSession]). A node
// opens streams towards its agents. Between nodes the one that dialed opens them.
//
// # Classic
//
// The agent dials /piko/v1/upstream/<endpoint> without a subprotocol and is the yamux client; one session offers one
// endpoint. Only the node opens streams, and a stream has no header. A classic agent may exit for good when it sees a
// clean end of the connection, so a node ends a classic session with yamux GoAway code 2 followed by a TCP reset, and
// never with a Close frame or a FIN; SO_LINGER 0 makes that true even for a node that is killed. An agent leaves with
// GoAway code 0 and resets streams that are opened after it.
//
// # Native
//
// The dialing end requests /piko/v2/tunnel (an agent) or /piko/v2/peer (a node) with the subprotocol piko.v2. The answer
// names the node in X-Piko-Node. The dialing end is the yamux client and opens stream 1, the control stream, first.
// A stream with another number that is opened by the accepting end of a session closes the session.
//
//	agent                                                     node
//	  | GET /piko/v2/tunnel, Authorization: Bearer ...          |
//	  |-------------------------------------------------------->|
//	  |                          101, X-Piko-Node: <node id>    |
//	  |<--------------------------------------------------------|
//	  | stream 1: hello {version, agent_id, instance_id, labels}|
//	  |-------------------------------------------------------->|
//	  |             stream 1: hello {version, node_id, zone, limits} |
//	  |<--------------------------------------------------------|
//	  | stream 1: listen {endpoint, protocol, weight}           |
//	  |-------------------------------------------------------->|
//	  |                        stream 1: listening {endpoint}   |
//	  |                  or    stream 1: refused {endpoint,     |
//	  |<----------------------             code, reason}        |
//	  |                                                         |
//	  |               stream n: header {endpoint, protocol, ...}|
//	  |<--------------------------------------------------------|
//	  | stream n: answer: accept, or refuse {code, reason}      |
//	  |-------------------------------------------------------->|
//	  |<=============== stream n: payload, both ways ==========>|
//
// # Control messages
//
// A message is a length of 4 bytes, big endian, of at most 64 KiB, and then a JSON object of that length whose member
// "type" says what it is. Types and members that are not known are ignored, so both ends can grow; "version" in hello
// says what may be used. This is version 1.
//
//	dialing end   hello      {version, agent_id, instance_id, labels}    first message
//	other end     hello      {version, node_id, zone, limits {streams, endpoints}}
//	agent         listen     {endpoint, protocol, weight}      any number, at any time
//	node          listening  {endpoint}                        routable now
//	node          refused    {endpoint, code, reason}          this endpoint only, at any time; the session lives on
//	agent         unlisten   {endpoint}
//	node          drain      {reason, deadline}                connect elsewhere first, then finish here
//	agent         drain      {reason, deadline}                give me nothing new
//	agent         token      {bearer}                          renews the right to be here
//
// A deadline is RFC 3339 text in UTC. Between nodes further types may be used; they are passed through as they are.
//
// # Stream header and answer
//
// The header is a length of 2 bytes, big endian, of at most 4 KiB, and a JSON object: {endpoint, protocol, client,
// trace}. The answer is a length of 2 bytes and, unless it is 0, a JSON object {code, reason}. Length 0 means accepted:
// all bytes after it, and after the header, are payload. An object means refused, and proves that nothing of the stream
// was delivered. The opening end sends no payload before the answer. A stream that is reset before the answer
// counts as refused.
//
// # End of streams and sessions
//
// FIN ends one direction. RST ends both at once and is never taken for a clean end, nor is the end of the session.
// GoAway code 0 and the drain message ask for no new streams. A native session ends with a WebSocket Close frame.
//
// # In the process
//
// Who dials or accepts authenticates before, and reads no credentials here. All methods may be called from any goroutine
// unless they say otherwise. A session runs one goroutine, which reads; another only while there is more to send than those who
// write send themselves, or a control message to hear. The end of an agent has one more, for its heartbeat. What is to
// be sent and what nobody has read yet is held in buffers that all sessions share, so an idle one holds none. What comes for a
// stream whose WriteTo waits is offered to its writer by the goroutine that reads, without a way over another one. Of the two
// locks, a control stream's may be held while a link's is taken.
//
// The yamux module itself is used by tests only. It takes two goroutines and some 8 KiB for an idle session, wakes another
// goroutine to send and back for each frame, and would have to be guarded against what a hostile peer may send.
package tunnel

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// Version is the version of the native protocol that this package speaks.
const Version = 1

// Paths, subprotocol and header names of the handshake.
const (
	// PathClassic is followed by "/" and the endpoint.
	PathClassic = "/piko/v1/upstream"
	// PathTunnel is where agents connect.
	PathTunnel = "/piko/v2/tunnel"
	// PathPeer is where nodes connect, on the cluster listener.
	PathPeer = "/piko/v2/peer"
	// Subprotocol is the WebSocket subprotocol of native sessions.
	Subprotocol = "piko.v2"
	// HeaderNode holds the id of the node in the answer to a native handshake.
	HeaderNode = "X-Piko-Node"
	// HeaderTenant holds the tenant of an agent in the request.
	HeaderTenant = "X-Piko-Tenant-Id"
)

// What the bytes of a stream are.
const (
	// ProtocolHTTP is HTTP/1.1.
	ProtocolHTTP = "http"
	// ProtocolH2 is HTTP/2 with prior knowledge.
	ProtocolH2 = "h2"
	// ProtocolTCP is any bytes.
	ProtocolTCP = "tcp"
)

// Why a stream or an endpoint was refused.
const (
	// CodeServiceUnreachable says that the service behind the agent could not be reached.
	CodeServiceUnreachable = "service_unreachable"
	// CodeNotListening says that the far end does not offer the endpoint.
	CodeNotListening = "not_listening"
	// CodeDraining says that the far end takes nothing new.
	CodeDraining = "draining"
	// CodeOverloaded says that a limit of streams or endpoints is reached.
	CodeOverloaded = "overloaded"
	// CodeNotPermitted says that the token does not cover the endpoint.
	CodeNotPermitted = "not_permitted"
	// CodeInvalid says that the endpoint or protocol named is not a valid one.
	CodeInvalid = "invalid"
	// CodeReset says that the stream was reset before it was answered.
	CodeReset = "reset"
)

// Limits on what is read from the other end.
const (
	maxMessage = 64 << 10
	maxHeader  = 4 << 10
	maxReason  = 256
)

// Header is what a native stream begins with. It is at most 4 KiB as JSON.
type Header struct {
	// Endpoint is the canonical name that the stream is for.
	Endpoint string `json:"endpoint"`
	// Protocol is one of [ProtocolHTTP], [ProtocolH2] and [ProtocolTCP].
	Protocol string `json:"protocol,omitempty"`
	// Client is the host:port of the client, for logs and for the PROXY protocol. It is empty on pooled streams, which
	// carry the requests of many clients.
	Client string `json:"client,omitempty"`
	// Trace is a W3C traceparent, or empty.
	Trace string `json:"trace,omitempty"`
}

// Hello is how the dialing end introduces itself.
type Hello struct {
	Version    int               `json:"version"`
	AgentID    string            `json:"agent_id,omitempty"`
	InstanceID string            `json:"instance_id,omitempty"`
	Labels     map[string]string `json:"labels,omitempty"`
}

// Limits is what a node allows one session. Zero means not told.
type Limits struct {
	Streams   int `json:"streams,omitempty"`
	Endpoints int `json:"endpoints,omitempty"`
}

// Listen asks a node to route an endpoint to this session.
type Listen struct {
	Endpoint string `json:"endpoint"`
	Protocol string `json:"protocol,omitempty"`
	// Weight is the share of the load relative to other upstreams of the endpoint; 0 means 1.
	Weight int `json:"weight,omitempty"`
}

// Drain tells the other end to use this session for nothing new, and until when what runs may go on.
type Drain struct {
	Reason   string    `json:"reason,omitempty"`
	Deadline time.Time `json:"deadline,omitzero"`
}

// welcome is the hello of the end that was dialed.
type welcome struct {
	Version int    `json:"version"`
	NodeID  string `json:"node_id,omitempty"`
	Zone    string `json:"zone,omitempty"` // where the node runs, so that agents can spread their sessions
	Limits  Limits `json:"limits,omitzero"`
}

// verdict is the answer to a stream header, and with an endpoint the body of refused.
type verdict struct {
	Endpoint string `json:"endpoint,omitempty"`
	Code     string `json:"code"`
	Reason   string `json:"reason,omitempty"`
}

// bearer is the body of token.
type bearer struct {
	Bearer string `json:"bearer"`
}

// appendMessage appends a control message of the given type. body must encode as a JSON object.
func appendMessage(b []byte, kind string, body any) ([]byte, error) {
	object, err := json.Marshal(body)
	if err != nil {
		return b, fmt.Errorf("encode control message %q: %w", kind, err)
	}
	if len(object) < 2 || object[0] != '{' {
		return b, fmt.Errorf("encode control message %q: want a JSON object", kind)
	}
	name, err := json.Marshal(kind)
	if err != nil {
		return b, fmt.Errorf("encode control message type: %w", err)
	}
	start := len(b)
	b = append(b, 0, 0, 0, 0)
	b = append(b, `{"type":`...)
	b = append(b, name...)
	if len(object) > 2 {
		b = append(b, ',')
	}
	b = append(b, object[1:]...)
	size := len(b) - start - 4
	if size > maxMessage {
		return b[:start], fmt.Errorf("control message %q has %d bytes, at most %d are allowed", kind, size, maxMessage)
	}
	binary.BigEndian.PutUint32(b[start:], uint32(size)) //nolint:gosec // at most maxMessage
	return b, nil
}

// readMessage reads one control message into buf, which it grows when needed, and returns its type and the whole object.
// The object is valid until the next call.
func readMessage(r io.Reader, buf []byte) (kind string, object []byte, err error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return "", buf[:0], err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size > maxMessage {
		return "", buf[:0], fmt.Errorf("%w: %d bytes, at most %d are allowed", errMalformed, size, maxMessage)
	}
	if cap(buf) < int(size) {
		buf = make([]byte, size)
	}
	buf = buf[:size]
	if _, err := io.ReadFull(r, buf); err != nil {
		return "", buf[:0], noEOF(err)
	}
	var message struct {
		Type string `json:"type"`
	}
	if err := json.Unmarshal(buf, &message); err != nil {
		return "", buf, fmt.Errorf("%w: %w", errMalformed, err)
	}
	return message.Type, buf, nil
}

// appendBlock appends what is written before the payload of a stream: a length of 2 bytes and v as JSON.
func appendBlock(b []byte, v any) ([]byte, error) {
	object, err := json.Marshal(v)
	if err != nil {
		return b, fmt.Errorf("encode %T: %w", v, err)
	}
	if len(object) > maxHeader {
		return b, fmt.Errorf("stream header has %d bytes, at most %d are allowed", len(object), maxHeader)
	}
	b = binary.BigEndian.AppendUint16(b, uint16(len(object))) //nolint:gosec // at most maxHeader
	return append(b, object...), nil
}

// readBlock reads a length of 2 bytes and that many bytes. No bytes at all are [io.EOF]; an empty block is nil.
func readBlock(r io.Reader) ([]byte, error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	size := int(binary.BigEndian.Uint16(head[:]))
	if size > maxHeader {
		return nil, fmt.Errorf("stream header of %d bytes, at most %d are allowed", size, maxHeader)
	}
	if size == 0 {
		return nil, nil
	}
	block := make([]byte, size)
	if _, err := io.ReadFull(r, block); err != nil {
		return nil, noEOF(err)
	}
	return block, nil
}

// readHeader reads the header of a native stream.
func readHeader(r io.Reader) (Header, error) {
	var h Header
	block, err := readBlock(r)
	if err != nil {
		return h, fmt.Errorf("read stream header: %w", err)
	}
	if block == nil {
		return h, errors.New("stream header is empty")
	}
	if err := json.Unmarshal(block, &h); err != nil {
		return h, fmt.Errorf("stream header: %w", err)
	}
	return h, nil
}

// readAnswer reads the answer to a stream header: nil, a [*RefusedError], or why there is none.
func readAnswer(r io.Reader) error {
	block, err := readBlock(r)
	if err != nil {
		return fmt.Errorf("read answer to stream header: %w", err)
	}
	if block == nil {
		return nil
	}
	var v verdict
	if err := json.Unmarshal(block, &v); err != nil {
		return fmt.Errorf("answer to stream header: %w", err)
	}
	return &RefusedError{Code: v.Code, Reason: clip(v.Reason)}
}

// clip shortens a text from the other end to what fits a log line.
func clip(s string) string {
	if len(s) > maxReason {
		return s[:maxReason]
	}
	return s
}

// noEOF makes an end in the middle of something visible as such.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

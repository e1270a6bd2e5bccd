package tunnel

import (
	"errors"
	"fmt"
	"syscall"
)

// ErrSessionClosed is wrapped by what is returned once a session has ended. A stream that was open then returns it from
// Read and Write too, so that the end of a session is never taken for the end of a stream.
var ErrSessionClosed = errors.New("session closed")

// ErrOpenTimeout is returned by [Session.Open] when the far end did not answer in time. Only that call failed, but it is
// not known whether the far end saw the stream.
var ErrOpenTimeout = errors.New("stream open timeout")

// ErrReset is returned by the methods of a stream that either end has reset. It wraps ECONNRESET.
var ErrReset = fmt.Errorf("stream reset: %w", syscall.ECONNRESET)

// ErrUnread is returned by the methods of a stream that this end had to reset, since nobody read what had come while the
// session held too much. It wraps ErrReset. The far end is not to blame.
var ErrUnread = fmt.Errorf("too much that nobody reads: %w", ErrReset)

// ErrSilent is the cause of the end of a session from which nothing was heard for too long.
var ErrSilent = errors.New("peer is silent")

// ErrProtocol is wrapped by the error of a handshake whose other side does not speak our protocol.
var ErrProtocol = errors.New("not a piko tunnel")

// RefusedError says that the far end refused a stream or an endpoint. Nothing of a refused stream was delivered, so it is
// safe to try another session whatever was to be sent.
type RefusedError struct {
	// Code is one of the Code constants, or one that is not known yet.
	Code string
	// Reason is for people; at most 256 bytes when it came from the far end.
	Reason string
	// Full says that this end refused, since the session has all the streams that it may have.
	Full bool
}

// Error names the code and the reason.
func (e *RefusedError) Error() string {
	if e.Reason == "" {
		return "refused: " + e.Code
	}
	return "refused: " + e.Code + ": " + e.Reason
}

// AbuseError is the cause of the end of a session whose far end broke the protocol or a limit.
type AbuseError struct {
	// Reason is one of the Abuse constants; it fits a metric label.
	Reason string
	// Detail says what was seen.
	Detail string
}

// Error names the reason and what was seen.
func (e *AbuseError) Error() string { return e.Reason + ": " + e.Detail }

// Reasons for which a session is closed at once.
const (
	// AbuseStream is a data stream opened by the end that may not open any.
	AbuseStream = "agent_stream"
	// AbusePing is more than 20 yamux pings a second after a burst of 100.
	AbusePing = "tunnel_ping_flood"
	// AbuseGlitches is more than 1,000 frames a minute for streams that do not exist.
	AbuseGlitches = "tunnel_glitches"
	// AbuseProtocol is a frame that no correct peer sends.
	AbuseProtocol = "tunnel_protocol"
	// AbuseWindow is a data frame larger than the window, or a window that overflows.
	AbuseWindow = "tunnel_window"
	// AbuseStall is a frame that was begun and not continued for 10 s.
	AbuseStall = "tunnel_stall"
	// AbuseControl is a control message that cannot be read.
	AbuseControl = "tunnel_control"
	// AbuseWebSocket is a breach of the WebSocket protocol or of its limits.
	AbuseWebSocket = "tunnel_websocket"
)

var (
	errPeerClosed = errors.New("closed by the peer")
	errEnded      = errors.New("ended here")
	errMalformed  = errors.New("malformed control message")
)

// closedError says why a session ended.
type closedError struct{ cause error }

func (e *closedError) Error() string   { return ErrSessionClosed.Error() + ": " + e.cause.Error() }
func (e *closedError) Unwrap() []error { return []error{ErrSessionClosed, e.cause} }

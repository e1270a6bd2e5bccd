package piko

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/pikoproxy/piko/internal/tunnel"
	"github.com/pikoproxy/piko/internal/websocket"
)

var (
	// ErrUnauthorized says that a node knows the caller's token, or its absence, and does not let it in. Another try with
	// the same token will end the same.
	ErrUnauthorized = errors.New("not authorized")

	// ErrNoUpstream says that no agent listens on the endpoint, or that none of them could reach its service.
	ErrNoUpstream = errors.New("no upstream")
)

// StatusError is the answer of a node, or of something before it, that did not open the connection. It matches
// [ErrUnauthorized] for the statuses 401 and 403.
type StatusError struct {
	Status  int    // the HTTP status
	Code    string // the code of the node's error catalogue (PIKO-E####); empty when no node spoke
	Message string // what the answer said, on one line; may be empty

	noUpstream bool
}

// Error implements error.
func (e *StatusError) Error() string {
	text := fmt.Sprintf("status %d %s", e.Status, http.StatusText(e.Status))
	if e.Message != "" {
		text += ": " + e.Message
	}
	if e.Code != "" {
		text += " (" + e.Code + ")"
	}
	return text
}

// Is reports whether target is the sentinel that stands for this status.
func (e *StatusError) Is(target error) bool {
	switch target {
	case ErrUnauthorized:
		return e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden
	case ErrNoUpstream:
		return e.noUpstream
	}
	return false
}

// temporary reports whether the same handshake may succeed later without a change by anybody.
func (e *StatusError) temporary() bool {
	switch e.Status {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway,
		http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// RefusedError says that a node holds the session but will not have one endpoint on it. It matches [ErrUnauthorized] when
// the token does not permit the endpoint.
type RefusedError struct {
	Endpoint string // the endpoint that was refused
	Code     string // a word of the tunnel protocol, such as "not_permitted"
	Reason   string // the node's explanation; may be empty
}

// Error implements error.
func (e *RefusedError) Error() string {
	text := fmt.Sprintf("endpoint %q refused: %s", e.Endpoint, e.Code)
	if e.Reason != "" {
		text += ": " + e.Reason
	}
	return text
}

// Is reports whether target is the sentinel that stands for this refusal.
func (e *RefusedError) Is(target error) bool {
	return target == ErrUnauthorized && e.Code == tunnel.CodeNotPermitted
}

func (e *RefusedError) temporary() bool {
	return e.Code == tunnel.CodeDraining || e.Code == tunnel.CodeOverloaded
}

// handshakeError turns a handshake with url that was answered, but not with 101, into the exported form. Other errors name
// the url themselves.
func handshakeError(url string, err error) error {
	var ws *websocket.StatusError
	if !errors.As(err, &ws) {
		return err
	}
	e := &StatusError{Status: ws.Status, Code: ws.Header.Get("Piko-Error"), Message: message(ws.Body)}
	// Without a code of ours the 502 may come from a balancer that reached no node, which says nothing of the endpoint.
	e.noUpstream = e.Status == http.StatusBadGateway && (e.Code != "" || e.Message == "no available upstreams")
	return fmt.Errorf("connect to %s: %w", url, e)
}

// maxMessage bounds, in bytes, what an error repeats of somebody else's answer.
const maxMessage = 256

// message takes the text out of an error body: our JSON, else the first line of whatever it is.
func message(body string) string {
	var problem struct {
		Error string `json:"error"`
	}
	text := body
	if json.Unmarshal([]byte(body), &problem) == nil && problem.Error != "" {
		text = problem.Error
	}
	text, _, _ = strings.Cut(strings.TrimSpace(text), "\n")
	if strings.HasPrefix(text, "<") {
		return "" // a page for people
	}
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, text)
	if len(text) > maxMessage {
		text = strings.ToValidUTF8(text[:maxMessage], "") + "..."
	}
	return text
}

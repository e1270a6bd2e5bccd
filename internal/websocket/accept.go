package websocket

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"time"
)

// AcceptOptions is what a server decides about a connection. The zero value accepts any client.
type AcceptOptions struct {
	// Subprotocols are the subprotocols spoken, the preferred one first. When there are any, the client must offer one
	// of them; when there are none, what it offers is ignored.
	Subprotocols []string
	// Header is added to the answer. Headers of the handshake itself are left out.
	Header http.Header
	// MaxMessage is the longest message accepted, in bytes; zero means [DefaultMaxMessage].
	MaxMessage int64
}

// refusal is a handshake answered with an HTTP error.
type refusal struct {
	status int
	reason string
	name   string // a header that goes with the answer
	value  string
}

func (r *refusal) Error() string { return fmt.Sprintf("websocket handshake refused: %s", r.reason) }

// Accept makes a WebSocket of a request. When the request is no proper handshake it answers 400, 405 or 426 with a JSON
// body that says why, and returns an error. When it returns a Conn, the connection no longer belongs to the HTTP server
// and the handler may return. Authenticate before: nothing here looks at who is asking, or from which web page.
func Accept(w http.ResponseWriter, r *http.Request, o AcceptOptions) (*Conn, error) {
	subprotocol, refused := negotiate(r, o.Subprotocols)
	if refused != nil {
		refused.write(w)
		return nil, refused
	}
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		(&refusal{status: http.StatusInternalServerError, reason: "connection cannot be upgraded"}).write(w)
		return nil, fmt.Errorf("websocket handshake: take over connection: %w", err)
	}
	early, err := buffered(rw.Reader)
	if err == nil {
		err = accept(conn, r.Header.Get("Sec-WebSocket-Key"), subprotocol, o.Header)
	}
	if err != nil {
		_ = conn.Close() // the first error is the one to tell
		return nil, fmt.Errorf("websocket handshake: answer %s: %w", r.RemoteAddr, err)
	}
	c := newConn(conn, false, o.MaxMessage)
	c.subprotocol, c.early = subprotocol, early
	return c, nil
}

// buffered returns a copy of what r has read ahead, so that r can be let go.
func buffered(r *bufio.Reader) ([]byte, error) {
	if r.Buffered() == 0 {
		return nil, nil
	}
	b, err := r.Peek(r.Buffered())
	return bytes.Clone(b), err
}

// accept writes the 101 answer.
func accept(conn net.Conn, key, subprotocol string, header http.Header) error {
	var b bytes.Buffer
	b.WriteString("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n")
	b.WriteString("Sec-WebSocket-Accept: " + acceptKey(key) + "\r\n")
	if subprotocol != "" {
		b.WriteString("Sec-WebSocket-Protocol: " + subprotocol + "\r\n")
	}
	_ = without(header).Write(&b) // into memory
	b.WriteString("\r\n")
	if err := conn.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return err
	}
	if _, err := conn.Write(b.Bytes()); err != nil {
		return err
	}
	return conn.SetDeadline(time.Time{})
}

// negotiate checks a request by RFC 6455, 4.2.1 and chooses a subprotocol.
func negotiate(r *http.Request, subprotocols []string) (string, *refusal) {
	h := r.Header
	switch {
	case r.Method != http.MethodGet:
		return "", &refusal{http.StatusMethodNotAllowed, "method is not GET", "Allow", http.MethodGet}
	case r.ProtoMajor != 1 || r.ProtoMinor < 1:
		return "", bad("websocket needs HTTP/1.1")
	case len(h.Values("Upgrade")) == 0:
		return "", &refusal{http.StatusUpgradeRequired, "not a websocket handshake", "Upgrade", "websocket"}
	case !only(h, "Upgrade", "websocket"):
		return "", bad("upgrade is not exactly websocket")
	case !contains(h, "Connection", "upgrade"):
		return "", bad("connection header does not name upgrade")
	case len(h.Values("Sec-WebSocket-Version")) == 0:
		return "", bad("missing websocket version")
	case !only(h, "Sec-WebSocket-Version", version):
		return "", &refusal{
			http.StatusUpgradeRequired, "websocket version is not " + version, "Sec-WebSocket-Version", version,
		}
	case r.ContentLength != 0 || len(r.TransferEncoding) > 0:
		return "", bad("websocket handshake with a body")
	}
	keys := h.Values("Sec-WebSocket-Key")
	if len(keys) != 1 {
		return "", bad("want one websocket key")
	}
	if key, err := base64.StdEncoding.Strict().DecodeString(keys[0]); err != nil || len(key) != 16 {
		return "", bad("websocket key is not 16 bytes in base64")
	}
	if len(subprotocols) == 0 {
		return "", nil
	}
	offered := tokens(h, "Sec-WebSocket-Protocol")
	for _, name := range subprotocols {
		if slices.Contains(offered, name) {
			return name, nil
		}
	}
	return "", bad("no websocket subprotocol in common")
}

func bad(reason string) *refusal { return &refusal{status: http.StatusBadRequest, reason: reason} }

// write answers the request.
func (r *refusal) write(w http.ResponseWriter) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	if r.name != "" {
		h.Set(r.name, r.value)
	}
	if r.name == "Upgrade" {
		h.Set("Connection", "Upgrade")
	}
	w.WriteHeader(r.status)
	body := struct {
		Error string `json:"error"`
	}{r.reason}
	_ = json.NewEncoder(w).Encode(body) // the client has gone if this fails
}

// IsRefused reports whether err comes from an Accept that answered the request as no proper handshake: the fault of the
// client, not of the connection.
func IsRefused(err error) bool {
	_, ok := errors.AsType[*refusal](err)
	return ok
}

package websocket

import (
	"crypto/sha1" //nolint:gosec // RFC 6455, 4.2.2 asks for it; it protects nothing
	"encoding/base64"
	"net/http"
	"strings"
	"time"
)

const (
	// handshakeTimeout bounds a whole Dial, and the writing of the answer in Accept.
	handshakeTimeout = 10 * time.Second
	// version is the only version of the protocol in use.
	version = "13"
)

// acceptKey returns the proof that a server has read the client's key.
func acceptKey(key string) string {
	//nolint:gosec // see the import
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// tokens returns the elements of a header that is a list of tokens, over all its lines.
func tokens(h http.Header, name string) []string {
	var list []string
	for _, line := range h.Values(name) {
		for token := range strings.SplitSeq(line, ",") {
			if token = strings.Trim(token, " \t"); token != "" {
				list = append(list, token)
			}
		}
	}
	return list
}

// only reports whether the header consists of the one token want, in any case.
func only(h http.Header, name, want string) bool {
	list := tokens(h, name)
	return len(list) == 1 && strings.EqualFold(list[0], want)
}

// contains reports whether the header's list has the token want, in any case.
func contains(h http.Header, name, want string) bool {
	for _, token := range tokens(h, name) {
		if strings.EqualFold(token, want) {
			return true
		}
	}
	return false
}

// without returns h less the headers that belong to the handshake itself.
func without(h http.Header) http.Header {
	h = h.Clone()
	for name := range h {
		switch canonical := http.CanonicalHeaderKey(name); canonical {
		case "Connection", "Upgrade", "Host", "Content-Length", "Transfer-Encoding":
			delete(h, name)
		default:
			if strings.HasPrefix(canonical, "Sec-Websocket-") {
				delete(h, name)
			}
		}
	}
	return h
}

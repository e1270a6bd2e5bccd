package websocket

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

const (
	maxHead          = 32 << 10        // of a server's or proxy's answer up to the 101 or the body, in bytes
	maxErrorBody     = 4 << 10         // of the body of an answer other than 101, in bytes
	errorBodyTimeout = 2 * time.Second // for reading it
	maxInformational = 5               // answers of the kind 1xx before the one that counts
)

// answer is what a server or a proxy answered. What it sent after the head is still to be read from br.
type answer struct {
	status  int
	header  http.Header
	body    io.ReadCloser
	br      *bufio.Reader
	limited *io.LimitedReader // beneath br
}

// readAnswer reads the head of the answer that counts, past informational ones.
func readAnswer(conn net.Conn) (*answer, error) {
	a := &answer{limited: &io.LimitedReader{R: conn, N: maxHead}}
	a.br = bufio.NewReader(a.limited)
	for range maxInformational + 1 {
		//nolint:bodyclose // it is the connection, which the caller closes
		resp, err := http.ReadResponse(a.br, &http.Request{Method: http.MethodGet})
		switch {
		case err != nil && a.limited.N <= 0:
			return nil, fmt.Errorf("head of the answer is longer than %d bytes", maxHead)
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil, fmt.Errorf("connection closed before the answer: %w", io.ErrUnexpectedEOF)
		case err != nil:
			return nil, fmt.Errorf("read answer: %w", err)
		case resp.StatusCode >= 200 || resp.StatusCode == http.StatusSwitchingProtocols:
			a.status, a.header, a.body = resp.StatusCode, resp.Header, resp.Body
			return a, nil
		}
	}
	return nil, fmt.Errorf("more than %d informational answers", maxInformational)
}

// text returns the beginning of the body, or as much of it as comes soon from conn.
func (a *answer) text(conn net.Conn) string {
	if err := conn.SetReadDeadline(time.Now().Add(errorBodyTimeout)); err != nil {
		return ""
	}
	body, _ := io.ReadAll(io.LimitReader(a.body, maxErrorBody)) // what there is will do
	return string(body)
}

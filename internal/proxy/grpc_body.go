package proxy

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/pikoproxy/piko/internal/h2"
	"github.com/pikoproxy/piko/internal/syntax"
)

// callSender sends the body of a call while the answer may already be coming back. It is one goroutine, which the call waits
// for before it ends.
type callSender struct {
	call    *call
	message messageReader
	read    atomic.Int64
	done    chan struct{} // closed by run

	// Valid after done.
	complete bool  // the service was sent all of it, or will be when the connection is flushed
	kept     bool  // all of it is in the exchange, and can be sent again
	err      error // the client's fault: it broke off, or breaks the limits
}

// run copies until the body ends, the client or the service breaks, or nobody wants the rest.
func (s *callSender) run(again bool) {
	defer close(s.done)
	x := s.call.x
	var body io.Reader = &s.message
	s.message = messageReader{r: x.reader, text: isText(x.r)}
	if again {
		body = bytes.NewReader(x.inline)
	}
	room := x.server.buffers.middle.Get().(*[copyMiddle]byte)
	defer x.server.buffers.middle.Put(room)
	for s.kept = true; !s.complete; {
		n, err := body.Read(room[:])
		if !again {
			s.read.Add(int64(n))
			s.keep(room[:n])
		}
		end := errors.Is(err, io.EOF)
		if err != nil && !end {
			s.fail(err)
			return
		}
		trailer := end && hasValues(x.r.Trailer)
		if (n > 0 || end) && s.call.c.Send(room[:n], end && !trailer) != nil {
			return // the answer may explain why
		}
		if trailer && s.call.c.SendTrailer(appendTrailers(nil, x.r.Trailer)) != nil {
			return
		}
		s.complete = end
	}
	s.call.awaitHead()
}

// keep remembers a small body, which might have to be sent again.
func (s *callSender) keep(p []byte) {
	x := s.call.x
	if s.kept = s.kept && len(x.inline)+len(p) <= inlineLimit; s.kept {
		x.inline = append(x.inline, p...)
	}
}

// fail breaks the call off: a body that did not come to its end must never look complete to the service.
func (s *callSender) fail(err error) {
	k := s.call
	k.mu.Lock()
	over := k.over // and so it was us who ended the reading
	k.mu.Unlock()
	if !over {
		s.err = err
		k.interrupt()
	}
}

// stopSender makes the sender return, and waits for it. Writing to the stream must not take for ever any more.
func (k *call) stopSender() {
	if k.sender != nil {
		// The server resets the stream of a request whose body was not read when the handler returns (RFC 9113, 8.1).
		_ = k.x.r.Body.Close()
		<-k.sender.done
	}
}

// bodyErr is what the client has done wrong, after the call has ended.
func (k *call) bodyErr() error {
	if k.sender == nil {
		return nil
	}
	return k.sender.err
}

// repeatable reports, after the call has ended, whether all of the request is here to be sent again.
func (k *call) repeatable() bool {
	return k.sender == nil || k.sender.complete && k.sender.kept
}

// appendBodyFields adds what describes the body of the request.
func (k *call) appendBodyFields(b []byte) []byte {
	x := k.x
	switch {
	case x.body == byLength:
		b = h2.AppendField(b, "content-length", strconv.FormatInt(x.r.ContentLength, 10))
	case x.body == noBody && x.r.Method == http.MethodPost:
		b = h2.AppendField(b, "content-length", "0")
	}
	var names []string
	for name := range x.r.Trailer {
		if syntax.IsToken(name) && inTrailer(name) {
			names = append(names, name)
		}
	}
	if len(names) > 0 {
		b = h2.AppendField(b, "trailer", strings.Join(names, ", "))
	}
	return b
}

// hasValues reports whether trailer fields have come that may be passed on.
func hasValues(trailer http.Header) bool {
	for name, lines := range trailer {
		if len(lines) > 0 && syntax.IsToken(name) && inTrailer(name) {
			return true
		}
	}
	return false
}

func appendTrailers(b []byte, trailer http.Header) []byte {
	for name, lines := range trailer {
		for _, line := range lines {
			if syntax.IsToken(name) && inTrailer(name) && syntax.IsValue(line) {
				b = h2.AppendField(b, name, line)
			}
		}
	}
	return b
}

// messageReader reads the body of a call. Its client may rest between two messages as long as it likes; within a message it
// is held to the pace of all bodies.
//
//	1 byte: compressed or not, 4 bytes: length, the message
type messageReader struct {
	r    *bodyReader
	text bool  // base64, in which messages are not looked for
	head int   // bytes of the next head that have come
	size int64 // as far as they tell
	left int64 // bytes of the message still to come
}

const messageHead = 5

// isText reports whether messages are sent as base64.
func isText(r *http.Request) bool {
	return strings.HasPrefix(single(r.Header["Content-Type"]), "application/grpc-web-text")
}

// Read reads from the client.
func (m *messageReader) Read(p []byte) (int, error) {
	if m.text {
		return m.r.Read(p)
	}
	var n int
	var err error
	if m.head == 0 && m.left == 0 {
		n, err = m.r.body.Read(p)
		n, err = m.r.took(n, err)
	} else {
		n, err = m.r.Read(p)
	}
	m.follow(p[:n])
	return n, err
}

// follow finds out where in a message p ends.
func (m *messageReader) follow(p []byte) {
	for len(p) > 0 {
		if m.left > 0 {
			n := min(m.left, int64(len(p)))
			m.left -= n
			p = p[n:]
			continue
		}
		if m.head > 0 {
			m.size = m.size<<8 | int64(p[0])
		}
		p = p[1:]
		if m.head++; m.head == messageHead {
			m.left, m.size, m.head = m.size, 0, 0
		}
	}
}

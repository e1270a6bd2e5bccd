package proxy

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/pikoproxy/piko/internal/syntax"
)

// plainRoom is the size of the buffer that answers are joined in, so that a small one is a single write.
const plainRoom = 8 << 10

// plainWriter writes the answers of a plainConn. It is the http.ResponseWriter of its exchanges, for answers of our own;
// those of services go the short way, by respond.
type plainWriter struct {
	c      *plainConn
	header http.Header // made by the first Header
	room   *[plainRoom]byte
	buf    []byte      // in room: what is to be sent
	hasty  atomic.Bool // a deadline for writing was set, by any goroutine
	bare   bool        // the answer has no body
	chunks bool
	wrote  bool // the head of the final answer
	close  bool // the connection shall end with this answer
	left   int64
	err    error
	tail   []field // the trailer
}

// begin prepares for the answer to another request.
func (w *plainWriter) begin() {
	w.bare, w.chunks, w.wrote, w.left, w.tail = false, false, false, 0, nil
	w.close = false
	if w.c.traits&hasConnection != 0 {
		var options connection
		for _, line := range w.c.header["Connection"] {
			options.parse(line)
		}
		w.close = options.close
	}
}

// open borrows the buffer, when there is something to put into it: until then others answer with it, and it is warm.
func (w *plainWriter) open() {
	if w.room == nil {
		w.room = w.c.server.answers.Get().(*[plainRoom]byte)
		w.buf = w.room[:0]
	}
}

// end gives the buffer back. An idle connection holds none.
func (w *plainWriter) end() {
	if w.room != nil {
		w.c.server.answers.Put(w.room)
		w.room, w.buf = nil, nil
	}
	clear(w.header)
}

// Header returns the header of an answer of our own.
func (w *plainWriter) Header() http.Header {
	if w.header == nil {
		w.header = make(http.Header)
	}
	return w.header
}

// WriteHeader writes the head of an answer of our own, or passes on an informational one.
func (w *plainWriter) WriteHeader(status int) {
	if w.wrote {
		return
	}
	w.open()
	if status < 200 {
		w.buf = appendStatus(w.buf, status)
		w.appendHeader()
		w.buf = append(w.buf, crlf...)
		_ = w.FlushError() // the next write fails too
		return
	}
	w.wrote = true
	w.bare = w.c.request.Method == http.MethodHead || status == http.StatusNoContent || status == http.StatusNotModified
	w.close = w.close || w.c.last() || slices.Contains(w.header["Connection"], "close")
	if w.c.guard.Left() > 0 && !w.close {
		w.close = !w.c.discardBody() // what is left of the body must not be taken for the next request
	}
	w.buf = appendStatus(w.buf, status)
	w.appendHeader()
	if lines := w.header["Content-Length"]; len(lines) == 1 {
		w.left, _ = syntax.ParseLength(lines[0]) // by ourselves
	} else if !w.bare {
		w.chunks = true
		w.buf = append(w.buf, "Transfer-Encoding: chunked\r\n"...)
	}
	w.endHead(len(w.header["Date"]) > 0)
}

func (w *plainWriter) appendHeader() {
	for name, lines := range w.header {
		for _, line := range lines {
			if name != "Connection" || !strings.EqualFold(line, "close") {
				w.buf = appendField(w.buf, name, line)
			}
		}
	}
}

// endHead writes what describes the connection, and the end of the head.
func (w *plainWriter) endHead(dated bool) {
	if !dated {
		w.buf = append(append(append(w.buf, "Date: "...), w.c.server.date.now()...), crlf...)
	}
	if w.close {
		w.buf = append(w.buf, "Connection: close\r\n"...)
	}
	w.buf = append(w.buf, crlf...)
}

// respond writes the head of a service's answer, which is that of the exchange.
func (w *plainWriter) respond(x *exchange) {
	h := &x.head
	w.open()
	w.wrote = true
	w.bare = h.framing == noBody
	// What the client has not sent of its request can't be told from the next one.
	w.close = w.close || w.c.last() || !x.bodyEnded()
	w.buf = appendStatus(w.buf, h.status)
	dated := false
	for _, f := range h.fields {
		if x.keepsAnswerField(f.name) {
			dated = dated || f.name == "Date"
			w.buf = appendLine(w.buf, f.name, f.value)
		}
	}
	switch {
	case w.bare:
	case h.framing == byLength:
		w.left = h.length
	default:
		w.chunks = true
		w.buf = append(w.buf, "Transfer-Encoding: chunked\r\n"...)
	}
	if h.framing == byChunks && h.trailer {
		w.header = w.Header()
		x.announceTrailer(w.header)
		for _, name := range w.header["Trailer"] {
			w.buf = appendField(w.buf, "Trailer", name)
		}
	}
	if h.status == http.StatusUpgradeRequired && isProtocolList(h.upgrade) {
		w.buf = appendField(w.buf, "Upgrade", h.upgrade)
		w.buf = append(w.buf, "Connection: Upgrade\r\n"...)
	}
	w.endHead(dated)
}

// Write writes a piece of the body.
func (w *plainWriter) Write(p []byte) (int, error) {
	switch {
	case w.err != nil:
		return 0, w.err
	case w.bare:
		return 0, http.ErrBodyNotAllowed
	case len(p) == 0:
		return 0, nil
	case w.chunks:
		w.buf = append(strconv.AppendInt(w.buf, int64(len(p)), 16), crlf...)
	default:
		if w.left -= int64(len(p)); w.left < 0 {
			w.left += int64(len(p))
			return 0, http.ErrContentLength
		}
	}
	const spare = 64 // for the lines around a chunk, and the last one
	if len(w.buf)+len(p)+spare <= plainRoom {
		w.buf = append(w.buf, p...)
	} else if w.send(p) != nil {
		return 0, w.err
	}
	if w.chunks {
		w.buf = append(w.buf, crlf...)
	}
	return len(p), nil
}

// send writes what is in the buffer, and p.
func (w *plainWriter) send(p []byte) error {
	below, joiner := w.c.below, w.c.joiner
	switch {
	case len(w.buf) == 0:
		_, w.err = below.Write(p)
	case joiner != nil:
		_, w.err = joiner.WriteAfter(w.buf, p)
	default:
		if _, w.err = below.Write(w.buf); w.err == nil {
			_, w.err = below.Write(p)
		}
	}
	w.buf = w.room[:0]
	return w.err
}

// Flush sends what is in the buffer.
func (w *plainWriter) Flush() { _ = w.FlushError() }

// FlushError is Flush, and says what has gone wrong in this write or one before.
func (w *plainWriter) FlushError() error {
	if len(w.buf) > 0 && w.err == nil {
		_, w.err = w.c.below.Write(w.buf)
		w.buf = w.room[:0]
	}
	return w.err
}

// finish ends the answer.
func (w *plainWriter) finish() error {
	switch {
	case !w.wrote, !w.bare && w.left > 0:
		return http.ErrContentLength // by a bug of ours: it must not look complete
	case w.chunks && !w.bare:
		w.buf = append(w.buf, "0\r\n"...)
		for _, f := range w.tail {
			w.buf = appendField(w.buf, f.name, f.value)
		}
		w.buf = append(w.buf, crlf...)
	}
	return w.FlushError()
}

// SetReadDeadline bounds all further reading in this exchange.
func (w *plainWriter) SetReadDeadline(t time.Time) error {
	w.c.touched.Store(true)
	return w.c.guard.SetReadDeadline(t)
}

// SetWriteDeadline bounds all further writing in this exchange.
func (w *plainWriter) SetWriteDeadline(t time.Time) error {
	w.hasty.Store(true)
	return w.c.guard.SetWriteDeadline(t)
}

// appendStatus writes a status line. The reason is ours, as with net/http.
func appendStatus(b []byte, status int) []byte {
	b = append(b, "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(status), 10)
	b = append(b, ' ')
	if text := http.StatusText(status); text != "" {
		b = append(b, text...)
	} else {
		b = strconv.AppendInt(append(b, "status code "...), int64(status), 10)
	}
	return append(b, crlf...)
}

// clock gives the date as HTTP writes it, made once a second.
type clock struct{ last atomic.Pointer[dated] }

type dated struct {
	second int64
	text   string
}

func (c *clock) now() string {
	now := time.Now()
	d := c.last.Load()
	if d == nil || d.second != now.Unix() {
		d = &dated{now.Unix(), now.UTC().Format(http.TimeFormat)}
		c.last.Store(d)
	}
	return d.text
}

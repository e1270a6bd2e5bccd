package proxy

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/pikoproxy/piko/internal/socket"
	"github.com/pikoproxy/piko/internal/syntax"
)

const (
	maxChunkLine    = 4 << 10  // a chunk size with its extensions, or the longest part of a trailer line
	maxExtensions   = 16 << 10 // bytes of chunk extensions in one body
	maxTrailerBytes = 16 << 10
	copyMiddle      = 16 << 10
	copyLarge       = socket.Block
)

// errClient marks an error of writing to the client: it is gone, and the upstream is not to blame.
var errClient = errors.New("write to client")

// copyBuffers keeps the larger buffers for bodies. Small and idle ones need none: they go from the stream's own reader
// straight to the client.
type copyBuffers struct{ middle, large sync.Pool }

func newCopyBuffers() *copyBuffers {
	return &copyBuffers{
		middle: sync.Pool{New: func() any { return new([copyMiddle]byte) }},
		large:  sync.Pool{New: func() any { return new([copyLarge]byte) }},
	}
}

// bodyCopier takes the body of an answer from the stream's reader to the client. It flushes before it waits for the
// service and never else: what is there goes out in one piece, and nothing is held back that could be sent.
type bodyCopier struct {
	br       *bufio.Reader
	w        http.ResponseWriter
	flusher  http.Flusher
	buffers  *copyBuffers
	dirty    bool // written, and perhaps still in a buffer of net/http
	written  int64
	patience time.Duration // for one write; with dog
	dog      *watchdog     // nil: writes may take as long as they like
	slow     bool          // it has barked
	level    int           // of the buffer that the last reads have earned: 0 none, 1 middle, 2 large
}

// copy passes on the body and returns its trailer fields. io.ErrUnexpectedEOF and every other error mean that the
// client must see the answer break.
func (c *bodyCopier) copy(f framing, length int64) (trailer []field, err error) {
	switch f {
	case byLength:
		return nil, c.exactly(length)
	case byChunks:
		return c.chunks()
	case byClose:
		return nil, c.toEnd()
	default:
		return nil, nil
	}
}

func (c *bodyCopier) flush() {
	if c.dirty {
		// An error shows at the next write.
		_ = c.guarded(func() error { c.flusher.Flush(); return nil })
		c.dirty = false
	}
}

func (c *bodyCopier) write(p []byte) error {
	var n int
	err := c.guarded(func() (err error) {
		n, err = c.w.Write(p)
		return err
	})
	c.written += int64(n)
	c.dirty = true
	if err != nil {
		return fmt.Errorf("%w: %w", errClient, err)
	}
	return nil
}

// some passes on what is there, at most limit bytes, and waits for it if nothing is. It returns io.EOF when the service
// has ended the stream.
func (c *bodyCopier) some(limit int64) (int64, error) {
	if c.br.Buffered() == 0 {
		c.flush()
		if c.level > 0 && limit > int64(c.br.Size()) {
			return c.large(limit)
		}
		if _, err := c.br.Peek(1); err != nil {
			return 0, err
		}
		if c.br.Buffered() == c.br.Size() {
			c.level = 1
		}
	}
	p, err := c.br.Peek(int(min(limit, int64(c.br.Buffered()))))
	if err != nil {
		return 0, err
	}
	if err := c.write(p); err != nil {
		return 0, err
	}
	_, err = c.br.Discard(len(p))
	return int64(len(p)), err
}

// large is one read into a buffer that is larger than the reader's own, which the reader then leaves out of the way.
// The buffer grows while reads fill it and is given back at once when they no longer do.
func (c *bodyCopier) large(limit int64) (int64, error) {
	var p []byte
	if c.level == 1 {
		b := c.buffers.middle.Get().(*[copyMiddle]byte)
		defer c.buffers.middle.Put(b)
		p = b[:]
	} else {
		b := c.buffers.large.Get().(*[copyLarge]byte)
		defer c.buffers.large.Put(b)
		p = b[:]
	}
	if limit < int64(len(p)) {
		p = p[:limit]
	}
	n, err := c.br.Read(p)
	switch {
	case n == len(p):
		c.level = 2
	case n < c.br.Size():
		c.level = 0
	}
	if n > 0 {
		if err := c.write(p[:n]); err != nil {
			return 0, err
		}
		return int64(n), nil
	}
	return 0, err
}

func (c *bodyCopier) exactly(n int64) error {
	for n > 0 {
		m, err := c.some(n)
		n -= m
		if err != nil {
			return cut(err)
		}
	}
	return nil
}

func (c *bodyCopier) toEnd() error {
	for {
		_, err := c.some(1 << 62)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// chunks passes on a chunked body. Chunk extensions are dropped: they are hop-by-hop (RFC 9112, 7.1.1).
func (c *bodyCopier) chunks() ([]field, error) {
	extensions := 0
	for {
		line, err := c.line()
		if err != nil {
			return nil, err
		}
		size, extension, err := parseChunkLine(line)
		if err != nil {
			return nil, err
		}
		if extensions += extension; extensions > maxExtensions {
			return nil, malformed("more than %d bytes of chunk extensions", maxExtensions)
		}
		if size == 0 {
			return c.trailer()
		}
		if err := c.exactly(size); err != nil {
			return nil, err
		}
		if line, err = c.line(); err != nil {
			return nil, err
		}
		if len(line) != 0 {
			return nil, malformed("chunk longer than its size")
		}
	}
}

// line returns the next line without its CRLF, valid until the next read.
func (c *bodyCopier) line() ([]byte, error) {
	window, err := c.br.Peek(c.br.Buffered())
	if err != nil {
		return nil, err
	}
	if !hasLine(window) {
		c.flush()
	}
	line, err := c.br.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) || (err == nil && len(line) > maxChunkLine) {
		return nil, malformed("chunk or trailer line too long")
	}
	if err != nil {
		return nil, cut(err)
	}
	if len(line) < 2 || line[len(line)-2] != '\r' {
		return nil, malformed("line without CR in the body")
	}
	return line[:len(line)-2], nil
}

func (c *bodyCopier) trailer() (fields []field, err error) {
	total := 0
	for {
		line, err := c.line()
		if err != nil {
			return nil, err
		}
		if len(line) == 0 {
			return fields, nil
		}
		if total += len(line); total > maxTrailerBytes {
			return nil, malformed("trailers larger than %d bytes", maxTrailerBytes)
		}
		f, err := parseField(string(line))
		if err != nil {
			return nil, err
		}
		if inTrailer(f.name) {
			fields = append(fields, f)
		}
	}
}

// parseChunkLine reads a chunk size and returns it with the number of bytes of its extensions (RFC 9112, 7.1).
func parseChunkLine(line []byte) (size int64, extension int, err error) {
	digits := 0
	for digits < len(line) {
		v := unhex(line[digits])
		if v < 0 {
			break
		}
		size = size<<4 | int64(v)
		digits++
		if digits > 15 {
			return 0, 0, malformed("chunk size too large")
		}
	}
	rest := line[digits:]
	if digits == 0 {
		return 0, 0, malformed("chunk size")
	}
	if len(rest) == 0 {
		return size, 0, nil
	}
	if t := trimOWS(string(rest)); t == "" || t[0] != ';' || !syntax.IsValue(t) {
		return 0, 0, malformed("chunk extension")
	}
	return size, len(rest), nil
}

func unhex(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

func hasLine(p []byte) bool {
	for i := range p {
		if p[i] == '\n' {
			return true
		}
	}
	return false
}

// cut is the error for a body that ended before its end.
func cut(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

package proxy

import (
	"errors"
	"io"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/pikoproxy/piko/internal/router"
	"github.com/pikoproxy/piko/internal/syntax"
)

const (
	inlineLimit   = 8 << 10                 // a body up to this is read first and sent with the head in one write
	chunkRoom     = len("ffff") + len(crlf) // in front of a chunk of less than copyLarge bytes
	lingerBytes   = 256 << 10               // of a body nobody wants any more, read so that the client sees the answer
	lingerTimeout = 300 * time.Millisecond
	crlf          = "\r\n"
)

// bodySender sends the body of a request to the service while the answer may already be coming back. It is one
// goroutine per such request, which the exchange waits for before it ends.
type bodySender struct {
	r       *http.Request
	body    io.Reader // of r, within its limits
	stream  *router.Stream
	chunked bool
	sent    func() // called when everything was sent

	read    atomic.Int64
	ended   atomic.Bool   // the client has sent all of it
	stopped atomic.Bool   // nobody wants the rest
	done    chan struct{} // closed by run

	// Valid after done.
	complete bool  // the service was sent all of it
	err      error // the client's fault: it broke off, or its framing is wrong
}

// run copies until the body ends, the client or the service breaks, or somebody sets stopped.
func (s *bodySender) run(buffers *copyBuffers) {
	defer close(s.done)
	middle := buffers.middle.Get().(*[copyMiddle]byte)
	defer buffers.middle.Put(middle)
	var large *[copyLarge]byte
	defer func() {
		if large != nil {
			buffers.large.Put(large)
		}
	}()
	room := middle[:]
	for {
		// Chunk header and trailing CRLF stand around what is read, so that a chunk is one write.
		data := room[chunkRoom : len(room)-len(crlf)]
		n, err := s.body.Read(data)
		s.read.Add(int64(n))
		// Set before the write: whoever sees the service's answer to the last byte must find it set.
		if errors.Is(err, io.EOF) {
			s.ended.Store(true)
		}
		if s.stopped.Load() {
			s.discard(data, err)
			return
		}
		if n > 0 && s.write(room, n) != nil {
			// The service reads no more. Its answer may explain why; see exchange.
			s.discard(data, err)
			return
		}
		switch {
		case errors.Is(err, io.EOF):
			s.complete = s.writeEnd() == nil
			if s.complete {
				s.sent()
			}
			return
		case err != nil:
			s.err = err
			// A body that broke off must never look complete to the service.
			_ = s.stream.Reset()
			return
		}
		// A large buffer is for a client that sends faster than we read: one that rests holds none.
		switch full := n == len(data); {
		case full && large == nil:
			large = buffers.large.Get().(*[copyLarge]byte)
			room = large[:]
		case !full && large != nil:
			buffers.large.Put(large)
			large, room = nil, middle[:]
		}
	}
}

// write sends n bytes that stand behind the room for the chunk header.
func (s *bodySender) write(room []byte, n int) error {
	from, to := chunkRoom, chunkRoom+n
	if s.chunked {
		to += copy(room[to:], crlf)
		var size [chunkRoom]byte
		header := append(strconv.AppendInt(size[:0], int64(n), 16), crlf...)
		from -= len(header)
		copy(room[from:], header)
	}
	_, err := s.stream.Write(room[from:to])
	return err
}

// writeEnd sends the last chunk and the trailer fields, which net/http knows once it has seen the end of the body.
func (s *bodySender) writeEnd() error {
	if !s.chunked {
		return nil
	}
	end := append([]byte("0"), crlf...)
	for name, lines := range s.r.Trailer {
		if syntax.IsToken(name) && inTrailer(name) {
			for _, line := range lines {
				end = appendField(end, name, line)
			}
		}
	}
	_, err := s.stream.Write(append(end, crlf...))
	return err
}

// discard reads on for a while, so that a client that sends everything before it reads does see the answer.
func (s *bodySender) discard(p []byte, err error) {
	for total := 0; err == nil && total < lingerBytes; {
		var n int
		n, err = s.body.Read(p)
		total += n
	}
	if errors.Is(err, io.EOF) {
		s.ended.Store(true)
	}
}

// stopBody makes the sender return soon, and waits for it. The stream must have been ended before, or its writes could
// last for ever.
func (x *exchange) stopBody() {
	s := x.sender
	if s == nil {
		return
	}
	if !s.ended.Load() {
		s.stopped.Store(true)
		if x.r.ProtoMajor == 1 {
			x.readDeadline(lingerTimeout)
		} else {
			// The server resets the stream of a request whose body was not read when the handler returns (RFC 9113,
			// 8.1).
			_ = x.r.Body.Close()
		}
	}
	<-s.done
}

// readDeadline bounds all further reading from an HTTP/1 client in this request, also what net/http does by itself when
// the handler has returned. net/http sets a new one for the next request.
func (x *exchange) readDeadline(d time.Duration) {
	if w, ok := x.w.(interface{ SetReadDeadline(time.Time) error }); ok {
		// Where it can't be set the connection is broken, and reading fails by itself.
		_ = w.SetReadDeadline(time.Now().Add(d))
	}
}

package relay

import (
	"errors"
	"io"
	"net"
	"sync"

	"github.com/pikoproxy/piko/internal/socket"
)

// sizes are the lengths of buffers, in bytes.
var sizes = [...]int{4 << 10, 16 << 10, socket.Block, 2 * socket.Block}

// restingClass is the index of the largest buffer that a direction keeps while it may have to wait for long.
const restingClass = 1

// caches hold unused buffers by class, for all relays.
var caches [len(sizes)]sync.Pool

func borrow(class int) *[]byte {
	if b, ok := caches[class].Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, sizes[class])
	return &b
}

func giveBack(class int, b *[]byte) { caches[class].Put(b) }

// source is where a direction gets its bytes from.
type source interface {
	// each reads, and calls take with what it has read, until there is no more or take returns false. The end of the
	// source is no error. The data is valid until take returns.
	each(take func(data []byte) bool) error
}

// newSource returns the source for a connection: the one that waits without a buffer where it can be had.
func newSource(conn net.Conn) source {
	if s := newSocketSource(conn); s != nil {
		return s
	}
	return &readerSource{r: conn}
}

// grown returns the class for the next read after one that brought n bytes into a buffer of class.
func grown(class, n int) int {
	switch {
	case n == sizes[class]:
		return min(class+1, len(sizes)-1)
	case class > 0 && n <= sizes[class-1]:
		return class - 1
	}
	return class
}

// readerSource reads from anything. It needs a buffer to wait with, and keeps a small one for that.
type readerSource struct {
	r     io.Reader
	class int
	buf   *[]byte
	n     int
	ended bool
}

func (s *readerSource) each(take func(data []byte) bool) error {
	for {
		data, err := s.next()
		on := len(data) == 0 || take(data)
		s.ended = err != nil || !on
		s.release()
		switch {
		case errors.Is(err, io.EOF), !on:
			return nil
		case err != nil:
			return err
		}
	}
}

func (s *readerSource) next() ([]byte, error) {
	if s.buf == nil {
		s.buf = borrow(s.class)
	}
	n, err := s.r.Read(*s.buf)
	s.n = n
	return (*s.buf)[:n], err
}

func (s *readerSource) release() {
	class := grown(s.class, s.n)
	if s.n < sizes[s.class] { // src has nothing more at hand, so the next read may have to wait
		class = min(class, restingClass)
	}
	if class != s.class || s.ended {
		giveBack(s.class, s.buf)
		s.class, s.buf = class, nil
	}
}

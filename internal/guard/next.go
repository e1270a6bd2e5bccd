package guard

import (
	"errors"
	"io"
	"net"
	"time"
)

// Head is the head of a request as the guard has judged it. All strings are parts of one, made for this head: they stay
// valid, and the slices do until the next call of [Conn.Next].
type Head struct {
	Method, Target string
	Host           string
	Fields         []Field // all but Host, as they were sent
	Length         int64   // of the body
}

// Field is one field line. The name is as the client has spelled it; the value has no white space around it.
type Field struct{ Name, Value string }

// span is where a field stands in a head.
type span struct{ name, nameEnd, value, valueEnd int }

// Of returns the guard of a connection that a [Listener] has accepted; nil for one that has agreed on HTTP/2 by TLS.
func Of(c net.Conn) *Conn { return of(c) }

// Next is for a server that does without net/http while requests are of the plain kind: HTTP/1.1 in origin form, without
// Upgrade and with a body of known length, if any. It waits for the next request and returns its head, judged whole; Take
// then makes it ours, and ReadBody reads the body. The request before must have been read to its end.
//
// It returns nil and no error for a request of any other kind, also one that is refused: from then on reading is for
// net/http to do, to which Read shows everything from that request on as if nobody had looked. The same happens to a
// request that is not taken, once Read is called. An error is that of the connection; what is left of it is of no use.
func (c *Conn) Next() (*Head, error) {
	h := &c.held
	if s := c.shown; s != nil { // which may take long to be filled again
		clear(s.Fields)
		*s = Head{Fields: s.Fields[:0]}
	}
	for {
		if h.buf != nil && h.in < h.inEnd || c.state == refused {
			done, plain := c.judgeNext()
			if plain {
				return c.headAt(done), nil
			}
			if done > 0 || c.state != inHead {
				return nil, nil //nolint:nilnil // that is what the comment promises
			}
		}
		if c.err != nil {
			if err := c.atEnd(); err != nil {
				return nil, err
			}
			continue
		}
		n, err := c.Conn.Read(h.room())
		h.inEnd += n
		if n == 0 {
			h.settle()
		}
		if n > 0 && err != nil {
			c.err = err
			continue
		}
		if err := c.noted(err); err != nil {
			return nil, err
		}
	}
}

// judgeNext judges the head that is held. It returns its length when it is complete, and whether it is of the plain kind;
// if not, everything is left to Read.
func (c *Conn) judgeNext() (n int, plain bool) {
	h := &c.held
	if c.state == refused {
		return 0, false
	}
	c.head.mark = true
	n = c.completeHead(h.toJudge())
	switch {
	case c.state == refused:
		h.in = h.inEnd
		h.settle()
		c.time()
	case c.state == passing:
		h.out, h.outEnd, h.in = h.in, h.in+n, h.in+n
		c.time()
	case n > 0 && c.plain(h.buf.b[h.in:]):
		c.ready = n
		plain = true
	case n > 0:
		c.yield()
	default:
		c.time()
	}
	return n, plain
}

// plain reports whether the head that was judged is of the kind that Next returns.
func (c *Conn) plain(b []byte) bool {
	h := &c.head
	return h.minor == 1 && !h.upgrade && !h.chunked && !h.star && b[h.target.name] == '/'
}

// yield lets Read show what is held from the head on that was judged by Next.
func (c *Conn) yield() {
	c.ready, c.head = 0, head{spans: c.head.spans[:0]}
	c.judgeHeld()
}

// headAt returns what the head of n bytes says that is held.
func (c *Conn) headAt(n int) *Head {
	if c.shown == nil {
		c.shown = &Head{}
	}
	text := string(c.held.buf.b[c.held.in : c.held.in+n])
	h, t := c.shown, c.head.target
	*h = Head{Method: text[:t.name-1], Target: text[t.name:t.nameEnd], Fields: h.Fields[:0], Length: c.head.length}
	for i, s := range c.head.spans {
		f := Field{text[s.name:s.nameEnd], text[s.value:s.valueEnd]}
		if i == c.head.hostAt {
			h.Host = f.Value
			continue
		}
		h.Fields = append(h.Fields, f)
	}
	return h
}

// Take says that the request that Next has returned is not for net/http.
func (c *Conn) Take() {
	h := &c.held
	h.in += c.ready
	h.out, h.outEnd = h.in, h.in
	c.ready, c.left = 0, c.head.length
	c.head = head{spans: c.head.spans[:0]}
	if c.left > 0 {
		c.state = inBody
	}
	h.settle()
	if c.timed { // what has come of the next head has all the time until somebody wants it
		c.timed = false
		c.mu.Lock()
		defer c.mu.Unlock()
		c.began = time.Time{}
		_ = c.setReadDeadlineLocked() // fails only on a closed connection
	}
}

// Left returns how many bytes of the body of the request that was taken have not been read yet.
func (c *Conn) Left() int64 {
	if c.state != inBody {
		return 0
	}
	return c.left
}

// ReadBody reads from the body of the request that was taken, and never beyond it. Its end is io.EOF.
func (c *Conn) ReadBody(p []byte) (n int, err error) {
	if c.state != inBody {
		return 0, io.EOF
	}
	if c.left < int64(len(p)) {
		p = p[:c.left]
	}
	if h := &c.held; h.buf != nil && h.in < h.inEnd {
		n = copy(p, h.toJudge())
		h.in += n
		h.out, h.outEnd = h.in, h.in
		h.settle()
	} else if n, err = c.Conn.Read(p); errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if c.left -= int64(n); c.left == 0 {
		c.state, err = inHead, nil
	}
	return n, err
}

// Ahead reports whether something of the next request is there already. The body must have been read.
func (c *Conn) Ahead() bool { return c.held.buf != nil && c.held.in < c.held.inEnd }

// Await waits until the client sends something more, which is kept for Next, or leaves, which is an error, as is a read
// deadline that passes. Nobody else may be reading, and the body must have been read.
func (c *Conn) Await() error {
	h := &c.held
	n, err := c.Conn.Read(h.room())
	h.inEnd += n
	h.settle()
	if n > 0 {
		return nil
	}
	return err
}

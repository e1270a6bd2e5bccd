package guard

import "bytes"

// state says what the next byte of the client is part of.
type state uint8

const (
	inHead    state = iota
	inBody          // of known length
	inSize          // the digits of a chunk size
	inExt           // behind a chunk size
	inSizeEnd       // the line feed behind it
	inData
	inDataCR // the line end behind the data of a chunk
	inDataLF
	inTrailer
	inHold  // behind a request that may change the protocol
	passing // no HTTP/1.1 any more
	refused
)

const (
	maxSizeDigits = 15  // cannot overflow
	maxExtension  = 256 // bytes behind one chunk size
)

// preface is how a client begins that knows that it may speak HTTP/2 (RFC 9113, 3.4).
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// judge reads b, in which the bytes follow on those that it has taken before. What may go on to net/http is then
// b[:w]; b[r:] is to be shown again, with more behind it. Chunk extensions are left out (RFC 9112, 7.1.1).
func (c *Conn) judge(b []byte) (w, r int) {
	for r < len(b) {
		n, take := 0, true // the bytes that are judged, and whether they go on
		switch c.state {
		case inHead:
			n = c.judgeHead(b[r:])
		case inBody, inData:
			n = len(b) - r
			if c.left < int64(n) {
				n = int(c.left)
			}
			if c.left -= int64(n); c.left == 0 {
				c.ended()
			}
		case inTrailer:
			n = c.judgeTrailer(b[r:])
		case inHold:
		case passing:
			n = len(b) - r
		case refused:
			return w, len(b)
		default:
			n, take = c.judgeFraming(b[r:])
		}
		if c.state == refused {
			return w, len(b)
		}
		if n == 0 {
			return w, r
		}
		if take {
			if w != r {
				copy(b[w:], b[r:r+n])
			}
			w += n
		}
		r += n
	}
	return w, r
}

// judgeHead returns the length of the head that b begins with, or 0 while it is not complete, and goes on behind it.
func (c *Conn) judgeHead(b []byte) int {
	n := c.completeHead(b)
	if n > 0 && c.state == inHead && c.mayChange() {
		c.holding.Store(true) // before the body is read, as the answer may come, and Resume with it, before its end
	}
	switch {
	case n == 0, c.state != inHead:
	case c.head.chunked:
		c.startChunk()
	case c.head.length > 0:
		c.state, c.left = inBody, c.head.length
	default:
		c.endRequest()
	}
	return n
}

// completeHead returns the length of the head that b begins with, or 0 while it is not complete.
func (c *Conn) completeHead(b []byte) int {
	if c.mayPreface {
		if len(b) < len(preface) && string(b) == preface[:len(b)] {
			return 0
		}
		c.mayPreface, c.opening = false, true
		if len(b) >= len(preface) && string(b[:len(preface)]) == preface {
			c.state = passing
			return len(b)
		}
	}
	if c.head.seen == 0 {
		c.limits = c.listener.o.Limits()
	}
	n, r := c.head.judge(b, c.limits)
	c.opening = c.opening && n == 0
	if r != 0 {
		c.refuse(r)
		if c.opening && r == badVersion && isForeign(b) {
			c.poison, c.foreign = "", true
		}
		return 0
	}
	return n
}

// isForeign reports whether the first line of a connection is neither of HTTP/1 nor the preface of HTTP/2. Who speaks something
// else understands no answer, and a wrong preface calls for the end of the connection (RFC 9113, 3.4).
func isForeign(b []byte) bool {
	line, _, _ := bytes.Cut(b, []byte{'\n'})
	return !bytes.Contains(bytes.ToUpper(line), []byte("HTTP/"))
}

// ended goes on when the last of the bytes that were counted has passed.
func (c *Conn) ended() {
	if c.state == inData {
		c.state = inDataCR
		return
	}
	c.endRequest()
}

func (c *Conn) endRequest() {
	c.state = inHead
	if c.mayChange() {
		c.state = inHold
	}
	c.head = head{spans: c.head.spans[:0]}
}

// mayChange reports whether the protocol may be another one behind the request. net/http itself answers to "*", and
// switches to nothing.
func (c *Conn) mayChange() bool { return c.head.upgrade && c.head.minor > 0 && !c.head.star }

func (c *Conn) startChunk() {
	c.state, c.left, c.counted = inSize, 0, 0
}

// judgeFraming judges what stands around the data of chunks. It returns how many bytes it has taken, and whether they
// go on.
func (c *Conn) judgeFraming(b []byte) (n int, take bool) {
	ch := b[0]
	switch c.state {
	case inSize:
		switch d := unhex(ch); {
		case d >= 0 && c.counted < maxSizeDigits:
			c.left = c.left<<4 | int64(d)
			c.counted++
		case ch == '\r' && c.counted > 0:
			c.state = inSizeEnd
		case ch == ';' && c.counted > 0:
			c.state, c.counted = inExt, 0
			return 1, false
		default:
			c.refuse(badChunkSize)
		}
	case inExt:
		return c.judgeExtension(b)
	case inSizeEnd:
		switch {
		case ch != '\n':
			c.refuse(badChunkSize)
		case c.left > 0:
			c.state = inData
		default:
			c.state, c.trailer = inTrailer, trailer{}
		}
	case inDataCR:
		if ch != '\r' {
			c.refuse(badChunkEnd)
		}
		if c.state == inDataCR {
			c.state = inDataLF
		}
	case inDataLF:
		if ch != '\n' {
			c.refuse(badChunkEnd)
			break
		}
		c.startChunk()
	}
	return 1, true
}

func (c *Conn) judgeExtension(b []byte) (n int, take bool) {
	for _, ch := range b {
		switch {
		case ch == '\r':
			if n > 0 {
				return n, false
			}
			c.state = inSizeEnd
			return 1, true
		case classes[ch]&valueByte == 0:
			c.refuse(badChunkSize)
			return 0, false
		case c.counted == maxExtension:
			c.refuse(longExtension)
			return 0, false
		}
		n++
		c.counted++
	}
	return n, false
}

// trailer is what is known of the trailer that is being read.
type trailer struct {
	seen   int // there is no line feed before this in the line that is being read
	bytes  int // of the lines before
	fields int
}

// judgeTrailer returns the length of the line that b begins with, or 0 while it is not complete. Which fields mean
// anything in a trailer is not for the guard to say.
func (c *Conn) judgeTrailer(b []byte) int {
	t := &c.trailer
	i := bytes.IndexByte(b[t.seen:], '\n')
	end := t.seen + i
	switch {
	case i < 0 && t.bytes+len(b) >= c.limits.Bytes, i >= 0 && t.bytes+end >= c.limits.Bytes:
		c.refuse(longTrailer)
		return 0
	case i < 0:
		t.seen = len(b)
		return 0
	case end == 0 || b[end-1] != '\r':
		c.refuse(badTrailer)
		return 0
	case end == 1:
		c.endRequest()
		return 2
	}
	if _, _, r := cutField(b[:end-1]); r != 0 {
		c.refuse(badTrailer)
		return 0
	}
	if t.fields++; c.limits.Fields > 0 && t.fields > c.limits.Fields {
		c.refuse(longTrailer)
		return 0
	}
	t.seen, t.bytes = 0, t.bytes+end+1
	return end + 1
}

// refuse ends the reading of requests for good.
func (c *Conn) refuse(r Refusal) {
	switch c.state {
	case inHead, inHold:
		c.poison = refusedHead
		if c.head.isHead {
			c.poison = refusedHeadHead
		}
	case inTrailer:
		c.poison = refusedTrailer
	default:
		c.poison = refusedChunk
	}
	c.state = refused
	c.refusal.Store(uint32(r))
}

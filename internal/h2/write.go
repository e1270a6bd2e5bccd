package h2

import (
	"fmt"
	"strings"

	"golang.org/x/net/http2"
)

// append32 writes a number of HTTP/2.
func append32(b []byte, n uint32) []byte {
	return append(b, byte(n>>24), byte(n>>16), byte(n>>8), byte(n)) //nolint:gosec // G115: its four bytes
}

// appendFrame writes the head of a frame.
func appendFrame(b []byte, kind http2.FrameType, flags http2.Flags, id uint32, length int) []byte {
	b = append(b, byte(length>>16), byte(length>>8), byte(length), byte(kind), byte(flags)) //nolint:gosec // G115: at most maxFrame
	return append32(b, id)
}

// updateLocked gives the service room for n bytes more. The caller holds mu.
func (c *Conn) updateLocked(id uint32, n int64) {
	c.out = appendFrame(c.out, http2.FrameWindowUpdate, 0, id, 4)
	c.out = append32(c.out, uint32(n)) //nolint:gosec // at most maxWindow
}

// Open begins the request by its head, a header section as the functions of this package append it. The frames leave with the
// next Flush. end: the request has no body.
func (c *Conn) Open(head []byte, end bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sectionLocked(head, end)
}

// sectionLocked writes a header section. The caller holds mu.
func (c *Conn) sectionLocked(b []byte, end bool) {
	kind, flags := http2.FrameHeaders, http2.Flags(0)
	if end {
		flags, c.sent = http2.FlagHeadersEndStream, true
	}
	for {
		n := min(len(b), maxFrame)
		if n == len(b) {
			flags |= http2.FlagHeadersEndHeaders // that of CONTINUATION is the same
		}
		c.out = append(appendFrame(c.out, kind, flags, c.id, n), b[:n]...)
		if b = b[n:]; len(b) == 0 {
			return
		}
		kind, flags = http2.FrameContinuation, 0
	}
}

// Send sends a part of the body, as far as the service's windows allow at once and else as they open. end: it is the last.
// It is for one goroutine, beside that of Next, and writes nothing before Next is called the first time, which then writes all
// there is.
func (c *Conn) Send(p []byte, end bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		if err := c.sendableLocked(); err != nil {
			return err
		}
		n := int(min(int64(len(p)), c.send, c.sendAll, maxFrame))
		switch {
		case len(c.out) > maxWaiting && !c.flushing:
			c.flushLocked()
		case len(c.out) > maxWaiting:
			c.changed.Wait()
		case n > 0 || len(p) == 0:
			flags := http2.Flags(0)
			if end && n == len(p) {
				flags, c.sent = http2.FlagDataEndStream, true
			}
			c.out = append(appendFrame(c.out, http2.FrameData, flags, c.id, n), p[:n]...)
			c.send -= int64(n)
			c.sendAll -= int64(n)
			c.flood.progress(n)
			if p = p[n:]; len(p) > 0 {
				continue
			}
			if !c.opening {
				c.flushLocked()
			}
			return c.writeErr
		case len(c.out) > 0 && !c.flushing:
			c.flushLocked()
		case c.away && !c.reading:
			c.stepLocked(false)
		default:
			c.changed.Wait()
		}
	}
}

// SendTrailer ends the request by a header section.
func (c *Conn) SendTrailer(b []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.sendableLocked(); err != nil {
		return err
	}
	c.sectionLocked(b, true)
	if !c.opening {
		c.flushLocked()
	}
	return c.writeErr
}

// sendableLocked returns why nothing of the request can be sent any more. The caller holds mu.
func (c *Conn) sendableLocked() error {
	switch {
	case c.writeErr != nil:
		return c.writeErr
	case c.stopped, c.ended, !c.running:
		return ErrEnded
	}
	return c.failedLocked()
}

// Flush writes what there is. If another goroutine is writing already, it leaves the rest to that one.
func (c *Conn) Flush() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flushLocked()
	return c.writeErr
}

// flushLocked is Flush. The caller holds mu, which is released in between.
func (c *Conn) flushLocked() {
	for !c.flushing && len(c.out) > 0 && c.writeErr == nil {
		p := c.out
		c.out, c.spare = c.spare[:0], nil
		c.flushing = true
		c.mu.Unlock()
		n, err := c.rw.Write(p)
		c.mu.Lock()
		c.flushing = false
		c.wrote = c.wrote || n > 0
		if cap(p) <= maxWaiting {
			c.spare = p[:0]
		}
		if err != nil {
			c.writeErr = fmt.Errorf("write to the service: %w", err)
		}
		c.changed.Broadcast()
	}
}

// The fields that every request has stand in the static table of HPACK. Nothing is ever put into the dynamic one: a section is
// the same bytes whatever was sent before.
const (
	indexAuthority = 1
	indexGET       = 2
	indexPOST      = 3
	indexPath      = 4
	indexHTTP      = 6
)

// AppendRequest begins the head of a request, which fields follow.
func AppendRequest(b []byte, method, authority, path string) []byte {
	b = append(b, 0x20) // the dynamic table shall hold nothing, whatever the service would allow
	switch method {
	case "POST":
		b = append(b, 0x80|indexPOST)
	case "GET":
		b = append(b, 0x80|indexGET)
	default:
		b = appendString(append(b, indexGET), method)
	}
	b = append(b, 0x80|indexHTTP)
	b = appendString(append(b, indexPath), path)
	return appendString(append(b, indexAuthority), authority)
}

// AppendField adds a field, its name in lower case. What is secret is marked so that nobody on the way puts it into a table.
func AppendField(b []byte, name, value string) []byte {
	first := byte(0)
	if secret(name) {
		first = 0x10
	}
	b = appendInt(append(b, first), 0x7f, len(name))
	for i := range len(name) {
		ch := name[i]
		if 'A' <= ch && ch <= 'Z' {
			ch += 'a' - 'A'
		}
		b = append(b, ch)
	}
	return appendString(b, value)
}

func secret(name string) bool {
	return strings.EqualFold(name, "authorization") || strings.EqualFold(name, "cookie")
}

func appendString(b []byte, s string) []byte {
	return append(appendInt(b, 0x7f, len(s)), s...)
}

// appendInt writes an integer with a prefix of as many bits as most has (RFC 7541, 5.1).
func appendInt(b []byte, most uint8, n int) []byte {
	if n < int(most) {
		return append(b, byte(n)) //nolint:gosec // G115: less than most
	}
	b = append(b, most)
	for n -= int(most); n >= 0x80; n >>= 7 {
		b = append(b, 0x80|byte(n&0x7f))
	}
	return append(b, byte(n)) //nolint:gosec // G115: less than 0x80
}

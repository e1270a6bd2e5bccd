package h2

import (
	"fmt"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/pikoproxy/piko/internal/syntax"
)

// section is a header section while it is read.
type section struct {
	limits Limits
	fields []hpack.HeaderField
	size   int
	status int   // 0: none
	length int64 // of Content-Length; -1: there is none
	bad    error // what is wrong with it; nil: nothing yet
}

func (s *section) begin(l Limits) {
	*s = section{limits: l, fields: s.fields[:0], length: -1}
}

// maxKeptFields is how many a section keeps the room of between exchanges.
const maxKeptFields = 16

// forget drops what would keep the memory of an exchange.
func forget(fields []hpack.HeaderField) []hpack.HeaderField {
	if cap(fields) > maxKeptFields {
		return nil
	}
	clear(fields[:cap(fields)])
	return fields[:0]
}

// decode reads a header section to its end. The caller has the reading turn.
func (c *Conn) decode(h *http2.HeadersFrame) error {
	c.mu.Lock()
	limits := c.limits
	c.mu.Unlock()
	s := &c.section
	s.begin(limits)
	c.dec.SetMaxStringLength(limits.Header)
	fragment, last := h.HeaderBlockFragment(), h.HeadersEnded()
	for total, frames := 0, 1; ; frames++ {
		// What is too large is not even decoded, as far as that can be told from the bytes, of which a code of Huffman can
		// make more than it stands for.
		if total += len(fragment); total > 2*limits.Header || frames > 8+limits.Header>>10 {
			return malformed("header larger than %d bytes", limits.Header)
		}
		if _, err := c.dec.Write(fragment); err != nil {
			return fmt.Errorf("%w: %w", ErrMalformed, err)
		}
		if last {
			break
		}
		f, err := c.in.framer.ReadFrame()
		if err != nil {
			return broken(err)
		}
		next, ok := f.(*http2.ContinuationFrame) // nothing else, as the framer sees to
		if !ok {
			return malformed("%s within a header", f.Header().Type)
		}
		fragment, last = next.HeaderBlockFragment(), next.HeadersEnded()
	}
	if err := c.dec.Close(); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return nil
}

// add takes a field that was decoded.
func (s *section) add(f hpack.HeaderField) {
	if s.bad != nil {
		return
	}
	if s.size += int(f.Size()); s.size > s.limits.Header {
		s.bad = malformed("header larger than %d bytes", s.limits.Header)
		return
	}
	if len(s.fields) == s.limits.Fields {
		s.bad = malformed("more than %d fields", s.limits.Fields)
		return
	}
	if !syntax.IsValue(f.Value) {
		s.bad = malformed("a byte that no value may have")
		return
	}
	switch f.Name {
	case ":status":
		s.setStatus(f.Value)
		return
	case "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade":
		s.bad = malformed("field %s, which HTTP/2 does not have", f.Name)
		return
	case "content-length":
		n, ok := syntax.ParseLength(f.Value)
		if !ok || s.length >= 0 {
			s.bad = malformed("content-length")
			return
		}
		s.length = n
	}
	if !isName(f.Name) {
		s.bad = malformed("field name")
		return
	}
	s.fields = append(s.fields, f)
}

func (s *section) setStatus(v string) {
	if s.status != 0 || len(s.fields) > 0 || len(v) != 3 || v[0] < '1' {
		s.bad = malformed("status")
		return
	}
	for _, ch := range []byte(v) {
		if ch < '0' || ch > '9' {
			s.bad = malformed("status")
			return
		}
		s.status = s.status*10 + int(ch-'0')
	}
}

// nameBytes marks the bytes of a field's name, which HTTP/2 has in lower case only (RFC 9113, 8.2.1).
var nameBytes = func() (t [256]bool) {
	for _, c := range "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz" {
		t[c] = true
	}
	return t
}()

func isName(s string) bool {
	for i := range len(s) {
		if !nameBytes[s[i]] {
			return false
		}
	}
	return s != ""
}

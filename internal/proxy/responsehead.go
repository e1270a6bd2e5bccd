package proxy

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net/textproto"
	"strings"

	"github.com/pikoproxy/piko/internal/syntax"
)

const (
	maxResponseHead   = 64 << 10
	maxResponseFields = 1000
	maxInformational  = 5 // 1xx answers in one exchange
)

// errMalformed is what every answer that can't be understood is an error of. Its text goes to the log only.
var errMalformed = errors.New("malformed answer")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errMalformed, fmt.Sprintf(format, args...))
}

// field is one line of a header or trailer section. The name is in canonical form.
type field struct{ name, value string }

// responseHead is the head of an answer, read strictly: what two parsers could understand differently is an error. It
// is reused; reset keeps the memory.
type responseHead struct {
	status  int
	minor   int // of HTTP/1.x
	fields  []field
	options connection
	framing framing
	length  int64  // with byLength; the announced length otherwise, or -1
	upgrade string // the Upgrade field
	trailer bool   // there is a Trailer field
}

func (h *responseHead) reset() {
	clear(h.fields)
	clear(h.options.names)
	*h = responseHead{fields: h.fields[:0], options: connection{names: h.options.names[:0]}, length: -1}
}

// readHead returns the next head, with its empty line, from br. At most limit bytes are read; a line that does not end
// in CRLF and anything that does not begin like HTTP/1 are found as soon as they have arrived, not at a timeout.
// started tells whether any byte came at all.
func readHead(br *bufio.Reader, limit int) (head string, started bool, err error) {
	if _, err := br.Peek(1); err != nil {
		return "", false, err
	}
	const begin = "HTTP/1."
	var long []byte // what did not fit into br
	var scan lineScanner
	for {
		window, _ := br.Peek(br.Buffered())
		fresh := window[scan.seen-len(long):]
		end, err := scan.next(fresh)
		if err != nil {
			return "", true, err
		}
		if n := min(len(window), len(begin)); long == nil && string(window[:n]) != begin[:n] {
			return "", true, malformed("does not begin with %s", begin)
		}
		size := scan.seen
		if end > 0 {
			size += end - len(fresh)
		}
		if size > limit {
			return "", true, malformed("header larger than %d bytes", limit)
		}
		if end > 0 {
			n := len(window) - len(fresh) + end
			if long == nil {
				head = string(window[:n])
			} else {
				head = string(append(long, window[:n]...))
			}
			_, err := br.Discard(n)
			return head, true, err
		}
		if len(window) == br.Size() {
			long = append(long, window...)
			if _, err := br.Discard(len(window)); err != nil {
				return "", true, err
			}
			window = nil
		}
		if _, err := br.Peek(len(window) + 1); err != nil {
			return "", true, fmt.Errorf("in the header: %w", err)
		}
	}
}

// lineScanner looks for the empty line that ends a head, over any number of pieces.
type lineScanner struct {
	seen int  // bytes so far
	line int  // bytes of the current line so far
	cr   bool // the last byte was a CR
}

// next looks at the next piece and returns the offset behind the empty line, or 0.
func (s *lineScanner) next(p []byte) (int, error) {
	s.seen += len(p)
	for at := 0; at < len(p); {
		n := bytes.IndexByte(p[at:], '\n')
		if n < 0 {
			s.line += len(p) - at
			s.cr = p[len(p)-1] == '\r'
			return 0, nil
		}
		if n > 0 {
			s.cr = p[at+n-1] == '\r'
		}
		if !s.cr {
			return 0, malformed("line without CR")
		}
		if s.line+n == 1 {
			return at + n + 1, nil
		}
		at += n + 1
		s.line, s.cr = 0, false
	}
	return 0, nil
}

// parse reads a whole head as readHead returns it. The strings of h are parts of head.
func (h *responseHead) parse(head string) error {
	h.reset()
	line, rest := cutLine(head)
	if err := h.parseStatus(line); err != nil {
		return err
	}
	for rest != "" {
		line, rest = cutLine(rest)
		if line == "" {
			break
		}
		f, err := parseField(line)
		if err != nil {
			return err
		}
		if len(h.fields) == maxResponseFields {
			return malformed("more than %d fields", maxResponseFields)
		}
		h.fields = append(h.fields, f)
	}
	if rest != "" {
		return malformed("bytes after the header")
	}
	return h.parseFraming()
}

// parseStatus reads `HTTP/1.x 200 reason`; the reason and the space in front of it may be missing.
func (h *responseHead) parseStatus(line string) error {
	const begin = "HTTP/1."
	if len(line) < len(begin+"1 200") || line[:7] != begin || (line[7] != '0' && line[7] != '1') || line[8] != ' ' {
		return malformed("status line")
	}
	h.minor = int(line[7] - '0')
	for _, c := range []byte(line[9:12]) {
		if c < '0' || c > '9' {
			return malformed("status is no number")
		}
		h.status = h.status*10 + int(c-'0')
	}
	if h.status < 100 || (len(line) > 12 && line[12] != ' ') {
		return malformed("status is no number of three digits from 100")
	}
	if !syntax.IsValue(line[12:]) {
		return malformed("control byte in the reason")
	}
	return nil
}

// cutLine takes the first line from a head in which every LF follows a CR.
func cutLine(head string) (line, rest string) {
	i := strings.IndexByte(head, '\n')
	if i < 1 || head[i-1] != '\r' {
		return head, ""
	}
	return head[:i-1], head[i+1:]
}

func parseField(line string) (field, error) {
	n, canonical := syntax.Name(line)
	if n == 0 || n == len(line) || line[n] != ':' {
		return field{}, malformed("field name")
	}
	name, value := line[:n], trimOWS(line[n+1:])
	if !syntax.IsValue(value) {
		return field{}, malformed("control byte in field %s", name)
	}
	if !canonical { // which few services write
		name = textproto.CanonicalMIMEHeaderKey(name)
	}
	return field{name, value}, nil
}

// parseFraming finds out where the body ends (RFC 9112, 6.3). What the RFC leaves to the recipient's mercy is refused.
func (h *responseHead) parseFraming() error {
	var lengths, codings, upgrades int
	for _, f := range h.fields {
		switch f.name {
		case "Connection":
			h.options.parse(f.value)
		case "Content-Length":
			n, ok := syntax.ParseLength(f.value)
			if !ok {
				return malformed("content-length")
			}
			h.length = n
			lengths++
		case "Transfer-Encoding":
			if !strings.EqualFold(f.value, "chunked") {
				return malformed("transfer-encoding other than chunked")
			}
			codings++
		case "Upgrade":
			h.upgrade = f.value
			upgrades++
		case "Trailer":
			h.trailer = true
		}
	}
	switch {
	case h.options.bad:
		return malformed("connection names something that is no token, or too many fields")
	case lengths > 1, codings > 1, upgrades > 1:
		return malformed("repeated content-length, transfer-encoding or upgrade")
	case lengths == 1 && codings == 1:
		return malformed("both content-length and transfer-encoding")
	case codings == 1 && h.minor == 0:
		return malformed("transfer-encoding in HTTP/1.0")
	case codings == 1:
		h.framing = byChunks
	case lengths == 1:
		h.framing = byLength
	default:
		h.framing = byClose
	}
	return nil
}

// bodyFor corrects the framing for answers that never have a body, whatever their header says.
func (h *responseHead) bodyFor(method string) {
	if method == "HEAD" || h.status == 204 || h.status == 304 {
		h.framing = noBody
	}
}

// persistent reports whether the service keeps the stream open for another request.
func (h *responseHead) persistent() bool {
	return h.minor == 1 && !h.options.close && h.framing != byClose
}

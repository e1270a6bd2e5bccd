// Package guard stands between the sockets of clients and net/http, and lets pass only requests about whose end there
// is no doubt.
//
// An HTTP/1.1 connection is one stream of bytes, and where a request ends is a matter of interpretation: two hops that
// read it differently let a client hide one request inside another. net/http repairs some of what it gets. The guard
// repairs nothing: it reads every byte before net/http does, by a stricter reading of RFC 9112, and what is not plainly
// one thing is refused. Whatever it lets pass, net/http frames in the same way, which a fuzz target holds it to.
//
//	  ┌──────────────────────── next request ────────────────────────┐
//	  ▼                                                              │
//	head ──┬─ no body ───────────────────────────────────────────────┤
//	  │    ├─ Content-Length ──> body ───────────────────────────────┤
//	  │    ├─ chunked ─> size ─> extension ─> data ─> ... ─> trailer ┤
//	  │    └─ with Upgrade, after its body: hold ── Resume ──────────┘
//	  │                                       └──── Pass ──> passing: bytes are looked at no more
//	  ├─ HTTP/2 preface at the start of a plain connection ─> passing
//	  └─ any doubt, here or in a body ─> refused: what follows is read and thrown away
//
// # How a refusal is answered
//
// In its turn, since answers to earlier requests of the connection may still be due. In the place of a doubtful head
// net/http is given a request for [Target], which no client can send through a guard; the handler answers it with the
// error that [Conn.Refusal] stands for, and closes. In the place of doubtful bytes of a body it is given bytes that end
// the body with an error.
//
// # Concurrency
//
// A [Conn] has one reader at a time, as net/http sees to. [Conn.Refusal], [Conn.Resume] and setting deadlines are safe
// beside it; [Conn.Pass] is for a connection that was hijacked. A [Listener] is safe for concurrent use.
//
// The package answers nothing, logs nothing but failed TLS handshakes, and says nothing about which requests are
// allowed.
package guard

import (
	"context"
	"net"
	"time"
)

// Target is the request target of what stands in the place of a refused head. The guard lets no '#' of a client pass.
const Target = "/#"

// What is read in the place of a refused head. A HEAD request gets a HEAD, so that its answer has no body.
const (
	refusedHead     = "GET " + Target + " HTTP/1.1\r\nHost: -\r\nConnection: close\r\n\r\n"
	refusedHeadHead = "HEAD " + Target + " HTTP/1.1\r\nHost: -\r\nConnection: close\r\n\r\n"
)

// What is read in the place of refused bytes of a chunked body: no chunk header, and no trailer field.
const (
	refusedChunk   = "!\r\n"
	refusedTrailer = "!\r\n\r\n"
)

// Limits bound the head of a request. Fields that are 0 set no limit, but Bytes must be there.
type Limits struct {
	Bytes  int // of the head, and again of the trailer, with every line end
	Fields int // field lines of the head, and again of the trailer
	Target int // bytes of the request target
}

// Kind says what sort of answer a refusal calls for.
type Kind int

// The kinds of refusals, with the status that fits.
const (
	None       Kind = iota
	Framing         // 400: it is in doubt where the request, or a line of it, ends
	Malformed       // 400: a request line or field that is no HTTP/1.1, or a head that broke off
	BadTarget       // 400: a request target that is none
	LongTarget      // 414
	LongHead        // 431: too many bytes
	ManyFields      // 431: too many fields
	BadMethod       // 405: CONNECT, behind which there would be no HTTP
	Slow            // 408: the head did not arrive in time
)

// Refusal is the reason why a request was refused. The zero value is none.
type Refusal uint8

// The reasons. Their texts are in [Refusal.Error].
const (
	noRefusal Refusal = iota
	bareLF
	badVersion
	badRequestLine
	badMethod
	connectMethod
	badTarget
	longTarget
	longHead
	manyFields
	foldedLine
	badName
	badValue
	hostMissing
	hostTwice
	badHost
	lengthTwice
	badLength
	codingTwice
	badCoding
	codingAndLength
	codingIn10
	framingInTrailer
	brokenOff
	slowHead
	aheadOfUpgrade
	badChunkSize
	longExtension
	badChunkEnd
	badTrailer
	longTrailer
)

var reasons = [...]struct {
	kind Kind
	text string
}{
	noRefusal:        {None, "no refusal"},
	bareLF:           {Framing, "line ends without carriage return"},
	badVersion:       {Malformed, "request line does not end in HTTP/1.0 or HTTP/1.1"},
	badRequestLine:   {Malformed, "request line is not three parts with one space between them"},
	badMethod:        {Malformed, "method is no token"},
	connectMethod:    {BadMethod, "method is CONNECT"},
	badTarget:        {BadTarget, "request target in no known form, or with a byte that no target may hold"},
	longTarget:       {LongTarget, "request target too long"},
	longHead:         {LongHead, "request head too large"},
	manyFields:       {ManyFields, "too many field lines"},
	foldedLine:       {Framing, "folded field line"},
	badName:          {Malformed, "field name is no token with a colon behind it"},
	badValue:         {Malformed, "control byte in a field value"},
	hostMissing:      {Malformed, "no Host field in an HTTP/1.1 request"},
	hostTwice:        {Malformed, "more than one Host field"},
	badHost:          {Malformed, "malformed Host field"},
	lengthTwice:      {Framing, "more than one Content-Length field"},
	badLength:        {Framing, "Content-Length is not a number of at most 18 digits"},
	codingTwice:      {Framing, "more than one Transfer-Encoding field"},
	badCoding:        {Framing, "Transfer-Encoding is not exactly chunked"},
	codingAndLength:  {Framing, "Transfer-Encoding together with Content-Length"},
	codingIn10:       {Framing, "Transfer-Encoding in an HTTP/1.0 request"},
	framingInTrailer: {Framing, "Trailer announces a field that frames"},
	brokenOff:        {Malformed, "connection ended within a request head"},
	slowHead:         {Slow, "request head did not arrive in time"},
	aheadOfUpgrade:   {Framing, "too much sent before an upgrade was answered"},
	badChunkSize:     {Framing, "malformed chunk size or chunk extension"},
	longExtension:    {Framing, "chunk extension too long"},
	badChunkEnd:      {Framing, "chunk data without its line end"},
	badTrailer:       {Framing, "malformed trailer field"},
	longTrailer:      {Framing, "trailer too large"},
}

// Kind returns what sort of answer the refusal calls for; [None] for the zero value.
func (r Refusal) Kind() Kind { return reasons[r].kind }

// Error says what is wrong with the request, in constant words: nothing of what a client sent is in it.
func (r Refusal) Error() string { return reasons[r].text }

type contextKey struct{}

// With returns a context that knows the guard of the connection, for http.Server.ConnContext. A connection without a
// guard, such as one that TLS has agreed on HTTP/2 for, leaves ctx as it is.
func With(ctx context.Context, c net.Conn) context.Context {
	if g := of(c); g != nil {
		return context.WithValue(ctx, contextKey{}, g)
	}
	return ctx
}

// From returns the guard of the connection that a request came by, or nil. All methods of a nil *Conn that handlers
// need do nothing.
func From(ctx context.Context) *Conn {
	c, _ := ctx.Value(contextKey{}).(*Conn)
	return c
}

func of(c net.Conn) *Conn {
	switch c := c.(type) {
	case *Conn:
		return c
	case *secureConn:
		return c.Conn
	}
	return nil
}

// Refusal returns why the guard refuses to read on, or 0.
func (c *Conn) Refusal() Refusal {
	if c == nil {
		return 0
	}
	return Refusal(c.refusal.Load()) //nolint:gosec // only refusals are stored
}

// Resume says that a request with an Upgrade field, of HTTP/1.1, was answered without a change of protocol: what
// follows it is the next request. Nothing behind such a request is read before. It must not be called for others.
func (c *Conn) Resume() {
	if c != nil {
		c.holding.Store(false)
	}
}

// Pass says that conn has changed its protocol. It returns what to go on with: conn itself, which looks at nothing any
// more and yields first what was read too far, or the connection below when there is no such thing. conn must have been
// hijacked, and nobody may be reading. A connection without a guard is returned as it is.
func Pass(conn net.Conn) net.Conn {
	c := of(conn)
	if c == nil {
		return conn
	}
	return c.pass(conn)
}

// Discard reads and throws away what the client still sends, for at most d, so that closing the connection does not
// destroy an answer on its way. Nobody else may be reading.
func (c *Conn) Discard(d time.Duration) {
	if c == nil || c.SetReadDeadline(time.Now().Add(d)) != nil {
		return
	}
	_ = c.discard() // how it ends means nothing
}

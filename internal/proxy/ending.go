package proxy

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/pikoproxy/piko/internal/auth"
	"github.com/pikoproxy/piko/internal/fault"
	"github.com/pikoproxy/piko/internal/router"
)

// ending is how an exchange is ended from outside, because the token of its client is good for nothing any more.
type ending struct {
	mu     sync.Mutex // guards the following
	why    error      // nil: it may go on
	stream *router.Stream
	cancel context.CancelCauseFunc // of an exchange by HTTP/2
}

// End implements [auth.Ender]: it makes everything fail that the exchange waits for.
func (x *exchange) End(why error) {
	e := &x.ending
	e.mu.Lock()
	e.why = why
	stream, cancel := e.stream, e.cancel
	e.mu.Unlock()
	// A client that does not read must not hold this up; one that does may still hear why.
	_ = http.NewResponseController(x.w).SetWriteDeadline(time.Now().Add(lastWriteWait))
	switch {
	case cancel != nil:
		cancel(why)
	case stream != nil:
		_ = stream.Reset()
	}
}

// ended returns why the exchange was ended from outside, or nil.
func (x *exchange) ended() error {
	if x.identity == nil {
		return nil
	}
	x.ending.mu.Lock()
	defer x.ending.mu.Unlock()
	return x.ending.why
}

// endWith says what is to be broken off when the exchange is ended from outside.
func (x *exchange) endWith(s *router.Stream, cancel context.CancelCauseFunc) {
	if x.identity == nil {
		return
	}
	x.ending.mu.Lock()
	x.ending.stream, x.ending.cancel = s, cancel
	why := x.ending.why
	x.ending.mu.Unlock()
	switch {
	case why == nil:
	case cancel != nil:
		cancel(why)
	case s != nil:
		_ = s.Reset()
	}
}

// endedFault is the answer to one whose token has become worthless before there was another answer.
func endedFault(why error) fault.Fault {
	if errors.Is(why, auth.ErrExpired) {
		return fault.ExpiredToken
	}
	return fault.InvalidToken
}

// cutter ends a relay.
type cutter struct{ cancel context.CancelCauseFunc }

// End implements [auth.Ender].
func (c cutter) End(why error) { c.cancel(why) }

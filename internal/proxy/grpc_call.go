package proxy

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pikoproxy/piko/internal/fault"
	"github.com/pikoproxy/piko/internal/h2"
	"github.com/pikoproxy/piko/internal/limit"
	"github.com/pikoproxy/piko/internal/router"
	"github.com/pikoproxy/piko/internal/syntax"
)

// call is an exchange by HTTP/2 with the service.
type call struct {
	x      *exchange
	s      *router.Stream
	c      *h2.Conn
	sender *callSender // nil: there is no body
	out    callWriter

	mu    sync.Mutex // guards the following
	over  bool       // the stream may be another's already
	cut   bool       // by interrupt
	head  bool       // that of the answer has come
	timed bool       // until it does, there is a deadline
}

// watch makes the call fail when its client has gone or is to go, until the function that it returns is called.
func (k *call) watch() func() {
	stop := context.AfterFunc(k.x.r.Context(), k.interrupt)
	k.x.endWith(nil, func(error) { k.interrupt() })
	return func() {
		stop()
		k.x.endWith(nil, nil)
	}
}

// interrupt makes everything fail that waits for the service.
func (k *call) interrupt() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.over {
		k.cut = true
		_ = k.s.SetDeadline(time.Unix(1, 0)) // where it can't be set, everything fails by itself
	}
}

// awaitHead begins the time that the service has for its answer.
func (k *call) awaitHead() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if d := k.x.settings.ResponseHeaderTimeout; d > 0 && !k.over && !k.cut && !k.head {
		k.timed = true
		_ = k.s.SetReadDeadline(time.Now().Add(d))
	}
}

// gotHead ends it.
func (k *call) gotHead() {
	if k.x.body != noBody {
		k.x.reader.release()
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.head = true
	if k.timed && !k.cut {
		_ = k.s.SetReadDeadline(time.Time{})
	}
}

// late reports whether err means that the answer did not begin in time.
func (k *call) late(err error) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return isTimeout(err) && k.timed && !k.head && !k.cut
}

// end ends the call for the service. A connection that is whole is kept, also when the call was not completed: the service is
// told so.
func (k *call) end() {
	k.mu.Lock()
	over := k.over
	k.over = true
	k.mu.Unlock()
	if over {
		return
	}
	k.out.rest()
	k.c.Stop()
	sent := k.sent()
	if !sent || k.out.help != nil {
		// The last writes are given a moment, and reading none at all.
		_ = k.s.SetWriteDeadline(time.Now().Add(lastWriteWait))
	}
	if !sent {
		_ = k.s.SetReadDeadline(time.Unix(1, 0))
		k.stopSender()
	}
	if k.sender != nil {
		k.x.record.received += k.sender.read.Load()
	}
	whole := k.c.End()
	if k.c.Flush() != nil || !whole {
		_ = k.s.Reset()
		return
	}
	k.s.Release()
}

// sent reports whether nothing of the call goes on: the answer has come, and the request has left.
func (k *call) sent() bool {
	if k.sender != nil {
		select {
		case <-k.sender.done:
		default:
			return false
		}
	}
	return k.c.Complete()
}

// outwait lets the client of a call that has taken longer than it may find that out by itself. A service that has the same
// deadline breaks the call off then, and what it says about that would reach the client a moment too soon.
func (k *call) outwait(err error) {
	var reset h2.ResetError
	limit, ok := grpcTimeout(single(k.x.r.Header["Grpc-Timeout"]))
	if !ok || !errors.As(err, &reset) || time.Since(k.x.record.began) < limit {
		return
	}
	moment := time.NewTimer(outwaitLimit)
	defer moment.Stop()
	select {
	case <-k.x.r.Context().Done():
	case <-moment.C:
	}
}

const outwaitLimit = 2 * time.Second

// grpcTimeout reads the field of gRPC that says how long the call may take.
func grpcTimeout(s string) (time.Duration, bool) {
	if len(s) < 2 || len(s) > 9 {
		return 0, false
	}
	unit, ok := map[byte]time.Duration{
		'H': time.Hour, 'M': time.Minute, 'S': time.Second,
		'm': time.Millisecond, 'u': time.Microsecond, 'n': time.Nanosecond,
	}[s[len(s)-1]]
	n, err := strconv.ParseUint(s[:len(s)-1], 10, 32)
	return time.Duration(min(n, uint64(1<<63-1)/uint64(max(unit, 1)))) * unit, ok && err == nil
}

// fields sets the end-to-end fields of an answer for the client. All values share one slice.
func (k *call) fields(e h2.Event) {
	h, values := k.x.w.Header(), make([]string, len(e.Fields))
	for i, f := range e.Fields {
		switch f.Name {
		case "te", "trailer", "http2-settings", errorField:
			continue
		case "content-length":
			// net/http must be told no length that it would not find.
			if e.Status < 200 || e.Status == http.StatusNoContent {
				continue
			}
		}
		name := http.CanonicalHeaderKey(f.Name)
		values[i] = f.Value
		if have, ok := h[name]; ok {
			h[name] = append(have, f.Value)
		} else {
			h[name] = values[i : i+1 : i+1]
		}
	}
}

var errorField = strings.ToLower(fault.Header)

// deliver passes the answer on, each piece as soon as it comes.
func (k *call) deliver(e h2.Event) {
	x := k.x
	h := x.w.Header()
	k.fields(e)
	if !e.End {
		announce(h, e)
	}
	for _, name := range [...]string{"Content-Type", "Content-Length"} {
		if _, ok := h[name]; !ok {
			h[name] = nil // net/http shall not guess
		}
	}
	if _, ok := h["Date"]; !ok {
		h["Date"] = []string{x.server.date.now()}
	}
	x.sayGoodbye()
	x.record.status = e.Status
	x.responded = true
	x.w.WriteHeader(e.Status)
	k.out.begin(k)
	var err error
	for !e.End && err == nil {
		if e, err = k.c.Next(k.out.idle); err == nil && len(e.Data) > 0 {
			err = k.out.write(e.Data)
		}
	}
	x.record.sent = k.out.written
	if err != nil {
		k.broken(err)
	}
	if e.Kind == h2.Trailer {
		for _, f := range e.Fields {
			if name := http.CanonicalHeaderKey(f.Name); inTrailer(name) {
				key := trailerKey(name)
				h[key] = append(h[key], f.Value)
			}
		}
	}
	k.end()
}

// broken ends a call whose answer breaks off in the middle.
func (k *call) broken(err error) {
	x := k.x
	k.end()
	body := k.bodyErr()
	switch {
	case errors.Is(err, errClient), x.gone():
		if x.record.err = err; x.ended() != nil {
			x.record.err = x.ended()
		}
		if k.out.slow || isSlowReader(err) {
			x.record.reason = limit.SlowReader
		}
	case body != nil:
		x.record.fail(fault.BadBody, body)
	case errors.Is(err, h2.ErrMalformed):
		k.s.Failed(err)
		x.record.fail(fault.InvalidResponse, err)
	default:
		k.s.Failed(err)
		x.record.fail(fault.UpstreamBroke, err)
		k.out.flush()
		k.outwait(err)
	}
	k.out.flush()
	x.abort()
}

// trailerKey is where net/http looks for a trailer field that was not announced.
func trailerKey(name string) string {
	switch name {
	case "Grpc-Status":
		return http.TrailerPrefix + "Grpc-Status"
	case "Grpc-Message":
		return http.TrailerPrefix + "Grpc-Message"
	}
	return http.TrailerPrefix + name
}

// announce passes on the names of the trailer fields that may be sent.
func announce(h http.Header, e h2.Event) {
	for _, f := range e.Fields {
		if f.Name != "trailer" {
			continue
		}
		for name := range strings.SplitSeq(f.Value, ",") {
			name = http.CanonicalHeaderKey(trimOWS(name))
			if syntax.IsToken(name) && inTrailer(name) {
				h["Trailer"] = append(h["Trailer"], name)
			}
		}
	}
}

const (
	roomOfHTTP2 = 4 << 10 // bytes of an answer that net/http keeps until it is flushed
	attendAfter = time.Second
)

// callWriter takes the body of an answer to the client. It flushes before it waits for the service and never else. While the
// client takes its time, somebody else attends the service.
type callWriter struct {
	k       *call
	flusher http.Flusher
	idle    func() // flush
	waiting int    // bytes that were not flushed
	dirty   bool   // something was not
	slow    bool   // the client has read nothing for too long
	written int64
	dog     *watchdog // nil: it may
	help    *time.Timer
}

func (o *callWriter) begin(k *call) {
	o.k, o.flusher, o.dirty = k, k.x.server.flusher(k.x.w), true
	o.idle = o.flush
}

// flush sends what was written.
func (o *callWriter) flush() {
	if o.dirty {
		o.dirty, o.waiting = false, 0
		// An error shows at the next write.
		_ = o.patiently(func() error { o.flusher.Flush(); return nil })
	}
}

func (o *callWriter) write(p []byte) error {
	var n int
	var err error
	if o.waiting+len(p) < roomOfHTTP2 {
		n, err = o.k.x.w.Write(p)
		o.waiting += n
	} else {
		o.waiting = roomOfHTTP2
		err = o.patiently(func() (err error) {
			n, err = o.k.x.w.Write(p)
			return err
		})
	}
	o.written += int64(n)
	o.dirty = true
	if err != nil {
		return fmt.Errorf("%w: %w", errClient, err)
	}
	return nil
}

// patiently does what may have to wait for the client, as long as that may take.
func (o *callWriter) patiently(write func() error) error {
	x := o.k.x
	if o.help == nil {
		c, id := o.k.c, o.k.c.ID()
		o.help = time.AfterFunc(attendAfter, func() { c.Attend(id) })
		if x.settings.WriteTimeout > 0 {
			w := x.w
			o.dog = &watchdog{bark: func() {
				_ = http.NewResponseController(w).SetWriteDeadline(time.Now()) // where it can't be set the stream has ended
			}}
		}
	} else {
		o.help.Reset(attendAfter)
	}
	if o.dog != nil {
		o.dog.watch(time.Now(), x.settings.WriteTimeout)
	}
	err := write()
	o.help.Stop()
	if o.dog != nil {
		if o.slow = o.dog.rest() || o.slow; o.slow {
			err = os.ErrDeadlineExceeded
		}
	}
	return err
}

// rest ends what may still be waited for.
func (o *callWriter) rest() {
	if o.help != nil {
		o.help.Stop()
	}
}

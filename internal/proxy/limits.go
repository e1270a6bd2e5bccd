package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/fault"
	"github.com/pikoproxy/piko/internal/guard"
	"github.com/pikoproxy/piko/internal/limit"
	"github.com/pikoproxy/piko/internal/relay"
	"github.com/pikoproxy/piko/internal/router"
)

// Limiter decides about requests by where they come from and where they go. [*limit.Requests] is one. Its methods are
// quick, and nil means yes. The address is invalid for a client on a Unix socket.
type Limiter interface {
	// Client is asked first, before tokens are looked at.
	Client(addr netip.Addr) *fault.Fault
	// Endpoint is asked before a stream is.
	Endpoint(addr netip.Addr, key router.Key) *fault.Fault
	// BadToken hears of a bad token; an answer of its own takes the place of the reason.
	BadToken(addr netip.Addr) *fault.Fault
}

var (
	errBodyTooLarge = errors.New("request body larger than proxy.limits.max_body_bytes")
	errSlowBody     = errors.New("request body comes too slowly")
)

// rateGrace is how long a client is waited for before its rate is judged.
const rateGrace = 10 * time.Second

// underscores says what becomes of fields that could be taken for those that only proxies write, if an underscore were
// a hyphen.
type underscores int

const (
	dropUnderscores underscores = iota
	rejectUnderscores
	allowUnderscores
)

func underscoresOf(word string) underscores {
	switch word {
	case "reject":
		return rejectUnderscores
	case "allow":
		return allowUnderscores
	}
	return dropUnderscores
}

// bodyReader reads the body of a request as long as it keeps the limits of size and pace. Time in which nobody reads,
// as the service takes no more, does not count against the client, nor does any after the answer has begun: such a
// client is in a conversation with its service.
type bodyReader struct {
	body   io.ReadCloser
	most   int64         // bytes; 0: no limit
	still  time.Duration // without a byte; 0: no limit
	rate   int64         // bytes a second; 0: no limit
	n      int64
	waited time.Duration
	free   atomic.Bool // of the limits of pace
	dog    watchdog
}

// startBody prepares the reading of the body of an exchange's request.
func (x *exchange) startBody() {
	b := x.reader
	b.body, b.most, b.n, b.waited = x.r.Body, x.settings.MaxBodyBytes, 0, 0
	b.still, b.rate = x.settings.BodyTimeout, x.settings.MinBodyRate
	b.free.Store(false)
	w, body := x.w, x.r.Body
	b.dog.bark = func() { _ = body.Close() } // HTTP/2: ends a Read of it
	if x.r.ProtoMajor == 1 {
		b.dog.bark = func() {
			if c, ok := w.(interface{ SetReadDeadline(time.Time) error }); ok {
				_ = c.SetReadDeadline(time.Now()) // where it can't be set the connection is broken, and reading fails by itself
			}
		}
	}
}

// Read reads from the client.
func (b *bodyReader) Read(p []byte) (int, error) {
	if b.free.Load() || (b.still <= 0 && b.rate <= 0) {
		n, err := b.body.Read(p)
		return b.took(n, err)
	}
	began := time.Now()
	if b.still > 0 {
		b.dog.watch(began, b.still)
	}
	n, err := b.body.Read(p)
	late := b.dog.rest()
	b.waited += time.Since(began)
	switch {
	case late && n == 0:
		return 0, errSlowBody
	case err == nil && b.waited >= rateGrace && float64(b.n+int64(n)) < float64(b.rate)*b.waited.Seconds() && !b.free.Load():
		return 0, errSlowBody
	}
	return b.took(n, err)
}

func (b *bodyReader) took(n int, err error) (int, error) {
	b.n += int64(n)
	if b.most > 0 && b.n > b.most {
		return 0, errBodyTooLarge
	}
	return n, err
}

// release takes the limits of pace away.
func (b *bodyReader) release() {
	b.free.Store(true)
	b.dog.rest()
}

// watchdog barks when something takes too long. It is used again and again, so that its timer is made once.
type watchdog struct {
	bark func() // must not block for long

	mu     sync.Mutex // guards the following
	timer  *time.Timer
	until  time.Time // zero: nothing is watched
	barked bool
}

// watch begins to watch something that began now and may take d.
func (w *watchdog) watch(now time.Time, d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.until, w.barked = now.Add(d), false
	if w.timer == nil {
		w.timer = time.AfterFunc(d, w.expired)
	} else {
		w.timer.Reset(d)
	}
}

// rest ends the watch, and reports whether it has barked.
func (w *watchdog) rest() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.timer != nil {
		w.timer.Stop()
	}
	w.until = time.Time{}
	return w.barked
}

func (w *watchdog) expired() {
	w.mu.Lock()
	defer w.mu.Unlock()
	// A timer that was stopped too late must not be taken for that of the next watch.
	if !w.until.IsZero() && !time.Now().Before(w.until) {
		w.barked = true
		w.bark()
	}
}

// startCopier prepares the passing on of an answer's body. What a client of HTTP/1.1 does not read is noticed by the
// kernel, see package limit; one of HTTP/2 can hold up a single stream.
func (x *exchange) startCopier(c bodyCopier) {
	x.copier = c
	if x.r.ProtoMajor == 1 || x.settings.WriteTimeout <= 0 {
		return
	}
	w := x.w
	x.copier.patience = x.settings.WriteTimeout
	x.copier.dog = &watchdog{bark: func() {
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now()) // where it can't be set the stream has ended
	}}
}

// guarded runs a write, and breaks it off when the client takes nothing for too long.
func (c *bodyCopier) guarded(write func() error) error {
	if c.dog == nil {
		return write()
	}
	c.dog.watch(time.Now(), c.patience)
	err := write()
	if c.slow = c.dog.rest() || c.slow; c.slow {
		err = os.ErrDeadlineExceeded
	}
	return err
}

// isSlowReader reports whether a write to a client failed since the client read nothing for too long.
func isSlowReader(err error) bool {
	return errors.Is(err, errClient) && (errors.Is(err, syscall.ETIMEDOUT) || errors.Is(err, os.ErrDeadlineExceeded))
}

// lifeOf is what is known of a client's connection as a whole.
type lifeOf struct {
	conn     net.Conn
	since    time.Time
	requests atomic.Int64
	window   atomic.Int64 // number of the span of time that the following are about
	asked    atomic.Int64
	resets   atomic.Int64
	leaving  leaver
	front    *front
	arrived  atomic.Bool // a handler has got a request
	luck     float64     // -1 to 1, so that connections made at one time do not end at one time
}

type lifeKey struct{}

// A connection of HTTP/2 is cut off when nine in ten requests of so many in such a time are taken back.
const (
	floodSpan   = 10 * time.Second
	floodResets = 1000
)

// connContext is told by net/http of each connection.
func (f *front) connContext(ctx context.Context, c net.Conn) context.Context {
	l := &lifeOf{conn: c, since: time.Now(), leaving: leaverOf(c), front: f}
	l.luck = float64(l.since.UnixNano()%2001)/1000 - 1
	return context.WithValue(guard.With(ctx, c), lifeKey{}, l)
}

// life returns what is known of the connection of a request of HTTP/2; nil for others.
func (x *exchange) life() *lifeOf {
	if x.r.ProtoMajor != 2 {
		return nil
	}
	l, _ := x.r.Context().Value(lifeKey{}).(*lifeOf)
	return l
}

// tookBack counts a request of HTTP/2 that its client has reset, and ends a connection that hardly carries others: each
// costs us a stream to a service, and the client next to nothing. Clients that ask twice and take the quicker answer stay
// far below.
func (x *exchange) tookBack() {
	l := x.life()
	if l == nil {
		return
	}
	if n := l.resets.Add(1); n >= floodResets && n*10 > l.asked.Load()*9 {
		x.record.reason = limit.ResetFlood
		relay.Abort(l.conn)
	}
}

// lively reports whether the client of a request of HTTP/2 is still there after others had their turn, before anything is
// done for it.
func (x *exchange) lively() bool {
	if x.r.ProtoMajor != 2 {
		return true
	}
	runtime.Gosched()
	return !clientGone(x.r.Context())
}

// outlived counts a request of HTTP/2, and reports whether its connection has carried enough of them.
func (x *exchange) outlived() bool {
	l := x.life()
	if l == nil {
		return false
	}
	if now := int64(time.Since(l.since) / floodSpan); l.window.Swap(now) != now {
		l.asked.Store(0)
		l.resets.Store(0)
	}
	l.asked.Add(1)
	n := l.requests.Add(1)
	if most := x.settings.MaxRequests; most > 0 && n >= int64(most) || l.leaving.ending() {
		return true
	}
	age := x.settings.MaxAge
	return age > 0 && time.Since(l.since) > age+time.Duration(float64(age)*l.luck/10)
}

// sayGoodbye asks a client of HTTP/2 to open another connection, when this one has carried enough.
func (x *exchange) sayGoodbye() {
	if x.last {
		x.w.Header()["Connection"] = []string{"close"} // which net/http turns into GOAWAY
	}
}

// limited asks the limits about the request's client.
func (x *exchange) limited() *fault.Fault {
	if x.server.limiter == nil {
		return nil
	}
	return x.server.limiter.Client(x.origin.addr)
}

// RequestLimits returns what the configuration of the proxy listener says about clients and endpoints.
func RequestLimits(c config.Proxy) limit.RequestSettings {
	s := limit.RequestSettings{
		Access:      limit.Access{Allow: limit.Networks(c.Allow), Deny: limit.Networks(c.Deny)},
		PerAddress:  limit.Rate{PerSecond: c.Rates.RequestsPerAddress, Burst: c.Rates.RequestsPerAddressBurst},
		PerEndpoint: limit.Rate{PerSecond: c.Rates.RequestsPerEndpoint, Burst: c.Rates.RequestsPerEndpointBurst},
		FailedAuth:  limit.Rate{PerSecond: c.Rates.FailedAuthPerAddress, Burst: c.Rates.FailedAuthPerAddressBurst},
		Endpoints:   make(map[string]limit.EndpointSettings, len(c.Endpoints)),
	}
	for _, e := range c.Endpoints {
		s.Endpoints[e.Endpoint] = limit.EndpointSettings{
			Access: limit.Access{Allow: limit.Networks(e.Allow), Deny: limit.Networks(e.Deny)},
			Rate:   limit.Rate{PerSecond: e.Requests, Burst: e.Burst},
		}
	}
	return s
}

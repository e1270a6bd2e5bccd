package guard

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"sync"
	"time"
)

const (
	handshakeTimeout = 10 * time.Second
	maxHandshakes    = 4096 // under way at once; who comes then is turned away
)

// Options are what a [Listener] needs. Limits must be there.
type Options struct {
	TLS *tls.Config // nil: plain HTTP/1.1, or HTTP/2 with prior knowledge
	// Current returns what takes the place of TLS for a connection that has just been accepted; nil: TLS always holds.
	Current       func() *tls.Config
	Limits        func() Limits // asked at the start of each head; must not block
	HeaderTimeout time.Duration // from the first byte of a head to its last; 0: none
	ErrorLog      *log.Logger   // for TLS handshakes that fail; nil: the default one
	// HandshakeTimeout is for that of TLS; 0: 10 s.
	HandshakeTimeout time.Duration
	// Turns bound how many TLS handshakes are worked on at once, on this listener and on others; nil: nothing does.
	Turns Turns
	// Rejected is told of each TLS handshake that failed; may be nil.
	Rejected func()
}

// Listener guards the connections of another listener. Over TLS it makes the handshake by itself, as net/http
// recognises HTTP/2 only on a *tls.Conn: such connections it hands over as they are, and guards all others.
type Listener struct {
	net.Listener
	o Options

	results chan result   // of handshakes and of accepting; never closed
	closed  chan struct{} // closed by Close
	quiet   chan struct{} // over TLS: closed when nothing is accepted any more
	settled chan struct{} // closed by Retire when everything was handed over
	wait    sync.WaitGroup
	shut    func() error // closes the listener below, once; whoever calls it then waits for that

	mu      sync.Mutex // guards the following
	started bool
	over    bool
	retired bool
	pending map[net.Conn]bool // by connection as accepted: its handshake has ended, and Accept does not have it yet
}

type result struct {
	conn net.Conn
	err  error
}

// NewListener guards the connections that l accepts. It starts nothing; over TLS the first Accept does.
func NewListener(l net.Listener, o Options) *Listener {
	return &Listener{
		Listener: l, o: o, results: make(chan result), closed: make(chan struct{}), quiet: make(chan struct{}), settled: make(chan struct{}),
		pending: make(map[net.Conn]bool), shut: sync.OnceValue(l.Close),
	}
}

// Retire stops accepting, and nothing else: handshakes that are under way go on, and are handed over by Accept, which then
// fails. It returns when there are none any more, also by Close.
func (l *Listener) Retire() {
	l.mu.Lock()
	first := !l.retired
	l.retired = true
	l.mu.Unlock()
	_ = l.shut() // that it is closed is all that is wanted, and Close tells
	l.wait.Wait()
	if first {
		close(l.settled)
	}
}

// Quiet is closed when nothing is accepted any more, though handshakes may go on. Without TLS it never is: there, that Accept
// fails says the same.
func (l *Listener) Quiet() <-chan struct{} { return l.quiet }

// Owes reports whether a handshake has ended that Accept has yet to hand over, or one is under way for whose connection, as
// it was accepted, waiting says that it waits for us.
func (l *Listener) Owes(waiting func(net.Conn) bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for conn, ended := range l.pending {
		if ended || waiting(conn) {
			return true
		}
	}
	return false
}

// Accept waits for a connection, and over TLS for the end of its handshake. No connection waits for the handshake of
// another. Once it has failed with net.ErrClosed, nobody can connect any more.
func (l *Listener) Accept() (net.Conn, error) {
	var r result
	switch {
	case l.o.TLS == nil && l.o.Current == nil:
		var raw net.Conn
		if raw, r.err = l.Listener.Accept(); r.err == nil {
			return &Conn{Conn: raw, listener: l, mayPreface: true}, nil
		}
	case !l.begun():
		r.err = net.ErrClosed
	default:
		select {
		case r = <-l.results:
		case <-l.settled:
			r.err = net.ErrClosed
		case <-l.closed:
			r.err = net.ErrClosed
		}
	}
	l.closing(r.err)
	return r.conn, r.err
}

// begun starts accepting, once, and reports false if that was over before. Close and Retire, which wait for it, may come
// before the first Accept.
func (l *Listener) begun() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.started && !l.over && !l.retired {
		l.started = true
		l.wait.Go(l.accept)
	}
	return l.started
}

// closing waits, if accepting failed because the listener is being closed, until it is: package net wakes who accepts first,
// and closes the socket then.
func (l *Listener) closing(err error) {
	if errors.Is(err, net.ErrClosed) {
		_ = l.shut() // Close tells
	}
}

func (l *Listener) accept() {
	defer close(l.quiet)
	for {
		conn, err := l.Listener.Accept()
		switch {
		case err != nil:
			l.closing(err)
			// Whether to go on is for the caller to say, who calls again or not.
			if l.isRetired() || !l.deliver(result{err: err}) || errors.Is(err, net.ErrClosed) {
				return
			}
		default:
			l.take(conn)
		}
	}
}

func (l *Listener) isOver() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.over
}

func (l *Listener) isRetired() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.retired
}

// take goes on with a connection that was accepted.
func (l *Listener) take(raw net.Conn) {
	conf := l.o.TLS
	if l.o.Current != nil {
		conf = l.o.Current()
	}
	switch {
	case conf == nil:
		if !l.deliver(result{conn: &Conn{Conn: raw, listener: l, mayPreface: true}}) {
			_ = raw.Close()
		}
	case l.begin(raw):
		l.wait.Go(func() { l.secure(raw, conf) })
	default:
		if !l.isOver() {
			l.rejected(raw, errFull)
		}
		_ = raw.Close()
	}
}

// deliver hands over a result, unless the listener is closed.
func (l *Listener) deliver(r result) bool {
	select {
	case l.results <- r:
		return true
	case <-l.closed:
		return false
	}
}

func (l *Listener) begin(conn net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over || len(l.pending) >= maxHandshakes {
		return false
	}
	l.pending[conn] = false
	return true
}

// ended notes that a handshake has ended well.
func (l *Listener) ended(conn net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pending[conn] = true
}

func (l *Listener) forget(conn net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.pending, conn)
}

// secure makes the handshake.
func (l *Listener) secure(raw net.Conn, conf *tls.Config) {
	defer l.forget(raw)
	until := time.Now().Add(cmp.Or(l.o.HandshakeTimeout, handshakeTimeout))
	below := &shaking{Conn: raw, turns: l.o.Turns, until: until, stop: l.closed}
	conn := tls.Server(below, conf)
	err := raw.SetDeadline(until)
	if err == nil {
		err = conn.Handshake()
	}
	below.finish()
	if err == nil {
		err = raw.SetDeadline(time.Time{})
	}
	if err != nil {
		if !l.isOver() {
			l.failed(raw, err)
		}
		_ = raw.Close()
		return
	}
	l.ended(raw)
	var r result
	if conn.ConnectionState().NegotiatedProtocol == "h2" {
		r.conn = conn
	} else {
		r.conn = &secureConn{Conn: &Conn{Conn: conn, listener: l}, tls: conn}
	}
	if !l.deliver(r) {
		_ = raw.Close()
	}
}

var errFull = fmt.Errorf("%d others are under way", maxHandshakes)

const noTLS = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 44\r\nConnection: close\r\n\r\n" +
	"This is an HTTPS server. Use https:// here.\n"

// failed says what has become of a handshake, also to a client that does not know of TLS.
func (l *Listener) failed(raw net.Conn, err error) {
	var header tls.RecordHeaderError
	if errors.As(err, &header) && header.Conn != nil && classes[header.RecordHeader[0]]&tokenByte != 0 {
		_, _ = io.WriteString(raw, noTLS) // the deadline of the handshake holds
	}
	if errors.Is(err, io.EOF) {
		return // somebody looked whether the port is open
	}
	l.rejected(raw, err)
}

// rejected tells of a handshake that failed.
func (l *Listener) rejected(raw net.Conn, err error) {
	if l.o.Rejected != nil {
		l.o.Rejected()
	}
	logger := l.o.ErrorLog
	if logger == nil {
		logger = log.Default()
	}
	logger.Printf("tls handshake with %s: %v", raw.RemoteAddr(), err)
}

// Close stops accepting and breaks off the handshakes that are under way. It returns when nothing runs any more.
func (l *Listener) Close() error {
	l.mu.Lock()
	first := !l.over
	l.over = true
	for conn, ended := range l.pending {
		if !ended { // else it has an owner, or is about to
			_ = conn.Close()
		}
	}
	l.mu.Unlock()
	if first {
		close(l.closed)
	}
	err := l.shut()
	l.wait.Wait()
	return err
}

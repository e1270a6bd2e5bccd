package guard

import (
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// tickets are turns that tell who waits.
type tickets struct {
	free    chan struct{}
	waiting chan bool // gets whether the handshake goes on, for each that has to wait
}

func newTickets(n int) *tickets {
	return &tickets{make(chan struct{}, n), make(chan bool, 100)}
}

func (s *tickets) Take(until time.Time, stop <-chan struct{}, goesOn bool) bool {
	select {
	case s.free <- struct{}{}:
		return true
	default:
		s.waiting <- goesOn
	}
	select {
	case s.free <- struct{}{}:
		return true
	case <-stop:
	case <-time.After(time.Until(until)):
	}
	return false
}

func (s *tickets) Give() { <-s.free }

// all takes every turn, and returns what gives them back.
func (s *tickets) all() (give func()) {
	for range cap(s.free) {
		s.free <- struct{}{}
	}
	return func() {
		for range cap(s.free) {
			s.Give()
		}
	}
}

func TestHandshakesAreWorkedOnAFewAtATime(t *testing.T) {
	const most, clients = 2, 6
	server, client := secured(t)
	turns := newTickets(most)
	var busy atomic.Int64
	inside, proceed := make(chan struct{}, clients), make(chan struct{})
	pair := server.Certificates[0]
	server.Certificates, server.GetCertificate = nil, func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		if n := busy.Add(1); n > most {
			t.Errorf("%d handshakes are worked on", n)
		}
		defer busy.Add(-1)
		inside <- struct{}{}
		<-proceed
		return &pair, nil
	}
	addr := serve(t, Options{TLS: server, Turns: turns}, tell)
	var wait sync.WaitGroup
	for range clients {
		wait.Go(func() {
			c, err := tls.Dial("tcp", addr, client)
			if err != nil {
				t.Error(err)
				return
			}
			_ = c.Close()
		})
	}
	for range most {
		<-inside
	}
	for range clients - most {
		<-turns.waiting
	}
	close(proceed)
	wait.Wait()
}

// A turn is for work, and not for waiting: those who do not go on with a handshake must not keep the turns of others.
func TestAHandshakeThatWaitsForItsClientHasNoTurn(t *testing.T) {
	server, client := secured(t)
	addr := serve(t, Options{TLS: server, Turns: newTickets(1)}, tell)
	for range 5 {
		c, _ := dial(t, addr)
		send(t, c, "\x16\x03\x01") // the beginning of a hello
	}
	for range 5 {
		c, br := dial(t, addr)
		hello := new(recorded)
		_ = tls.Client(hello, client).Handshake() // ends with what is recorded
		send(t, c, hello.String())
		if _, err := br.ReadByte(); err != nil { // it has got its answer, and says nothing
			t.Fatal(err)
		}
	}
	c, err := tls.Dial("tcp", addr, client)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
}

// recorded is a connection that keeps what is written to it, and answers nothing.
type recorded struct {
	net.Conn
	strings.Builder
}

func (r *recorded) Read([]byte) (int, error)    { return 0, io.EOF }
func (r *recorded) Write(p []byte) (int, error) { return r.Builder.Write(p) }

func TestAHandshakeWhoseTurnDoesNotComeFails(t *testing.T) {
	server, client := secured(t)
	turns := newTickets(1)
	defer turns.all()()
	var mu sync.Mutex
	var lines strings.Builder
	var rejected atomic.Int64
	addr := serve(t, Options{
		TLS: server, Turns: turns, HandshakeTimeout: 50 * time.Millisecond, Rejected: func() { rejected.Add(1) },
		ErrorLog: log.New(lockedWriter{&mu, &lines}, "", 0),
	}, tell)
	if c, err := tls.Dial("tcp", addr, client); err == nil {
		_ = c.Close()
		t.Error("a handshake without a turn succeeds")
	}
	mu.Lock()
	defer mu.Unlock()
	if n := rejected.Load(); n != 1 || !strings.Contains(lines.String(), errNoTurn.Error()) {
		t.Errorf("%d were rejected, logged %q", n, &lines)
	}
}

// What waits for a turn does not hold up the end of the listener.
func TestClosingAListenerEndsTheWaitForTurns(t *testing.T) {
	server, client := secured(t)
	turns := newTickets(1)
	defer turns.all()()
	below, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := NewListener(below, Options{TLS: server, Turns: turns, HandshakeTimeout: time.Hour, Limits: func() Limits { return Limits{} }})
	accepted := make(chan error, 1)
	go func() {
		_, err := l.Accept()
		accepted <- err
	}()
	done := make(chan error, 1)
	go func() {
		c, err := tls.Dial("tcp", below.Addr().String(), client)
		if err == nil {
			_ = c.Close()
		}
		done <- err
	}()
	<-turns.waiting
	_ = l.Close()
	if err := <-accepted; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept ends with %v", err)
	}
	if err := <-done; err == nil {
		t.Error("a handshake succeeds")
	}
}

// What a handshake waits for that is nobody's work takes no turn either.
func TestAHandshakeThatWaitsForACertificateHasNoTurn(t *testing.T) {
	server, client := secured(t)
	turns := newTickets(1)
	arrived, ordered := make(chan struct{}, 2), make(chan struct{})
	pair := server.Certificates[0]
	server.Certificates, server.GetCertificate = nil, func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		if hello.ServerName == "slow.example.com" {
			defer hello.Conn.(interface{ Rest() func() }).Rest()()
			arrived <- struct{}{}
			<-ordered
		}
		return &pair, nil
	}
	addr := serve(t, Options{TLS: server, Turns: turns}, tell)
	shake := func(name string) error {
		config := client.Clone()
		config.ServerName = name
		c, err := tls.Dial("tcp", addr, config)
		if err == nil {
			_ = c.Close()
		}
		return err
	}
	slow := make(chan error, 1)
	go func() { slow <- shake("slow.example.com") }()
	<-arrived
	if err := shake("example.com"); err != nil {
		t.Error(err)
	}
	give := turns.all()
	close(ordered)
	if goesOn := <-turns.waiting; !goesOn {
		t.Error("a handshake that goes on waits with those that begin")
	}
	give()
	if err := <-slow; err != nil {
		t.Error(err)
	}
}

func TestAClientSendsNoMoreThanAHandshakeNeeds(t *testing.T) {
	near, far := net.Pipe()
	defer func() { _ = near.Close() }()
	sent := make(chan int, 1)
	go func() {
		n := 0
		for b := make([]byte, 1<<10); ; n += len(b) {
			if _, err := far.Write(b); err != nil {
				sent <- n
				return
			}
		}
	}()
	c := &shaking{Conn: near}
	n, err := io.Copy(io.Discard, struct{ io.Reader }{c})
	if !errors.Is(err, errLongHandshake) || n > maxHandshakeBytes {
		t.Errorf("a handshake ends after %d bytes with %v", n, err)
	}
	_ = near.Close()
	<-sent
	_ = far.Close()
}

// What becomes of a connection over TLS goes by its socket: how a reset is told from an end, and how it is read and written.
func TestTheSocketBelowTLSIsFound(t *testing.T) {
	server, client := secured(t)
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := NewListener(inner, Options{TLS: server, Limits: func() Limits { return Limits{} }})
	defer func() { _ = l.Close() }()
	dialed := make(chan *tls.Conn, 1)
	go func() {
		c, err := tls.Dial("tcp", inner.Addr().String(), client)
		if err != nil {
			t.Error(err)
		}
		dialed <- c
	}()
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = accepted.Close() }()
	if c := <-dialed; c != nil {
		defer func() { _ = c.Close() }()
	}
	below := Of(accepted).NetConn().(*tls.Conn).NetConn()
	bare, ok := below.(interface{ Bare() net.Conn })
	if !ok {
		t.Fatalf("%T hides what is below it", below)
	}
	if c, ok := bare.Bare().(*net.TCPConn); !ok {
		t.Errorf("below is %T, want the socket", c)
	}
}

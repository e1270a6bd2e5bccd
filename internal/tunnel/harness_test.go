package tunnel

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/yamux"
	"go.uber.org/goleak"
)

// testTimeout is only reached when something hangs; the machine may be busy.
const testTimeout = time.Minute

// node is a test server that accepts sessions of all sorts.
type node struct {
	*httptest.Server
	o        NodeOptions
	sessions chan *Session
	peers    chan *AgentSession
	failures chan error
	abuses   chan string
}

// newNode starts a server. All sessions must have ended by themselves or are ended with the test.
func newNode(t testing.TB, o NodeOptions) *node {
	t.Helper()
	n := unstarted(t, o)
	n.Start()
	return n
}

func unstarted(t testing.TB, o NodeOptions) *node {
	t.Helper()
	n := &node{o: o, sessions: make(chan *Session, 4096), peers: make(chan *AgentSession, 16),
		failures: make(chan error, 16), abuses: make(chan string, 16)}
	n.o.OnAbuse = func(reason string) { n.abuses <- reason }
	var mu sync.Mutex
	var all []interface {
		CloseNow(error) error
		Wait()
	}
	n.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == PathPeer {
			s, err := AcceptPeer(w, r, "peer", DialOptions{OnAbuse: n.o.OnAbuse})
			if err != nil {
				n.failures <- err
				return
			}
			mu.Lock()
			all = append(all, s)
			mu.Unlock()
			n.peers <- s
			return
		}
		accept := AcceptClassic
		if r.URL.Path == PathTunnel {
			accept = AcceptNative
		}
		s, err := accept(w, r, n.o)
		if err != nil {
			n.failures <- err
			return
		}
		mu.Lock()
		all = append(all, s)
		mu.Unlock()
		n.sessions <- s
	}))
	t.Cleanup(func() {
		n.Server.Close()
		mu.Lock()
		defer mu.Unlock()
		for _, s := range all {
			s.CloseNow(nil)
			s.Wait()
		}
	})
	return n
}

// noLeaks checks that the test leaves no goroutine. Call it first.
func noLeaks(t testing.TB) {
	option := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, option) })
}

func (n *node) session(t testing.TB) *Session {
	t.Helper()
	return receive(t, n.sessions, "session")
}

// receive takes the next value of a channel.
func receive[T any](t testing.TB, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(testTimeout):
		t.Fatalf("no %s in %v", what, testTimeout)
		panic("not reached")
	}
}

// dial connects a native agent.
func (n *node) dial(t testing.TB, o DialOptions) *AgentSession {
	t.Helper()
	o.URL = n.URL
	a, err := Dial(timeout(t), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		a.CloseNow(nil)
		a.Wait()
	})
	return a
}

// pair is a native session, seen from both ends.
func pair(t testing.TB) (*Session, *AgentSession) {
	t.Helper()
	n := newNode(t, NodeOptions{NodeID: "n1"})
	a := n.dial(t, DialOptions{Hello: Hello{AgentID: "a1"}})
	return n.session(t), a
}

// classicAgent is what protocol.md says of agents that are not ours: plain yamux with its defaults over a WebSocket.
func (n *node) classicAgent(t testing.TB) (*Session, *yamux.Session, *rawPeer) {
	t.Helper()
	raw := dialRaw(t, n.URL, PathClassic+"/my-endpoint", "")
	config := yamux.DefaultConfig()
	config.LogOutput = io.Discard
	ys, err := yamux.Client(raw, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ys.Close() })
	return n.session(t), ys, raw
}

// timeout is a context that ends with the test, and in bounded time.
func timeout(t testing.TB) context.Context {
	ctx, stop := context.WithTimeout(t.Context(), testTimeout)
	t.Cleanup(stop)
	return ctx
}

// connect opens a stream and returns both ends.
func connect(t testing.TB, s *Session, a *AgentSession) (*Stream, *Stream) {
	t.Helper()
	far := make(chan *Stream, 1)
	go func() {
		in, err := a.Accept(t.Context())
		if err != nil {
			close(far)
			return
		}
		st, err := in.Accept()
		if err != nil {
			close(far)
			return
		}
		far <- st
	}()
	near, err := s.Open(timeout(t), Header{Endpoint: "e", Protocol: ProtocolTCP})
	if err != nil {
		t.Fatal(err)
	}
	st := receive(t, far, "accepted stream")
	if st == nil {
		t.Fatal("stream was not accepted")
	}
	return near, st
}

// echo serves all streams of an agent by sending back what comes, until the session ends.
func echo(a *AgentSession) {
	for {
		in, err := a.Accept(context.Background())
		if err != nil {
			return
		}
		go func() {
			st, err := in.Accept()
			if err != nil {
				return
			}
			io.Copy(struct{ io.Writer }{st}, struct{ io.Reader }{st})
			st.Close()
		}()
	}
}

// exchange sends text through a stream that is echoed.
func exchange(t testing.TB, st io.ReadWriter, text string) {
	t.Helper()
	if _, err := io.WriteString(st, text); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(st, got); err != nil || string(got) != text {
		t.Fatalf("echo of %q: have %q, %v", text, got, err)
	}
}

// eventually waits until a state that nothing announces is reached.
func eventually(t testing.TB, what string, reached func() bool) {
	t.Helper()
	deadline := time.NewTimer(testTimeout)
	defer deadline.Stop()
	poll := time.NewTicker(time.Millisecond)
	defer poll.Stop()
	for !reached() {
		select {
		case <-poll.C:
		case <-deadline.C:
			t.Fatalf("not reached in %v: %s", testTimeout, what)
		}
	}
}

// wantRefused checks that err is a refusal with a code.
func wantRefused(t testing.TB, err error, code string) {
	t.Helper()
	refused, ok := errors.AsType[*RefusedError](err)
	if !ok || refused.Code != code {
		t.Fatalf("want refusal %s, have %v", code, err)
	}
}

// wantError checks that err is target.
func wantError(t testing.TB, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("want %v, have %v", target, err)
	}
}

// running reports whether a goroutine is in a function.
func running(function string) bool {
	stacks := make([]byte, 1<<20)
	return bytes.Contains(stacks[:runtime.Stack(stacks, true)], []byte(function))
}

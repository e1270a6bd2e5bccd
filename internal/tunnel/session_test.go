package tunnel

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/pikoproxy/piko/internal/websocket"
)

func TestNativeHelloTellsBothEndsWhoTheOtherIs(t *testing.T) {
	noLeaks(t)
	n := newNode(t, NodeOptions{NodeID: "n1", MaxStreams: 7, MaxEndpoints: 9})
	hello := Hello{AgentID: "a1", InstanceID: "i1", Labels: map[string]string{"zone": "z"}}
	a := n.dial(t, DialOptions{Hello: hello})
	s := n.session(t)
	if a.NodeID() != "n1" || a.Limits() != (Limits{7, 9}) {
		t.Errorf("agent knows node %q, limits %v", a.NodeID(), a.Limits())
	}
	have := s.Agent()
	if have.AgentID != "a1" || have.InstanceID != "i1" || have.Version != Version || !maps.Equal(have.Labels, hello.Labels) {
		t.Errorf("node knows agent %+v", have)
	}
	if s.RTT() <= 0 || a.RTT() <= 0 {
		t.Errorf("round-trip times %v and %v, want above zero", s.RTT(), a.RTT())
	}
	if s.Classic() || s.ID() == "" || s.ID() == a.ID() {
		t.Errorf("classic %v, ids %q and %q", s.Classic(), s.ID(), a.ID())
	}
}

func TestStreamCarriesHeaderAndBytesBothWays(t *testing.T) {
	noLeaks(t)
	s, a := pair(t)
	want := Header{Endpoint: "my-endpoint", Protocol: ProtocolHTTP, Client: "192.0.2.1:9", Trace: "00-1-2-01"}
	got := make(chan Header, 1)
	go func() {
		in, err := a.Accept(t.Context())
		if err != nil {
			return
		}
		got <- in.Header()
		st, err := in.Accept()
		if err != nil {
			return
		}
		io.Copy(struct{ io.Writer }{st}, struct{ io.Reader }{st})
		st.Close()
	}()
	st, err := s.Open(timeout(t), want)
	if err != nil {
		t.Fatal(err)
	}
	if h := receive(t, got, "header"); h != want {
		t.Errorf("header %+v, want %+v", h, want)
	}
	body := make([]byte, 3<<20)
	rand.Read(body)
	go func() {
		st.Write(body)
		st.CloseWrite()
	}()
	sum := sha256.New()
	if n, err := io.Copy(sum, st); err != nil || n != int64(len(body)) {
		t.Fatalf("echoed %d bytes, %v", n, err)
	}
	if want := sha256.Sum256(body); !bytes.Equal(sum.Sum(nil), want[:]) {
		t.Error("bytes differ")
	}
	st.Close()
	eventually(t, "stream forgotten", func() bool { return s.Streams() == 0 && a.Streams() == 0 })
}

func TestRefusalReachesTheOpener(t *testing.T) {
	noLeaks(t)
	s, a := pair(t)
	go func() {
		for {
			in, err := a.Accept(t.Context())
			if err != nil {
				return
			}
			in.Refuse(CodeServiceUnreachable, "connection refused")
		}
	}()
	for range 3 {
		_, err := s.Open(timeout(t), Header{Endpoint: "e"})
		wantRefused(t, err, CodeServiceUnreachable)
	}
	eventually(t, "streams forgotten", func() bool { return s.Streams() == 0 && a.Streams() == 0 })
}

func TestHalfCloseKeepsTheOtherDirection(t *testing.T) {
	noLeaks(t)
	for _, opener := range []string{"node", "agent"} {
		t.Run(opener+" closes first", func(t *testing.T) {
			s, a := pair(t)
			one, two := connect(t, s, a)
			if opener == "agent" {
				one, two = two, one
			}
			if err := one.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if n, err := two.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
				t.Fatalf("read after the end: %d, %v", n, err)
			}
			if _, err := one.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
				t.Errorf("write after CloseWrite: %v", err)
			}
			for range 3 {
				exchangeOneWay(t, two, one, "still here")
			}
			two.CloseWrite()
			if n, err := one.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
				t.Fatalf("read after both ends: %d, %v", n, err)
			}
			eventually(t, "streams forgotten", func() bool { return s.Streams() == 0 && a.Streams() == 0 })
		})
	}
}

func exchangeOneWay(t *testing.T, from, to *Stream, text string) {
	t.Helper()
	if _, err := io.WriteString(from, text); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(to, got); err != nil || string(got) != text {
		t.Fatalf("have %q, %v", got, err)
	}
}

func TestDeadlinesAndLocalCloseAreToldApart(t *testing.T) {
	noLeaks(t)
	n := newNode(t, NodeOptions{CloseWait: time.Hour})
	a := n.dial(t, DialOptions{})
	s := n.session(t)
	near, _ := connect(t, s, a)
	near.SetReadDeadline(time.Now().Add(time.Millisecond))
	_, err := near.Read(make([]byte, 1))
	wantError(t, err, os.ErrDeadlineExceeded)
	near.SetReadDeadline(time.Time{})
	failed := make(chan error, 1)
	go func() {
		_, err := near.Read(make([]byte, 1))
		failed <- err
	}()
	eventually(t, "blocked Read", func() bool { return running("tunnel.(*Stream).Read(") })
	near.Close()
	wantError(t, receive(t, failed, "end of Read"), net.ErrClosed)
	_, err = near.Write([]byte("x"))
	wantError(t, err, net.ErrClosed)
	wantError(t, near.SetDeadline(time.Time{}), net.ErrClosed)
}

func TestEndpointsAreAddedAndRemovedWhileTheSessionLives(t *testing.T) {
	noLeaks(t)
	h := &recorder{events: make(chan string, 64)}
	h.listen = func(s *Session, l Listen) {
		if l.Endpoint == "forbidden" {
			s.Refuse(l.Endpoint, CodeNotPermitted, "not in the token")
			return
		}
		s.Listening(l.Endpoint)
	}
	n := newNode(t, NodeOptions{Handler: h})
	refused := make(chan error, 1)
	a := n.dial(t, DialOptions{OnRefused: func(endpoint string, err *RefusedError) { refused <- err }})
	s := n.session(t)
	for range 3 {
		if err := a.Listen(timeout(t), Listen{Endpoint: "e1", Protocol: ProtocolTCP, Weight: 3}); err != nil {
			t.Fatal(err)
		}
		h.want(t, "listen e1 tcp 3")
		wantRefused(t, a.Listen(timeout(t), Listen{Endpoint: "forbidden"}), CodeNotPermitted)
		h.want(t, "listen forbidden  0")
		if err := a.Unlisten("e1"); err != nil {
			t.Fatal(err)
		}
		h.want(t, "unlisten e1")
	}
	s.Refuse("e1", CodeNotPermitted, "token changed")
	wantRefused(t, receive(t, refused, "late refusal"), CodeNotPermitted)
	a.SendToken("fresh")
	h.want(t, "token fresh")
	s.Send("unknown-to-agents", map[string]int{"x": 1})
	a.Send("unknown-to-nodes", map[string]int{"x": 1})
	a.SendDrain("leaving", time.Unix(1e9, 0))
	h.want(t, "drain leaving 2001-09-09T01:46:40Z")
	receive(t, s.Closing(), "end of Closing")
	_, err := s.Open(timeout(t), Header{Endpoint: "e1"})
	wantRefused(t, err, CodeDraining)
}

func TestListenEndsWithItsContextAndWithTheSession(t *testing.T) {
	noLeaks(t)
	s, a := pair(t) // nobody answers
	cause := errors.New("enough")
	ctx, stop := context.WithCancelCause(t.Context())
	stop(cause)
	wantError(t, a.Listen(ctx, Listen{Endpoint: "e"}), cause)
	failed := make(chan error, 1)
	go func() { failed <- a.Listen(t.Context(), Listen{Endpoint: "e"}) }()
	s.CloseNow(nil)
	wantError(t, receive(t, failed, "end of Listen"), ErrSessionClosed)
}

func TestNodeAsksToDrain(t *testing.T) {
	noLeaks(t)
	s, a := pair(t)
	go echo(a)
	deadline := time.Now().Add(time.Minute).Truncate(time.Second)
	if err := s.Drain("restart", deadline); err != nil {
		t.Fatal(err)
	}
	receive(t, a.Draining(), "drain")
	if d := a.DrainNotice(); d.Reason != "restart" || !d.Deadline.Equal(deadline) {
		t.Errorf("notice %+v", d)
	}
	st, err := s.Open(timeout(t), Header{Endpoint: "e"}) // until the agent is elsewhere
	if err != nil {
		t.Fatal(err)
	}
	exchange(t, st, "x")
	st.Close()
	if err := a.Shutdown(timeout(t)); err != nil {
		t.Fatal(err)
	}
	receive(t, s.Done(), "end of the session")
}

func TestHandshakeRefusalsReachTheDialer(t *testing.T) {
	noLeaks(t)
	n := newNode(t, NodeOptions{})
	n.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if got := r.Header.Get("Authorization") + " " + r.Header.Get(HeaderTenant); got != "Bearer secret t1" {
			t.Errorf("credentials %q", got)
		}
		http.Error(w, `{"error":"draining"}`, http.StatusServiceUnavailable)
	})
	_, err := Dial(timeout(t), DialOptions{URL: n.URL + "/base/", Token: "secret", TenantID: "t1"})
	status, ok := errors.AsType[*websocket.StatusError](err)
	if !ok || status.Status != http.StatusServiceUnavailable {
		t.Fatalf("have %v", err)
	}
	_, err = Dial(timeout(t), DialOptions{URL: "http://user:geheim@"})
	if err == nil || bytes.Contains([]byte(err.Error()), []byte("geheim")) {
		t.Errorf("error %v shows a password, or is missing", err)
	}
}

func TestAgentWithoutHelloIsGivenUp(t *testing.T) {
	noLeaks(t)
	n := newNode(t, NodeOptions{HandshakeTimeout: 50 * time.Millisecond})
	raw := dialRaw(t, n.URL, PathTunnel, Subprotocol)
	wantError(t, receive(t, n.failures, "failure"), errNoHello)
	raw.ending(t)
}

func TestPeerSessionsOpenFromTheDialer(t *testing.T) {
	noLeaks(t)
	n := newNode(t, NodeOptions{})
	heard := make(chan string, 1)
	s, err := DialPeer(timeout(t), DialOptions{URL: n.URL, Hello: Hello{InstanceID: "n2"}}, NodeOptions{
		OnMessage: func(_ *Session, kind string, object []byte) { heard <- kind + string(object) },
	})
	if err != nil {
		t.Fatal(err)
	}
	a := receive(t, n.peers, "peer session")
	if s.NodeID() != "peer" || a.Peer().InstanceID != "n2" {
		t.Errorf("dialer knows %q, acceptor %+v", s.NodeID(), a.Peer())
	}
	near, far := connect(t, s, a)
	exchangeOneWay(t, near, far, "there")
	exchangeOneWay(t, far, near, "back")
	near.Close()
	far.Close()
	a.Send("delta", struct {
		Rev int `json:"rev"`
	}{7})
	if got := receive(t, heard, "message"); got != `delta{"type":"delta","rev":7}` {
		t.Errorf("heard %s", got)
	}
	if err := s.Shutdown(timeout(t)); err != nil {
		t.Fatal(err)
	}
	a.Wait()
}

// recorder is a Handler that writes down what it hears.
type recorder struct {
	events chan string
	listen func(*Session, Listen)
}

func (h *recorder) Listen(s *Session, l Listen) {
	h.events <- "listen " + l.Endpoint + " " + l.Protocol + " " + string(rune('0'+l.Weight))
	if h.listen != nil {
		h.listen(s, l)
	}
}
func (h *recorder) Unlisten(_ *Session, endpoint string) { h.events <- "unlisten " + endpoint }
func (h *recorder) Token(_ *Session, bearer string)      { h.events <- "token " + bearer }
func (h *recorder) Drain(_ *Session, d Drain) {
	h.events <- "drain " + d.Reason + " " + d.Deadline.Format(time.RFC3339)
}

func (h *recorder) want(t *testing.T, event string) {
	t.Helper()
	if got := receive(t, h.events, event); got != event {
		t.Fatalf("heard %q, want %q", got, event)
	}
}

func TestStreamsOpenedAtTheSameTimeDoNotMix(t *testing.T) {
	noLeaks(t)
	s, a := pair(t)
	go echo(a)
	failed := make(chan error, 16)
	for w := range cap(failed) {
		go func() {
			failed <- func() error {
				for i := range 30 {
					st, err := s.Open(t.Context(), Header{Endpoint: "e"})
					if err != nil {
						return err
					}
					want := bytes.Repeat([]byte{byte(w), byte(i)}, 1+i*i*20)
					go func() {
						st.Write(want)
						if i%3 != 0 {
							st.CloseWrite()
						}
					}()
					have := make([]byte, len(want))
					if i%7 == 6 {
						have = have[:len(have)/2] // and give up in the middle
					}
					if _, err := io.ReadFull(st, have); err != nil || !bytes.Equal(have, want[:len(have)]) {
						return errors.Join(errors.New("bytes differ"), err)
					}
					if i%7 == 6 || i%5 == 4 {
						st.Reset()
					} else {
						st.Close()
					}
				}
				return nil
			}()
		}()
	}
	for range cap(failed) {
		if err := receive(t, failed, "end of a worker"); err != nil {
			t.Error(err)
		}
	}
	eventually(t, "streams forgotten", func() bool {
		return s.Streams() == 0 && a.Streams() == 0 && len(s.l.syn) == 0
	})
	if s.Err() != nil || a.Err() != nil {
		t.Errorf("sessions ended: %v, %v", s.Err(), a.Err())
	}
}

func TestCallbacksTellOfClosingAndThenOfTheEnd(t *testing.T) {
	noLeaks(t)
	events := make(chan string, 4)
	n := newNode(t, NodeOptions{
		OnClosing: func(s *Session) { events <- "closing " + s.ID() },
		OnDone:    func(s *Session) { events <- "done " + s.ID() },
	})
	want := func(event string) {
		t.Helper()
		if got := receive(t, events, event); got != event {
			t.Errorf("called with %q, want %q", got, event)
		}
	}
	s, agent, _ := n.classicAgent(t)
	if err := agent.GoAway(); err != nil {
		t.Fatal(err)
	}
	want("closing " + s.ID())
	if len(events) > 0 {
		t.Errorf("called with %q while the session lives", <-events)
	}
	agent.Close()
	want("done " + s.ID())
	s, agent, _ = n.classicAgent(t)
	agent.Close()
	want("closing " + s.ID())
	want("done " + s.ID())
}

func TestSessionsOverTLS(t *testing.T) {
	noLeaks(t)
	n := unstarted(t, NodeOptions{})
	n.StartTLS()
	a := n.dial(t, DialOptions{TLS: n.Client().Transport.(*http.Transport).TLSClientConfig})
	s := n.session(t)
	near, far := connect(t, s, a)
	other, otherFar := connect(t, s, a)
	failed := make(chan error, 2)
	go func() {
		_, err := far.Read(make([]byte, 1))
		failed <- err
	}()
	near.Reset() // interrupts reads of the TLS connection at both ends
	wantError(t, receive(t, failed, "end of Read"), ErrReset)
	for range 3 {
		exchangeOneWay(t, other, otherFar, "still fine")
		exchangeOneWay(t, otherFar, other, "still fine")
	}
	go func() {
		other.Write(make([]byte, 4<<20))
		other.CloseWrite()
	}()
	if n, err := io.Copy(io.Discard, otherFar); n != 4<<20 || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
	otherFar.Close()
	if err := a.Shutdown(timeout(t)); err != nil {
		t.Fatal(err)
	}
	s.Wait()
}

func TestClassicOverTLSEndsWithReset(t *testing.T) {
	noLeaks(t)
	n := unstarted(t, NodeOptions{HandshakeTimeout: 50 * time.Millisecond})
	n.StartTLS()
	target := "wss" + n.URL[len("https"):] + PathClassic + "/e"
	ws, _, err := websocket.Dial(timeout(t), target, websocket.DialOptions{
		TLS: n.Client().Transport.(*http.Transport).TLSClientConfig,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Reset()
	n.session(t).CloseNow(nil)
	for {
		if _, err = ws.Read(make([]byte, 512)); err != nil {
			break
		}
	}
	wantError(t, err, syscall.ECONNRESET)
}

func TestSessionWithoutStreamNumbersIsReplaced(t *testing.T) {
	noLeaks(t)
	s, a := pair(t)
	near, _ := connect(t, s, a)
	s.l.mu.Lock()
	s.l.lastLocal = lastStream
	s.l.mu.Unlock()
	last, lastFar := connect(t, s, a)
	receive(t, a.Draining(), "drain")
	receive(t, s.Closing(), "end of Closing")
	_, err := s.Open(timeout(t), Header{Endpoint: "e"})
	wantRefused(t, err, CodeDraining)
	exchangeOneWay(t, last, lastFar, "still works")
	last.Reset()
	near.Reset()
	receive(t, s.Done(), "end of the session")
	receive(t, a.Done(), "end of the session")
}

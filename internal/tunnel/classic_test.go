package tunnel

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

func TestClassicAgentServesHTTPAndTCP(t *testing.T) {
	noLeaks(t)
	n := newNode(t, NodeOptions{})
	s, agent, _ := n.classicAgent(t)
	if !s.Classic() || s.RTT() <= 0 {
		t.Errorf("classic %v, rtt %v", s.Classic(), s.RTT())
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "path %s", r.URL.Path)
	})}
	served := make(chan error, 1)
	go func() { served <- server.Serve(agent) }()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return s.Open(ctx, Header{Endpoint: "my-endpoint"})
	}}
	client := &http.Client{Transport: transport}
	for i := range 20 {
		answer, err := client.Get(fmt.Sprintf("http://x/%d", i))
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if want := fmt.Sprintf("path /%d", i); err != nil || string(body) != want {
			t.Fatalf("have %q, %v, want %q", body, err, want)
		}
	}
	transport.CloseIdleConnections()
	server.Close()
	receive(t, served, "end of the service")
}

func TestClassicHalfClosePassesBothWays(t *testing.T) {
	noLeaks(t)
	n := newNode(t, NodeOptions{})
	s, agent, _ := n.classicAgent(t)
	go func() {
		st, err := agent.AcceptStream()
		if err != nil {
			return
		}
		b, _ := io.ReadAll(st)
		fmt.Fprintf(st, "got %d bytes", len(b))
		st.Close()
	}()
	st, err := s.Open(timeout(t), Header{})
	if err != nil {
		t.Fatal(err)
	}
	st.Write(make([]byte, 1<<20))
	st.CloseWrite()
	b, err := io.ReadAll(st)
	if err != nil || string(b) != "got 1048576 bytes" {
		t.Fatalf("have %q, %v", b, err)
	}
	eventually(t, "stream forgotten", func() bool { return s.Streams() == 0 })
}

func TestClassicAgentThatLeavesKeepsItsStreams(t *testing.T) {
	noLeaks(t)
	n := newNode(t, NodeOptions{})
	s, agent, _ := n.classicAgent(t)
	go func() {
		st, err := agent.AcceptStream()
		if err == nil {
			io.Copy(struct{ io.Writer }{st}, struct{ io.Reader }{st})
			st.Close()
		}
	}()
	st, err := s.Open(timeout(t), Header{})
	if err != nil {
		t.Fatal(err)
	}
	exchange(t, st, "before")
	if err := agent.GoAway(); err != nil {
		t.Fatal(err)
	}
	receive(t, s.Closing(), "end of Closing")
	exchange(t, st, "after")
	_, err = s.Open(timeout(t), Header{})
	wantRefused(t, err, CodeDraining)
	if s.Err() != nil {
		t.Errorf("session ended: %v", s.Err())
	}
	st.Close()
}

func TestClassicStreamResetByALeavingAgentIsARefusal(t *testing.T) {
	noLeaks(t)
	n := newNode(t, NodeOptions{})
	raw := dialRaw(t, n.URL, PathClassic+"/e", "")
	raw.answerPing(t)
	s := n.session(t)
	failed := make(chan error, 1)
	go func() {
		_, err := s.Open(t.Context(), Header{})
		failed <- err
	}()
	syn, _ := raw.expect(t, kindWindow)
	raw.send(t, makeFrame(kindGoAway, 0, 0, goAwayNormal), nil)
	raw.send(t, makeFrame(kindWindow, flagRST, syn.stream(), 0), nil)
	wantRefused(t, receive(t, failed, "answer"), CodeDraining)
	if n := s.Streams(); n != 0 {
		t.Errorf("%d streams", n)
	}
	nothingInFlight(t, s)
}

func TestClassicShutdownIsGoAwayThenReset(t *testing.T) {
	noLeaks(t)
	n := newNode(t, NodeOptions{})
	raw := dialRaw(t, n.URL, PathClassic+"/e", "")
	raw.answerPing(t)
	s := n.session(t)
	done := make(chan error, 1)
	go func() { done <- s.Shutdown(t.Context()) }()
	frames, err := raw.ending(t)
	if len(frames) != 1 || frames[0].kind() != kindGoAway || frames[0].length() != goAwayInternal {
		t.Errorf("frames %v, want GoAway with code 2", frames)
	}
	wantError(t, err, syscall.ECONNRESET)
	if err := receive(t, done, "end of Shutdown"); err != nil {
		t.Error(err)
	}
}

func TestClassicShutdownWaitsForStreams(t *testing.T) {
	noLeaks(t)
	n := newNode(t, NodeOptions{})
	s, agent, _ := n.classicAgent(t)
	accepted := make(chan net.Conn, 1)
	go func() {
		st, err := agent.Accept()
		if err == nil {
			accepted <- st
		}
	}()
	st, err := s.Open(timeout(t), Header{})
	if err != nil {
		t.Fatal(err)
	}
	far := receive(t, accepted, "stream")
	done := make(chan error, 1)
	go func() { done <- s.Shutdown(t.Context()) }()
	receive(t, s.Closing(), "end of Closing")
	answer := make([]byte, 10)
	for range 10 { // so that whatever comes too early is noticed
		io.WriteString(st, "a question")
		if _, err := io.ReadFull(far, answer); err != nil {
			t.Fatal(err)
		}
		io.WriteString(far, "the answer")
		if _, err := io.ReadFull(st, answer); err != nil {
			t.Fatal(err)
		}
	}
	far.Close()
	select {
	case <-done:
		t.Fatal("shut down before the stream had ended")
	default:
	}
	st.Close()
	if err := receive(t, done, "end of Shutdown"); err != nil {
		t.Error(err)
	}
	if _, err := agent.Accept(); err == nil {
		t.Error("agent does not see the end")
	}
}

func TestClassicEndsWithResetHoweverItEnds(t *testing.T) {
	noLeaks(t)
	n := newNode(t, NodeOptions{})
	for name, end := range map[string]func(*Session, *rawPeer){
		"CloseNow":      func(s *Session, _ *rawPeer) { s.CloseNow(nil) },
		"bad frame":     func(_ *Session, c *rawPeer) { c.Write(make([]byte, 12)) },
		"bad WebSocket": func(_ *Session, c *rawPeer) { c.Conn.Write([]byte{0xff, 0xff}) },
		"Close":         func(s *Session, _ *rawPeer) { s.l.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			raw := dialRaw(t, n.URL, PathClassic+"/e", "")
			raw.answerPing(t)
			s := n.session(t)
			end(s, raw)
			_, err := raw.ending(t)
			if name == "bad WebSocket" && errors.Is(err, errCloseFrame) {
				return // the WebSocket layer says what is wrong; no agent of that make exists
			}
			wantError(t, err, syscall.ECONNRESET)
			receive(t, s.Done(), "end")
		})
	}
}

// TestMain serves as the node that TestKilledNodeResetsClassicAgents kills.
func TestMain(m *testing.M) {
	if os.Getenv("TUNNEL_TEST_NODE") == "" {
		os.Exit(m.Run())
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		os.Exit(1)
	}
	fmt.Println(listener.Addr())
	http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		AcceptClassic(w, r, NodeOptions{})
	}))
}

func TestKilledNodeResetsClassicAgents(t *testing.T) {
	node := exec.Command(os.Args[0])
	node.Env = append(os.Environ(), "TUNNEL_TEST_NODE=1")
	out, err := node.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := node.Start(); err != nil {
		t.Fatal(err)
	}
	defer node.Wait()
	defer node.Process.Kill()
	address, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	raw := dialRaw(t, "http://"+address[:len(address)-1], PathClassic+"/e", "")
	raw.answerPing(t)
	raw.send(t, makeFrame(kindPing, flagSYN, 0, 5), nil)
	raw.expect(t, kindPing) // the session is up
	node.Process.Signal(syscall.SIGKILL)
	_, err = raw.ending(t)
	wantError(t, err, syscall.ECONNRESET)
}

func TestClassicAgentFollowsABiggerWindow(t *testing.T) {
	noLeaks(t)
	n := newNode(t, NodeOptions{})
	s, agent, _ := n.classicAgent(t)
	sent := make(chan error, 1)
	go func() {
		st, err := agent.AcceptStream()
		if err == nil {
			st.SetWriteDeadline(time.Now().Add(testTimeout))
			for range 16 {
				if _, err = st.Write(make([]byte, 32<<10)); err != nil {
					break
				}
			}
		}
		sent <- err
	}()
	st, err := s.Open(timeout(t), Header{})
	if err != nil {
		t.Fatal(err)
	}
	if err := receive(t, sent, "end of Write"); err != nil { // though nobody reads
		t.Fatalf("512 KiB without a reader: %v", err)
	}
	st.Reset()
}

package classic

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/hashicorp/yamux"
)

// ending is a way in which a server can end a session.
type ending func(t *testing.T, tcp *net.TCPConn, ws *websocket.Conn, session *yamux.Session)

// server upgrades every handshake and ends the first session as told, after one stream was served. Later sessions
// stand until the agent leaves.
func server(t *testing.T, end ending) string {
	type key struct{}
	var sessions atomic.Int32
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ws, err := websocket.Accept(w, r, nil)
		if err != nil {
			t.Errorf("accept: %v", err)
			return
		}
		settings := yamux.DefaultConfig()
		settings.LogOutput = io.Discard
		conn := websocket.NetConn(context.WithoutCancel(r.Context()), ws, websocket.MessageBinary)
		session, err := yamux.Server(conn, settings)
		if err != nil {
			t.Errorf("session: %v", err)
			return
		}
		if sessions.Add(1) > 1 {
			<-session.CloseChan()
			return
		}
		if stream, err := session.OpenStream(); err != nil {
			t.Errorf("open: %v", err)
		} else {
			if err := stream.Close(); err != nil {
				t.Errorf("close stream: %v", err)
			}
			// The agent has closed it too, and writes nothing more: a write would be told of a reset in place of its reader.
			_, _ = io.Copy(io.Discard, stream)
		}
		end(t, r.Context().Value(key{}).(*net.TCPConn), ws, session)
	}))
	s.Config.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		return context.WithValue(ctx, key{}, c)
	}
	s.Start()
	t.Cleanup(s.Close)
	return s.URL
}

func reset(t *testing.T, tcp *net.TCPConn) {
	if err := tcp.SetLinger(0); err != nil {
		t.Errorf("linger: %v", err)
	}
	if err := tcp.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

// goAway sends yamux's goodbye with a code, which the library itself does for code 0 only.
func goAway(t *testing.T, ws *websocket.Conn, code byte) {
	frame := []byte{0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, code}
	if err := ws.Write(t.Context(), websocket.MessageBinary, frame); err != nil {
		t.Errorf("go away: %v", err)
	}
}

func TestVersionsReactToTheEndOfASessionAsTheOriginalsDid(t *testing.T) {
	for _, test := range []struct {
		name         string
		end          ending
		v090GivesUp  bool
		stillWaiting bool // the session is not over, so nobody reconnects
	}{
		{name: "clean FIN", v090GivesUp: true,
			end: func(t *testing.T, tcp *net.TCPConn, _ *websocket.Conn, _ *yamux.Session) {
				if err := tcp.CloseWrite(); err != nil {
					t.Errorf("close: %v", err)
				}
			}},
		{name: "Close frame", v090GivesUp: true,
			end: func(_ *testing.T, _ *net.TCPConn, ws *websocket.Conn, _ *yamux.Session) {
				// The answer to the Close frame is of no interest, and may not come.
				_ = ws.Close(websocket.StatusGoingAway, "restart")
			}},
		{name: "RST",
			end: func(t *testing.T, tcp *net.TCPConn, _ *websocket.Conn, _ *yamux.Session) { reset(t, tcp) }},
		{name: "GoAway(2), then RST",
			end: func(t *testing.T, tcp *net.TCPConn, ws *websocket.Conn, _ *yamux.Session) {
				goAway(t, ws, 2)
				reset(t, tcp)
			}},
		{name: "GoAway(1)",
			end: func(t *testing.T, _ *net.TCPConn, ws *websocket.Conn, _ *yamux.Session) { goAway(t, ws, 1) }},
		{name: "GoAway(0)", stillWaiting: true,
			end: func(t *testing.T, _ *net.TCPConn, ws *websocket.Conn, _ *yamux.Session) { goAway(t, ws, 0) }},
		{name: "text message",
			end: func(t *testing.T, _ *net.TCPConn, ws *websocket.Conn, _ *yamux.Session) {
				if err := ws.Write(t.Context(), websocket.MessageText, []byte("hello")); err != nil {
					t.Errorf("write: %v", err)
				}
			}},
	} {
		for _, version := range []Version{V081, V090} {
			t.Run(test.name+"/"+version.String(), func(t *testing.T) {
				t.Parallel()
				url := server(t, test.end)
				agent, err := Listen(t.Context(), Options{URL: url, Endpoint: "e", Version: version})
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = agent.Close() }()
				go func() {
					for {
						c, err := agent.Accept()
						if err != nil {
							return
						}
						_ = c.Close()
					}
				}()
				within := time.Minute
				if test.stillWaiting {
					within = 500 * time.Millisecond
				}
				ctx, cancel := context.WithTimeout(t.Context(), within)
				defer cancel()
				err = agent.WaitSessions(ctx, 2)
				switch {
				case test.stillWaiting:
					if !errors.Is(err, context.DeadlineExceeded) || agent.Sessions() != 1 {
						t.Errorf("ended with %v after %d sessions: want the first to stand", err, agent.Sessions())
					}
				case test.v090GivesUp && version == V090:
					if err == nil || errors.Is(err, context.DeadlineExceeded) {
						t.Errorf("reconnect: %v: want the agent to give up", err)
					}
				case err != nil:
					t.Errorf("reconnect: %v: want a second session", err)
				}
			})
		}
	}
}

func TestStatusesAtTheHandshake(t *testing.T) {
	for status, again := range map[int]bool{400: false, 401: false, 404: false, 408: true, 429: true, 503: true} {
		t.Run(http.StatusText(status), func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			var tries atomic.Int32
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				if tries.Add(1) > 1 {
					cancel() // that is enough
				}
				http.Error(w, `{"error":"no"}`, status)
			}))
			defer s.Close()
			_, err := Listen(ctx, Options{URL: s.URL, Endpoint: "e"})
			if err == nil {
				t.Fatal("a session stands: want none")
			}
			if got := tries.Load() > 1; got != again {
				t.Errorf("%d tries: want more than one: %t", tries.Load(), again)
			}
		})
	}
}

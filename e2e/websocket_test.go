package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/coder/websocket"
)

// echoWebSocket answers messages with themselves until one asks for a close.
func echoWebSocket(w http.ResponseWriter, r *http.Request) {
	ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{
		Subprotocols: []string{"second", "third"}, CompressionMode: websocket.CompressionContextTakeover,
	})
	if err != nil {
		return
	}
	defer func() { _ = ws.CloseNow() }()
	ws.SetReadLimit(-1)
	for {
		kind, b, err := ws.Read(r.Context())
		if err != nil {
			return
		}
		if string(b) == "close" {
			_ = ws.Close(4001, "as you wish")
			return
		}
		if string(b) == "vanish" {
			return
		}
		if ws.Write(r.Context(), kind, b) != nil {
			return
		}
	}
}

// webSocket opens a WebSocket to the endpoint "e".
func webSocket(ctx context.Context, c *http.Client, path string, o websocket.DialOptions) (*websocket.Conn, error) {
	o.HTTPClient = c
	ws, _, err := websocket.Dial(ctx, "ws://e.piko.test"+path, &o)
	if err == nil {
		ws.SetReadLimit(-1)
	}
	return ws, err
}

func TestWebSocketPassesThrough(t *testing.T) {
	t.Parallel()
	n := oneService(t, nodeOptions{}, echoWebSocket)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for i, mode := range []websocket.CompressionMode{websocket.CompressionDisabled, websocket.CompressionContextTakeover,
		websocket.CompressionContextTakeover} {
		t.Run(fmt.Sprintf("compression %d", mode), func(t *testing.T) {
			c := n.client(t)
			if i > 1 {
				c.Transport = naming{"read", c.Transport}
			}
			ws, err := webSocket(ctx, c, "/chat", websocket.DialOptions{
				Subprotocols: []string{"first", "second"}, CompressionMode: mode})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = ws.CloseNow() }()
			if got := ws.Subprotocol(); got != "second" {
				t.Errorf("subprotocol %q: want second", got)
			}
			for i := range 300 {
				kind, message := websocket.MessageText, fmt.Sprint("message ", i)
				switch {
				case i == 100:
					kind, message = websocket.MessageBinary, strings.Repeat("\x00\xff", 1<<19)
				case i%2 == 1:
					kind = websocket.MessageBinary
				}
				if err := ws.Write(ctx, kind, []byte(message)); err != nil {
					t.Fatal(err)
				}
				gotKind, got, err := ws.Read(ctx)
				if err != nil || gotKind != kind || string(got) != message {
					t.Fatalf("message %d came back as %s of %d bytes, %v: want %s of %d",
						i, gotKind, len(got), err, kind, len(message))
				}
			}
			pingPong(ctx, t, ws)
			if err := ws.Write(ctx, websocket.MessageText, []byte("close")); err != nil {
				t.Fatal(err)
			}
			_, _, err = ws.Read(ctx)
			var closed websocket.CloseError
			if !errors.As(err, &closed) || closed.Code != 4001 || closed.Reason != "as you wish" {
				t.Errorf("end: %v: want the service's code 4001 and its reason", err)
			}
		})
	}
}

// pingPong sends a ping and reads messages until it is answered.
func pingPong(ctx context.Context, t *testing.T, ws *websocket.Conn) {
	t.Helper()
	pong := make(chan error, 1)
	go func() { pong <- ws.Ping(ctx) }()
	for {
		if err := ws.Write(ctx, websocket.MessageText, []byte("on")); err != nil {
			t.Fatal(err)
		}
		if _, _, err := ws.Read(ctx); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-pong:
			if err != nil {
				t.Errorf("ping: %v: want it answered", err)
			}
			return
		default:
		}
	}
}

func TestWebSocketEndsWhenEitherSideVanishes(t *testing.T) {
	t.Parallel()
	gone := make(chan error, 1)
	n := oneService(t, nodeOptions{}, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Has("vanish") {
			echoWebSocket(w, r)
			return
		}
		ws, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer func() { _ = ws.CloseNow() }()
		_, _, err = ws.Read(context.WithoutCancel(r.Context()))
		gone <- err
	})
	t.Run("client", func(t *testing.T) {
		ws, err := webSocket(t.Context(), n.client(t), "/chat", websocket.DialOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := ws.CloseNow(); err != nil {
			t.Fatal(err)
		}
		if err := wait(t, "the service sees the client go", settle, gone); err == nil {
			t.Error("the service read a message: want an error")
		}
	})
	t.Run("service", func(t *testing.T) {
		ws, err := webSocket(t.Context(), n.client(t), "/chat?vanish", websocket.DialOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = ws.CloseNow() }()
		if err := ws.Write(t.Context(), websocket.MessageText, []byte("vanish")); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), settle)
		defer cancel()
		if _, _, err := ws.Read(ctx); !errors.Is(err, io.EOF) && !isReset(err) {
			t.Errorf("client sees %v: want its connection ended without a Close frame", err)
		}
	})
}

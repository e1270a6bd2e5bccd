package websocket

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// noProxy keeps the tests independent of the environment.
func noProxy(*url.URL) (*url.URL, error) { return nil, nil }

// serve starts a server that accepts WebSockets with o and hands them out.
func serve(t testing.TB, o AcceptOptions) (address string, accepted <-chan *Conn) {
	t.Helper()
	conns := make(chan *Conn, 16)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, err := Accept(w, r, o); err == nil {
			conns <- c
		}
	}))
	t.Cleanup(server.Close)
	return server.URL, conns
}

// pair returns both ends of a WebSocket over TCP.
func pair(t testing.TB, ao AcceptOptions, do DialOptions) (client, server *Conn) {
	t.Helper()
	address, accepted := serve(t, ao)
	if do.Proxy == nil {
		do.Proxy = noProxy
	}
	client, _, err := Dial(context.Background(), address, do)
	if err != nil {
		t.Fatal(err)
	}
	server = <-accepted
	t.Cleanup(func() {
		_ = client.Reset()
		_ = server.Reset()
	})
	return client, server
}

func limit(t testing.TB, conns ...*Conn) {
	t.Helper()
	for _, c := range conns {
		if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
}

func random(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(b)
	return b
}

func TestBytesArriveAsTheyWereSent(t *testing.T) {
	data := random(8 << 20)
	want := sha256.Sum256(data)
	client, server := pair(t, AcceptOptions{}, DialOptions{})
	limit(t, client, server)
	for _, way := range []struct {
		name     string
		from, to *Conn
	}{{"client to server", client, server}, {"server to client", server, client}} {
		t.Run(way.name, func(t *testing.T) {
			var wg sync.WaitGroup
			wg.Go(func() {
				for rest := data; len(rest) > 0; {
					k := min(len(rest), 1+rand.IntN(300<<10))
					if n, err := way.from.Write(rest[:k]); err != nil || n != k {
						t.Errorf("write: %d, %v", n, err)
					}
					rest = rest[k:]
				}
				if err := way.from.CloseWrite(); err != nil {
					t.Errorf("close write: %v", err)
				}
			})
			h := sha256.New()
			for total := 0; ; {
				b := make([]byte, 1+rand.IntN(30<<10))
				n, err := way.to.Read(b)
				h.Write(b[:n])
				total += n
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatalf("read after %d bytes: %v", total, err)
				}
			}
			wg.Wait()
			if !bytes.Equal(h.Sum(nil), want[:]) {
				t.Fatal("bytes differ")
			}
		})
	}
}

func TestOneDirectionEndsWithoutTheOther(t *testing.T) {
	client, server := pair(t, AcceptOptions{}, DialOptions{})
	limit(t, client, server)
	if _, err := client.Write([]byte("request")); err != nil {
		t.Fatal(err)
	}
	if err := client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(server); err != nil || string(got) != "request" {
		t.Fatalf("server read %q, %v", got, err)
	}
	if _, err := client.Write([]byte("more")); !errors.Is(err, io.ErrClosedPipe) {
		t.Fatalf("write after CloseWrite: %v", err)
	}
	if err := client.CloseWrite(); err != nil {
		t.Fatalf("second CloseWrite: %v", err)
	}
	if _, err := server.Write([]byte("answer")); err != nil {
		t.Fatal(err)
	}
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(client); err != nil || string(got) != "answer" {
		t.Fatalf("client read %q, %v", got, err)
	}
}

func TestResetIsNoCleanEnd(t *testing.T) {
	client, server := pair(t, AcceptOptions{}, DialOptions{})
	limit(t, client, server)
	if err := server.Reset(); err != nil {
		t.Fatal(err)
	}
	var op *net.OpError
	if _, err := client.Read(make([]byte, 1)); !errors.As(err, &op) {
		t.Fatalf("read after the peer's reset: %v", err)
	}
}

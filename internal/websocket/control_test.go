package websocket

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestClientMasksAndServerDoesNot(t *testing.T) {
	socket, client := rawServer(t, nil)
	if _, err := client.Write([]byte("data")); err != nil {
		t.Fatal(err)
	}
	if err := client.Ping([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	for _, want := range []received{{0x82, true, "data"}, {0x89, true, "ping"}} {
		if got, err := readRaw(socket); err != nil || got != want {
			t.Fatalf("got %+v, %v; want %+v", got, err, want)
		}
	}
}

func TestServersFaultsAreNoticed(t *testing.T) {
	tests := []struct {
		name string
		send []byte
		data string
		code int
	}{
		{"masked", masked(0x82, "x"), "", 1002},
		{"masked ping", masked(0x89, ""), "", 1002},
		{"text", plain(0x81, "x"), "", 1003},
		{"reserved bit", plain(0xc2, "x"), "", 1002},
		{"too long", raw(0x82, nil, form{length: DefaultMaxMessage + 1, unmasked: true}), "", 1009},
		{"after good data", join(plain(0x82, "good"), plain(0x80, "x")), "good", 1002},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			socket, client := rawServer(t, test.send)
			data, err := io.ReadAll(client)
			if broken, ok := errors.AsType[*ProtocolError](err); !ok || broken.Code != test.code || string(data) != test.data {
				t.Fatalf("read %q, %v; want %q and code %d", data, err, test.data, test.code)
			}
			_ = client.Close()
			got, err := readRaw(socket)
			if err != nil || got.first != 0x88 || !got.masked || !strings.HasPrefix(got.payload, closing(test.code, "")) {
				t.Fatalf("server got %+v, %v; want close code %d", got, err, test.code)
			}
		})
	}
}

func TestDataBehindTheHandshakeIsRead(t *testing.T) {
	t.Run("by the client", func(t *testing.T) {
		_, client := rawServer(t, join(plain(0x82, "early"), plain(0x88, "")))
		if data, err := readAll(client, 3); string(data) != "early" || !errors.Is(err, io.EOF) {
			t.Fatalf("read %q, %v", data, err)
		}
	})
	t.Run("by the server", func(t *testing.T) {
		address, accepted := serve(t, AcceptOptions{})
		conn, err := net.Dial("tcp", strings.TrimPrefix(address, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		request := "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
			"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + rawKey + "\r\n\r\n"
		if _, err := conn.Write(join([]byte(request), masked(0x82, "early"), masked(0x88, ""))); err != nil {
			t.Fatal(err)
		}
		server := <-accepted
		defer server.Close()
		limit(t, server)
		if data, err := readAll(server, 3); string(data) != "early" || !errors.Is(err, io.EOF) {
			t.Fatalf("read %q, %v", data, err)
		}
	})
}

func TestPongsAreHandedOver(t *testing.T) {
	client, server := pair(t, AcceptOptions{}, DialOptions{})
	limit(t, client, server)
	var pongs []string
	client.OnPong(func(payload []byte) { pongs = append(pongs, string(payload)) })
	before := client.LastRead()
	if err := client.Ping([]byte("marco")); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		// The pong is on its way when the server's Read has returned, and data sent from then on comes after it.
		if _, err := server.Read(make([]byte, 1)); err != nil {
			t.Errorf("server: %v", err)
		}
		if _, err := server.Write([]byte("x")); err != nil {
			t.Errorf("server: %v", err)
		}
		_ = server.CloseWrite()
	})
	// The server reads the ping first, because Ping is sent by itself before anything else is written.
	waitFor(t, func() bool { return !client.queued.Load() && idle(client) })
	if _, err := client.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if data, err := io.ReadAll(client); err != nil || string(data) != "x" {
		t.Fatalf("read %q, %v", data, err)
	}
	wg.Wait()
	if len(pongs) != 1 || pongs[0] != "marco" {
		t.Fatalf("pongs %q", pongs)
	}
	if !client.LastRead().After(before) {
		t.Fatal("LastRead did not move")
	}
}

// idle reports whether nobody is writing to c.
func idle(c *Conn) bool {
	if !c.wmu.TryLock() {
		return false
	}
	c.unlock()
	return true
}

// waitFor waits for something that happens soon and tells nobody.
func waitFor(t testing.TB, happened func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); !happened(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain")
		}
	}
}

// stuck starts to write a message larger than all buffers on the way to a peer that does not read.
func stuck(t *testing.T, c *Conn, peer *net.TCPConn) (writer <-chan error) {
	t.Helper()
	if err := errors.Join(c.TCPConn().SetWriteBuffer(64<<10), peer.SetReadBuffer(64<<10)); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- c.WriteReserved(make([]byte, 4<<20)) }()
	waitFor(t, func() bool { return !idle(c) })
	return done
}

func TestPingAndPongDoNotWaitForAStuckWriter(t *testing.T) {
	socket, client := rawServer(t, nil)
	if err := client.SetDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	writer := stuck(t, client, socket)
	for range 10 {
		if err := client.Ping([]byte("mine")); err != nil {
			t.Fatal(err)
		}
	}
	// Reading goes on past pings of the peer, though they cannot be answered now.
	for i := range 5 {
		if _, err := socket.Write(join(plain(0x89, string(rune('a'+i))), plain(0x82, "x"))); err != nil {
			t.Fatal(err)
		}
		if _, err := client.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	// When the peer reads again it finds the latest of each, between messages.
	pings, pongs := 0, 0
	for pings == 0 || pongs == 0 {
		f, err := readRaw(socket)
		switch {
		case err != nil:
			t.Fatal(err)
		case f.first == 0x89 && f.payload == "mine":
			pings++
		case f.first == 0x8a && f.payload == "e":
			pongs++
		case f.first != 0x82:
			t.Fatalf("unexpected frame %#x %q", f.first, f.payload)
		}
	}
	if err := <-writer; err != nil {
		t.Fatal(err)
	}
	if pings != 1 || pongs != 1 {
		t.Fatalf("%d pings and %d pongs, want the latest of each", pings, pongs)
	}
}

func TestPingIsSentBetweenTheMessagesOfALongWrite(t *testing.T) {
	socket, client := rawServer(t, nil)
	if err := errors.Join(client.TCPConn().SetWriteBuffer(64<<10), socket.SetReadBuffer(64<<10)); err != nil {
		t.Fatal(err)
	}
	const size = 4 << 20
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := client.Write(make([]byte, size)); err != nil {
			t.Errorf("write: %v", err)
		}
	})
	defer wg.Wait()
	waitFor(t, func() bool { return !idle(client) })
	if err := client.Ping(nil); err != nil {
		t.Fatal(err)
	}
	before := -1 // bytes that came before the ping
	for got := 0; got < size; {
		f, err := readRaw(socket)
		if err != nil {
			t.Fatal(err)
		}
		if got += len(f.payload); f.first == 0x89 {
			before = got
		}
	}
	if before < 0 {
		t.Fatal("ping had to wait for the whole write")
	}
}

// hooked is a connection on which something happens during the first writes.
type hooked struct {
	endless
	during []func()
}

func (h *hooked) Write(p []byte) (int, error) {
	if len(h.during) > 0 {
		f := h.during[0]
		h.during = h.during[1:]
		f()
	}
	return len(p), nil
}

func TestPingQueuedDuringAnotherIsSent(t *testing.T) {
	h := &hooked{}
	c := newConn(h, true, 0)
	again := func() {
		if err := c.Ping(nil); err != nil {
			t.Error(err)
		}
	}
	h.during = []func(){again, again, again}
	again()
	c.background.Wait()
	if c.queued.Load() || len(h.during) > 0 {
		t.Fatal("a ping is queued, and nobody sends it")
	}
}

func TestReadGoesOnAfterADeadline(t *testing.T) {
	address, accepted := serve(t, AcceptOptions{})
	client, server := rawClient(t, address, accepted)
	whole := masked(0x82, strings.Repeat("x", 1000))
	var got []byte
	for len(whole) > 0 {
		n := min(len(whole), 3)
		if _, err := client.Write(whole[:n]); err != nil {
			t.Fatal(err)
		}
		whole = whole[n:]
		if err := server.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		p := make([]byte, 100)
		n, err := server.Read(p)
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
		got = append(got, p[:n]...)
	}
	limit(t, server)
	if err := client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(server)
	if err != nil || string(got)+string(rest) != strings.Repeat("x", 1000) {
		t.Fatalf("read %d bytes, %v", len(got)+len(rest), err)
	}
}

func TestWriteCutOffByADeadlineEndsWriting(t *testing.T) {
	socket, client := rawServer(t, nil)
	if err := client.SetWriteDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	var err error
	for chunk := make([]byte, 1<<20); err == nil; {
		_, err = client.Write(chunk)
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("write ended with %v", err)
	}
	if err := client.SetWriteDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	if _, again := client.Write([]byte("x")); !errors.Is(again, os.ErrDeadlineExceeded) {
		t.Fatalf("half a frame was sent, and the next write gave %v", again)
	}
	if err := client.Ping(nil); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("half a frame was sent, and the next ping gave %v", err)
	}
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, socket); err == nil {
		t.Fatal("half a frame and then a clean end")
	}
}

func TestWriteReservedIsOneMessage(t *testing.T) {
	for _, n := range []int{1, 125, 126, 65535, 65536, 256 << 10} {
		socket, client := rawServer(t, nil)
		want := bytes.Repeat([]byte("d"), n)
		if err := client.WriteReserved(append(make([]byte, HeaderRoom), want...)); err != nil {
			t.Fatal(err)
		}
		if got, err := readRaw(socket); err != nil || got.first != 0x82 || got.payload != string(want) {
			t.Fatalf("%d bytes came as %#x with %d bytes, %v", n, got.first, len(got.payload), err)
		}
		if err := client.WriteReserved(make([]byte, HeaderRoom)); err != nil {
			t.Fatalf("empty message: %v", err)
		}
	}
}

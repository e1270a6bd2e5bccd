package websocket

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

// The peers in these tests are written by hand, byte by byte, so that no mistake of this package hides itself.

const rawKey = "dGhlIHNhbXBsZSBub25jZQ==" // of RFC 6455, 1.3, like the answer to it
const rawAccept = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

// rawClient makes a handshake by hand and returns the client's socket and the server's Conn.
func rawClient(t testing.TB, address string, accepted <-chan *Conn) (*net.TCPConn, *Conn) {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n"+
		"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n", u.Host, rawKey)
	head := readRawHead(t, conn)
	if !strings.HasPrefix(head, "HTTP/1.1 101 ") || !strings.Contains(head, "\r\nSec-WebSocket-Accept: "+rawAccept+"\r\n") {
		t.Fatalf("answer to the handshake: %q", head)
	}
	if strings.Contains(head, "Extensions") {
		t.Fatalf("an extension was accepted: %q", head)
	}
	server := <-accepted
	limit(t, server)
	t.Cleanup(func() { _ = server.Reset() })
	return conn.(*net.TCPConn), server
}

// rawServer answers one handshake by hand, sends after at once behind it, and returns the server's socket and the
// client's Conn.
func rawServer(t testing.TB, after []byte) (*net.TCPConn, *Conn) {
	t.Helper()
	address, sockets := answerWith(t, func(key string) []byte {
		return append([]byte("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
			"Sec-WebSocket-Accept: "+acceptKey(key)+"\r\n\r\n"), after...)
	})
	client, _, err := Dial(t.Context(), address, DialOptions{Proxy: noProxy})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Reset() })
	limit(t, client)
	return (<-sockets).(*net.TCPConn), client
}

// answerWith starts a server that reads one request and writes what answer makes of the key in it.
func answerWith(t testing.TB, answer func(key string) []byte) (address string, sockets <-chan net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	conns := make(chan net.Conn, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		t.Cleanup(func() { _ = conn.Close() })
		_ = conn.SetDeadline(time.Now().Add(time.Minute))
		r, err := http.ReadRequest(bufio.NewReader(conn))
		if err != nil {
			t.Errorf("read request: %v", err)
			_ = conn.Close()
			return
		}
		_, _ = conn.Write(answer(r.Header.Get("Sec-WebSocket-Key"))) // a client may leave early
		conns <- conn
	}()
	t.Cleanup(func() {
		_ = ln.Close()
		<-done
	})
	return "http://" + ln.Addr().String(), conns
}

// readRawHead reads up to the empty line, and not a byte more.
func readRawHead(t testing.TB, conn net.Conn) string {
	t.Helper()
	var head []byte
	for b := make([]byte, 1); !bytes.HasSuffix(head, []byte("\r\n\r\n")); {
		if _, err := conn.Read(b); err != nil {
			t.Fatalf("read head: %v after %q", err, head)
		}
		head = append(head, b[0])
	}
	return string(head)
}

// Ways to write a frame wrongly, or otherwise than in the shortest form.
type form struct {
	unmasked bool
	length   uint64 // to claim instead of that of the payload
	bits     int    // of the length field: 7, 16 or 64; 0 means as few as possible
}

var maskOfTest = [4]byte{0x37, 0xfa, 0x21, 0x3d}

// raw returns a frame: first is its first byte.
func raw(first byte, payload []byte, f form) []byte {
	length := uint64(len(payload))
	if f.length > 0 {
		length = f.length
	}
	bits := f.bits
	if bits == 0 {
		switch {
		case length < 126:
			bits = 7
		case length < 1<<16:
			bits = 16
		default:
			bits = 64
		}
	}
	masked := byte(0x80)
	if f.unmasked {
		masked = 0
	}
	b := []byte{first}
	switch bits {
	case 7:
		b = append(b, masked|byte(length))
	case 16:
		b = binary.BigEndian.AppendUint16(append(b, masked|126), uint16(length))
	default:
		b = binary.BigEndian.AppendUint64(append(b, masked|127), length)
	}
	if f.unmasked {
		return append(b, payload...)
	}
	b = append(b, maskOfTest[:]...)
	for i, c := range payload {
		b = append(b, c^maskOfTest[i%4])
	}
	return b
}

// masked returns frames of a client: a final binary frame is masked(0x82, "text").
func masked(first byte, payload string) []byte { return raw(first, []byte(payload), form{}) }

func plain(first byte, payload string) []byte {
	return raw(first, []byte(payload), form{unmasked: true})
}

func join(frames ...[]byte) []byte { return bytes.Join(frames, nil) }

func closing(code int, reason string) string {
	return string(binary.BigEndian.AppendUint16(nil, uint16(code))) + reason
}

// received is a frame as the raw peer got it.
type received struct {
	first   byte
	masked  bool
	payload string
}

// readRaw reads one frame of the tested side.
func readRaw(r io.Reader) (received, error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return received{}, err
	}
	length := uint64(head[1] & 0x7f)
	var wide [8]byte
	switch length {
	case 126:
		if _, err := io.ReadFull(r, wide[6:]); err != nil {
			return received{}, err
		}
		length = binary.BigEndian.Uint64(wide[:])
	case 127:
		if _, err := io.ReadFull(r, wide[:]); err != nil {
			return received{}, err
		}
		length = binary.BigEndian.Uint64(wide[:])
	}
	got := received{first: head[0], masked: head[1]&0x80 != 0}
	var key [4]byte
	if got.masked {
		if _, err := io.ReadFull(r, key[:]); err != nil {
			return received{}, err
		}
	}
	payload := make([]byte, length)
	if _, err := io.ReadFull(r, payload); err != nil {
		return received{}, err
	}
	for i := range payload {
		payload[i] ^= key[i%4]
	}
	got.payload = string(payload)
	return got, nil
}

package main

import (
	"bufio"
	"bytes"
	"crypto/sha1" //nolint:gosec // G505: RFC 6455 wants it in the handshake
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
)

// prefaceLine is the first line of what an HTTP/2 client says.
const prefaceLine = "PRI * HTTP/2.0\r\n"

// What the service answers by path. The small body has the size that small answers of an API have.
const (
	smallBody = 100
	midBody   = 64 << 10
	bigBody   = 1 << 20
	blockSize = 64 << 10
)

// serveHTTP is the service behind every HTTP case: it knows as much of HTTP as its own clients here need, so that most of the
// machine is left to what is measured. GET / is 100 bytes, /64k and /1m are what they say, /bulk never ends, a body sent
// to it is read, and a WebSocket echoes. HTTP/2 is for calls of gRPC.
func serveHTTP(l net.Listener) error {
	answers := map[string][]byte{"/": answer(smallBody), "/64k": answer(midBody), "/1m": answer(bigBody)}
	return serve(l, func(c net.Conn) {
		in := bufio.NewReaderSize(c, 16<<10)
		for answerOne(c, in, answers) == nil {
		}
	})
}

func answer(size int) []byte {
	head := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n", size)
	return append([]byte(head), bytes.Repeat([]byte("x"), size)...)
}

func answerOne(c net.Conn, in *bufio.Reader, answers map[string][]byte) error {
	line, err := in.ReadSlice('\n')
	if err != nil {
		return err
	}
	if string(line) == prefaceLine {
		return serveCalls(c, in)
	}
	_, rest, _ := bytes.Cut(line, []byte(" "))
	path, _, _ := bytes.Cut(rest, []byte(" "))
	whole, known := answers[string(path)]
	bulk := string(path) == "/bulk"
	var length int64
	var key string
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return err
		}
		name, value, field := bytes.Cut(bytes.TrimRight(line, "\r\n"), []byte(":"))
		if !field {
			break
		}
		switch {
		case len(name) == len("Content-Length") && strings.EqualFold(string(name), "Content-Length"):
			if length, err = strconv.ParseInt(string(bytes.TrimSpace(value)), 10, 64); err != nil {
				return err
			}
		case len(name) == len("Sec-WebSocket-Key") && strings.EqualFold(string(name), "Sec-WebSocket-Key"):
			key = string(bytes.TrimSpace(value))
		}
	}
	if _, err := io.CopyN(io.Discard, in, length); err != nil {
		return err
	}
	switch {
	case key != "":
		return echoMessages(c, in, key)
	case bulk:
		if _, err := fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", int64(1)<<50); err != nil {
			return err
		}
		return pour(c)
	case !known:
		_, err = io.WriteString(c, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
	default:
		_, err = c.Write(whole)
	}
	return err
}

// echoMessages sends back each WebSocket message, which has to fit into one short frame.
func echoMessages(c net.Conn, in *bufio.Reader, key string) error {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11")) //nolint:gosec // G401: RFC 6455 wants it
	_, err := fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Accept: %s\r\n\r\n", base64.StdEncoding.EncodeToString(sum[:]))
	var frame [6 + 125]byte
	for err == nil {
		if _, err = io.ReadFull(in, frame[:6]); err != nil {
			break
		}
		size := int(frame[1] & 0x7f)
		if size > 125 {
			return errors.New("websocket: the service echoes short messages only")
		}
		body := frame[6 : 6+size]
		if _, err = io.ReadFull(in, body); err != nil {
			break
		}
		for i := range body {
			body[i] ^= frame[2+i%4]
		}
		frame[4], frame[5] = frame[0], byte(size)
		_, err = c.Write(frame[4 : 6+size])
	}
	return err
}

// Modes of the TCP service, chosen by the first byte of a connection.
const (
	modeEcho = 'e'
	modePour = 'p' // sends until the client goes
	modeSink = 's' // reads until the client goes
)

func serveTCP(l net.Listener) error {
	return serve(l, func(c net.Conn) {
		block := make([]byte, blockSize)
		if _, err := io.ReadFull(c, block[:1]); err != nil {
			return
		}
		switch block[0] {
		case modePour:
			_ = pour(c)
		case modeSink:
			_, _ = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, block)
		case modeEcho:
			_, _ = io.CopyBuffer(struct{ io.Writer }{c}, struct{ io.Reader }{c}, block)
		}
	})
}

func pour(w io.Writer) error {
	block := bytes.Repeat([]byte("x"), blockSize)
	for {
		if _, err := w.Write(block); err != nil {
			return err
		}
	}
}

// serveRelay is a plain TCP proxy: what a hop costs at the least.
func serveRelay(l net.Listener, to string) error {
	return serve(l, func(c net.Conn) {
		d, err := net.Dial("tcp", to) //nolint:gosec // G704: this program has named the address itself
		if err != nil {
			return
		}
		join(c, d)
	})
}

// join copies both ways, with buffers of its own rather than splice, which is slower on loopback.
func join(a, b io.ReadWriteCloser) {
	done := make(chan struct{})
	one := func(dst, src io.ReadWriteCloser) {
		_, _ = io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, make([]byte, blockSize))
		_ = dst.Close()
		_ = src.Close()
	}
	go func() {
		one(a, b)
		close(done)
	}()
	one(b, a)
	<-done
}

// serve hands each connection to f and closes it after. It returns when the listener ends.
func serve(l net.Listener, f func(net.Conn)) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			f(c)
		}()
	}
}

// messageFrame is a masked WebSocket message of a client. The key is fixed: its randomness protects browsers, not a benchmark.
func messageFrame(body []byte) []byte {
	key := binary.BigEndian.AppendUint32(nil, 0x5eed5eed)
	frame := append([]byte{0x82, 0x80 | byte(len(body))}, key...) //nolint:gosec // G115: callers pass less than 126 bytes
	for i, b := range body {
		frame = append(frame, b^key[i%4])
	}
	return frame
}

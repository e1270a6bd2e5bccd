package websocket

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
)

// conformance is what a raw client sends, all at once and followed by the end of its direction of the TCP connection,
// and what must come of it.
type conformance struct {
	name  string
	send  []byte
	data  string   // that Read returns
	err   error    // that Read ends with; io.EOF if nil
	pongs []string // that the client gets
	code  int      // of the Close frame that the client gets; 1000, that of our Close, if 0
}

var fault = func(code int) error { return &ProtocolError{Code: code} }

func lengthCases() []conformance {
	const largest = DefaultMaxMessage
	cases := []conformance{
		{name: "message beyond the limit", send: raw(0x82, nil, form{length: largest + 1}), err: fault(1009)},
		{name: "length 2^31", send: raw(0x82, nil, form{length: 1 << 31}), err: fault(1009)},
		{name: "length 2^63-1", send: raw(0x82, nil, form{length: 1<<63 - 1}), err: fault(1009)},
		{name: "length 2^63", send: raw(0x82, nil, form{length: 1 << 63}), err: fault(1002)},
		{name: "length 2^64-1", send: raw(0x82, nil, form{length: 1<<64 - 1}), err: fault(1002)},
		{name: "125 in 16 bits", send: raw(0x82, make([]byte, 125), form{bits: 16}), err: fault(1002)},
		{name: "125 in 64 bits", send: raw(0x82, make([]byte, 125), form{bits: 64}), err: fault(1002)},
		{name: "65535 in 64 bits", send: raw(0x82, make([]byte, 65535), form{bits: 64}), err: fault(1002)},
		{name: "ping with its length in 16 bits", send: raw(0x89, []byte("x"), form{bits: 16}), err: fault(1002)},
	}
	for _, n := range []int{1, 124, 125, 126, 127, 128, 65534, 65535, 65536, 65537, largest} {
		data := strings.Repeat("0123456789", n/10+1)[:n]
		cases = append(cases, conformance{name: fmt.Sprintf("%d bytes", n), send: masked(0x82, data), data: data})
	}
	return cases
}

func bitCases() []conformance {
	cases := []conformance{
		{name: "no mask", send: plain(0x82, "x"), err: fault(1002)},
		{name: "ping without mask", send: plain(0x89, "x"), err: fault(1002)},
		{name: "close without mask", send: plain(0x88, ""), err: fault(1002)},
		{name: "good data before bad", send: join(masked(0x82, "good"), plain(0x82, "x")), data: "good", err: fault(1002)},
		{name: "text", send: masked(0x81, "x"), err: fault(1003)},
		{name: "empty text", send: masked(0x81, ""), err: fault(1003)},
		{name: "text that is not UTF-8", send: masked(0x81, "\xff"), err: fault(1003)},
		{name: "fragmented text", send: masked(0x01, "x"), err: fault(1003)},
	}
	for _, first := range []byte{0xc2, 0xa2, 0x92, 0xf2, 0xc9, 0xa9, 0x99, 0xc8, 0xca} {
		cases = append(cases, conformance{name: fmt.Sprintf("reserved bits %#x", first), send: masked(first, "x"), err: fault(1002)})
	}
	for _, op := range []byte{3, 4, 5, 6, 7, 11, 12, 13, 14, 15} {
		cases = append(cases, conformance{name: fmt.Sprintf("opcode %d", op), send: masked(0x80|op, "x"), err: fault(1002)})
	}
	return cases
}

func controlCases() []conformance {
	long := strings.Repeat("p", 125)
	return []conformance{
		{name: "ping", send: masked(0x89, "hello"), pongs: []string{"hello"}},
		{name: "empty ping", send: masked(0x89, ""), pongs: []string{""}},
		{name: "longest ping", send: masked(0x89, long), pongs: []string{long}},
		{name: "ping too long", send: masked(0x89, long+"p"), err: fault(1002)},
		{name: "fragmented ping", send: masked(0x09, "x"), err: fault(1002)},
		{name: "pong nobody asked for", send: join(masked(0x8a, "x"), masked(0x82, "data")), data: "data"},
		{name: "pong too long", send: masked(0x8a, long+"p"), err: fault(1002)},
		{name: "fragmented pong", send: masked(0x0a, ""), err: fault(1002)},
		{
			name: "ping within a message", send: join(masked(0x02, "da"), masked(0x89, "in"), masked(0x80, "ta")),
			data: "data", pongs: []string{"in"},
		},
		{name: "burst of pings", send: bytes.Repeat(masked(0x89, ""), 100), pongs: []string{""}},
		{name: "flood of pings", send: bytes.Repeat(masked(0x89, ""), 300), err: fault(1008)},
		{name: "flood of pongs", send: bytes.Repeat(masked(0x8a, ""), 300), err: fault(1008)},
		{name: "empty message", send: join(masked(0x82, ""), masked(0x82, "x")), data: "x"},
		{name: "flood of empty messages", send: bytes.Repeat(masked(0x82, ""), 300), err: fault(1008)},
	}
}

func fragmentCases() []conformance {
	cut := func(n, size int) []byte {
		piece := strings.Repeat("x", size)
		return join(masked(0x02, piece), bytes.Repeat(masked(0x00, piece), n-2), masked(0x80, piece))
	}
	fragments := func(n int) []byte {
		return join(masked(0x02, "x"), bytes.Repeat(masked(0x00, "x"), n-2), masked(0x80, "x"))
	}
	half := strings.Repeat("h", DefaultMaxMessage/2)
	return []conformance{
		{name: "two fragments", send: join(masked(0x02, "da"), masked(0x80, "ta")), data: "data"},
		{name: "empty fragments around data", send: join(masked(0x02, ""), masked(0x00, "x"), masked(0x80, "")), data: "x"},
		{name: "64 fragments", send: fragments(64), data: strings.Repeat("x", 64)},
		{name: "100 fragments of 1.5 KiB", send: cut(100, 1536), data: strings.Repeat("x", 100*1536)},
		{name: "200 fragments of 1,200 bytes", send: cut(200, 1200), data: strings.Repeat("x", 200*1200)},
		{name: "200 fragments of 500 bytes", send: cut(200, 500), data: strings.Repeat("x", 125*500), err: fault(1008)},
		{name: "65 fragments", send: fragments(65), data: strings.Repeat("x", 64), err: fault(1008)},
		{name: "100,000 empty fragments", send: join(masked(0x02, ""), bytes.Repeat(masked(0x00, ""), 1e5)), err: fault(1008)},
		{name: "largest message in two", send: join(masked(0x02, half), masked(0x80, half)), data: half + half},
		{
			name: "fragments beyond the limit", send: join(masked(0x02, half), masked(0x00, half), masked(0x80, "x")),
			data: half + half, err: fault(1009),
		},
		{name: "continuation of nothing", send: masked(0x00, "x"), err: fault(1002)},
		{name: "last continuation of nothing", send: masked(0x80, "x"), err: fault(1002)},
		{
			name: "continuation after the end", send: join(masked(0x02, "a"), masked(0x80, "b"), masked(0x80, "c")),
			data: "ab", err: fault(1002),
		},
		{name: "message within a message", send: join(masked(0x02, "a"), masked(0x82, "b")), data: "a", err: fault(1002)},
		{name: "text within a message", send: join(masked(0x02, "a"), masked(0x81, "b")), data: "a", err: fault(1002)},
		{
			name: "limits start anew with each message", data: strings.Repeat("x", 192),
			send: join(fragments(64), fragments(64), fragments(64)),
		},
	}
}

func closeCases() []conformance {
	cases := []conformance{
		{name: "close", send: masked(0x88, "")},
		{name: "close after data", send: join(masked(0x82, "x"), masked(0x88, closing(1000, ""))), data: "x"},
		{name: "close with a reason", send: masked(0x88, closing(1000, "done"))},
		{name: "close with the longest reason", send: masked(0x88, closing(1000, strings.Repeat("r", 123)))},
		{name: "going away", send: masked(0x88, closing(1001, ""))},
		{name: "close within a message", send: join(masked(0x02, "x"), masked(0x88, "")), data: "x", err: io.ErrUnexpectedEOF},
		{name: "data after close", send: join(masked(0x88, ""), masked(0x82, "x"))},
		{name: "garbage after close", send: join(masked(0x88, ""), []byte{0xff, 0xff, 0xff})},
		{name: "ping after close", send: join(masked(0x88, ""), masked(0x89, "x"))},
		{name: "close code of one byte", send: masked(0x88, "\x03"), err: fault(1002)},
		{name: "close reason that is not UTF-8", send: masked(0x88, closing(1000, "\xc3\x28")), err: fault(1002)},
		{name: "close too long", send: masked(0x88, closing(1000, strings.Repeat("r", 124))), err: fault(1002)},
		{name: "fragmented close", send: masked(0x08, ""), err: fault(1002)},
	}
	for _, code := range []int{0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535} {
		cases = append(cases, conformance{
			name: fmt.Sprintf("close code %d", code), send: masked(0x88, closing(code, "")), err: fault(1002),
		})
	}
	for _, code := range []int{1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999} {
		cases = append(cases, conformance{
			name: fmt.Sprintf("close code %d", code), send: masked(0x88, closing(code, "why")), err: &CloseError{code, "why"},
		})
	}
	return cases
}

func endCases() []conformance {
	whole := masked(0x82, strings.Repeat("x", 200)) // a header of 8 bytes, of which 4 are the mask
	cut := func(name string, n int, data string) conformance {
		return conformance{name: name, send: whole[:n], data: data, err: io.ErrUnexpectedEOF}
	}
	return []conformance{
		{name: "end before anything"},
		{name: "end between messages", send: masked(0x82, "x"), data: "x"},
		cut("end after the first byte", 1, ""),
		cut("end within the length", 3, ""),
		cut("end within the mask", 6, ""),
		cut("end before the data", 8, ""),
		cut("end within the data", 18, strings.Repeat("x", 10)),
		{name: "end within a ping", send: masked(0x89, "hello")[:8], err: io.ErrUnexpectedEOF},
		{name: "end within a message", send: masked(0x02, "x"), data: "x", err: io.ErrUnexpectedEOF},
	}
}

func TestConformance(t *testing.T) {
	address, accepted := serve(t, AcceptOptions{})
	cases := slices.Concat(lengthCases(), bitCases(), controlCases(), fragmentCases(), closeCases(), endCases())
	for _, size := range []int{1, 4096, 64 << 10} {
		for _, test := range cases {
			if size == 1 && len(test.send) > 1000 {
				continue // too slow
			}
			t.Run(fmt.Sprintf("%s/reads of %d", test.name, size), func(t *testing.T) {
				client, server := rawClient(t, address, accepted)
				checkConformance(t, test, client, server, size)
			})
		}
	}
}

func checkConformance(t *testing.T, test conformance, client *net.TCPConn, server *Conn, size int) {
	t.Helper()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_, _ = client.Write(test.send) // a server at odds with it may close early
		_ = client.CloseWrite()
	}()
	data, err := readAll(server, size)
	if string(data) != test.data {
		t.Errorf("read %d bytes %.40q, want %d bytes %.40q", len(data), data, len(test.data), test.data)
	}
	code := max(test.code, 1000)
	want := test.err
	var broken *ProtocolError
	var closed *CloseError
	switch {
	case want == nil:
		want = io.EOF
	case errors.As(want, &broken):
		code = broken.Code
		got, ok := errors.AsType[*ProtocolError](err)
		if !ok || got.Code != code || got.Reason == "" {
			t.Errorf("read ended with %v, want code %d", err, code)
		}
		want = nil
	case errors.As(want, &closed):
		if got, ok := errors.AsType[*CloseError](err); !ok || *got != *closed {
			t.Errorf("read ended with %v, want %v", err, closed)
		}
		want = nil
	}
	if want != nil && !errors.Is(err, want) {
		t.Errorf("read ended with %v, want %v", err, want)
	}
	if _, again := server.Read(make([]byte, 1)); !errors.Is(again, err) {
		t.Errorf("reading again gave %v after %v", again, err)
	}
	_ = server.Close()
	<-sent
	pongs, got := answers(t, client)
	if got != code {
		t.Errorf("client got close code %d, want %d", got, code)
	}
	// Of several pings in a row only the last must be answered.
	if last := len(pongs) - 1; len(test.pongs) > 0 && (last < 0 || pongs[last] != test.pongs[len(test.pongs)-1]) {
		t.Errorf("client got pongs %q, want %q", pongs, test.pongs)
	}
}

// readAll reads with slices of size bytes until an error.
func readAll(c *Conn, size int) ([]byte, error) {
	var data []byte
	for p := make([]byte, size); ; {
		n, err := c.Read(p)
		data = append(data, p[:n]...)
		if err != nil {
			return data, err
		}
	}
}

// answers reads pongs up to a Close frame and returns its code.
func answers(t *testing.T, client net.Conn) (pongs []string, code int) {
	t.Helper()
	for {
		f, err := readRaw(client)
		switch {
		case err != nil:
			t.Fatalf("no close frame: %v", err)
		case f.masked:
			t.Fatal("server masks")
		case f.first == 0x8a:
			pongs = append(pongs, f.payload)
		case f.first == 0x88:
			if len(f.payload) < 2 {
				t.Fatalf("close frame with payload %q", f.payload)
			}
			return pongs, int(binary.BigEndian.Uint16([]byte(f.payload)))
		default:
			t.Fatalf("unexpected frame %#x", f.first)
		}
	}
}

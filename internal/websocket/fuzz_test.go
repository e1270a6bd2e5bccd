package websocket

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"
)

// scripted is a connection whose peer has sent all it ever will.
type scripted struct {
	net.Conn
	in    io.Reader
	wrote int
}

func (s *scripted) Read(p []byte) (int, error) { return s.in.Read(p) }

func (s *scripted) Write(p []byte) (int, error) {
	s.wrote += len(p)
	return len(p), nil
}

func (s *scripted) SetReadDeadline(time.Time) error { return nil }

// decoded is everything that comes of a peer's bytes.
type decoded struct {
	data     []byte
	controls []string
	fault    error
	border   bool
}

// decodeIn feeds b in pieces, whose lengths are the bytes of cuts over and over; all at once if there are none.
func decodeIn(b, cuts []byte, fromClient bool) decoded {
	var got decoded
	empties := 0
	d := &decoder{masked: fromClient, limit: 1000}
	d.control = func(op byte, payload []byte) error {
		got.controls = append(got.controls, string(op)+string(payload))
		if op == opClose {
			return closeReason(payload)
		}
		return nil
	}
	d.spend = func() error {
		if empties++; empties > 3 {
			return &ProtocolError{closePolicy, "empty"}
		}
		return nil
	}
	b = slices.Clone(b)
	for i := 0; len(b) > 0 && got.fault == nil; i++ {
		k := len(b)
		if len(cuts) > 0 {
			k = min(k, 1+int(cuts[i%len(cuts)]))
		}
		n, err := d.decode(b[:k])
		if n < 0 || n > k {
			panic("more data than bytes")
		}
		got.data = append(got.data, b[:n]...)
		got.fault = err
		b = b[k:]
	}
	got.border = got.fault != nil || d.border()
	return got
}

func FuzzDecoder(f *testing.F) {
	for _, c := range slices.Concat(lengthCases()[:9], bitCases(), controlCases()[:8], fragmentCases()[:4], closeCases(), endCases()) {
		f.Add(c.send, []byte{0}, true)
		f.Add(c.send, []byte{2, 0, 6}, false)
	}
	f.Add(join(plain(0x82, "data"), plain(0x89, "ping"), plain(0x02, "a"), plain(0x80, "b")), []byte{1, 4}, false)
	f.Fuzz(func(t *testing.T, b, cuts []byte, fromClient bool) {
		whole, pieces := decodeIn(b, nil, fromClient), decodeIn(b, cuts, fromClient)
		if !bytes.Equal(whole.data, pieces.data) || !slices.Equal(whole.controls, pieces.controls) || whole.border != pieces.border {
			t.Fatalf("as a whole %+v, in pieces %+v", whole, pieces)
		}
		if (whole.fault == nil) != (pieces.fault == nil) || whole.fault != nil && whole.fault.Error() != pieces.fault.Error() {
			t.Fatalf("as a whole %v, in pieces %v", whole.fault, pieces.fault)
		}
		if len(whole.data) > len(b) {
			t.Fatalf("%d bytes of data in %d", len(whole.data), len(b))
		}
	})
}

func FuzzConn(f *testing.F) {
	for _, c := range slices.Concat(controlCases()[:8], fragmentCases()[:4], closeCases()) {
		f.Add(c.send, uint16(1))
		f.Add(c.send, uint16(5000))
	}
	f.Fuzz(func(t *testing.T, b []byte, size uint16) {
		want := decodeReference(b)
		s := &scripted{in: bytes.NewReader(b)}
		c := newConn(s, false, 0)
		data, err := readAll(c, 1+int(size))
		c.cmu.Lock()
		c.closing = true
		c.cmu.Unlock()
		c.background.Wait()
		if err == nil || !bytes.HasPrefix(want, data) && !bytes.HasPrefix(data, want) {
			t.Fatalf("read %q, %v; a plain decoder finds %q", data, err, want)
		}
		if errors.Is(err, io.EOF) && !bytes.Equal(data, want) {
			t.Fatalf("clean end after %q, a plain decoder finds %q", data, want)
		}
		if s.wrote > 10*len(b)+1024 {
			t.Fatalf("%d bytes were answered with %d", len(b), s.wrote)
		}
	})
}

// decodeReference returns the data in frames of a client, read in the plainest way, up to the first that is not data or
// a ping or pong.
func decodeReference(b []byte) []byte {
	var data []byte
	for r := bytes.NewReader(b); ; {
		f, err := readRawLimited(r)
		if err != nil {
			return data
		}
		switch f.first & 0x0f {
		case opBinary, opContinuation:
			data = append(data, f.payload...)
		case opPing, opPong:
		default:
			return data
		}
	}
}

func readRawLimited(r *bytes.Reader) (received, error) {
	head := make([]byte, 10)
	n, _ := r.Read(head)
	_, _ = r.Seek(-int64(n), io.SeekCurrent)
	if n == 10 && head[1]&0x7f == 127 && (head[2]|head[3]|head[4]|head[5]) != 0 {
		return received{}, io.ErrUnexpectedEOF // longer than the input can be
	}
	if n == 10 && head[1]&0x7f == 127 && int64(head[6])<<24|int64(head[7])<<16 > int64(r.Len()) {
		return received{}, io.ErrUnexpectedEOF
	}
	return readRaw(r)
}

func FuzzAccept(f *testing.F) {
	f.Add([]byte(goodHead))
	f.Add([]byte("GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket, h2c\r\nConnection: close\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(b)))
		if err != nil {
			return
		}
		subprotocol, refused := negotiate(r, []string{"a", "b"})
		if refused != nil {
			w := httptest.NewRecorder()
			refused.write(w)
			if w.Code/100 != 4 {
				t.Fatalf("status %d", w.Code)
			}
			return
		}
		key, err := base64.StdEncoding.DecodeString(r.Header.Get("Sec-WebSocket-Key"))
		if r.Method != http.MethodGet || err != nil || len(key) != 16 || subprotocol != "a" && subprotocol != "b" {
			t.Fatalf("accepted %q", b)
		}
	})
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + rawAccept + "\r\n\r\n\x82\x01x"))
	f.Add([]byte("HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\n{}"))
	f.Add([]byte("HTTP/1.1 503 Busy\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		conn := &scripted{in: bytes.NewReader(b)}
		a, err := readAnswer(conn)
		if err != nil {
			return
		}
		if a.status != http.StatusSwitchingProtocols {
			if text := a.text(conn); len(text) > maxErrorBody {
				t.Fatalf("%d bytes of body", len(text))
			}
			return
		}
		if verify(a.header, rawKey, nil) == nil && a.header.Get("Sec-WebSocket-Accept") != rawAccept {
			t.Fatalf("accepted %q", b)
		}
	})
}

func FuzzXOR(f *testing.F) {
	f.Add([]byte("0123456789012345678901234567890123456789"), uint32(0x04030201), uint8(5), uint8(3))
	f.Fuzz(func(t *testing.T, src []byte, key uint32, gap, cut uint8) {
		want := make([]byte, len(src))
		for i := range src {
			want[i] = src[i] ^ byte(key>>(8*(i%4)))
		}
		// In place, gap bytes towards the front, in two steps.
		room := append(make([]byte, gap), src...)
		k := min(int(cut), len(src))
		next := xor(room[:k], room[gap:int(gap)+k], key)
		last := xor(room[k:len(src)], room[int(gap)+k:], next)
		if !bytes.Equal(room[:len(src)], want) {
			t.Fatalf("got %x, want %x", room[:len(src)], want)
		}
		if xor(nil, nil, last) != last {
			t.Fatal("nothing moved the key")
		}
	})
}

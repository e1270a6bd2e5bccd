package h2

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/iotest"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// bytesOf is a service that says the same whatever it is told.
type bytesOf struct{ io.Reader }

func (bytesOf) Write(p []byte) (int, error) { return len(p), nil }

// answerTo returns what a client makes of bytes of a service.
func answerTo(t *testing.T, r io.Reader) (string, error) {
	c := new(Pool).New(bytesOf{r})
	ask(t, c, Limits{Header: 4 << 10, Fields: 20})
	got, err := read(c)
	if c.recv < 0 || len(c.out) > 3*maxWaiting || cap(c.section.fields) > 40 {
		t.Errorf("more than the limits allow: %d, %d, %d", c.recv, len(c.out), cap(c.section.fields))
	}
	c.End()
	_ = c.Flush()
	return got, err
}

// Whatever a service sends: it costs no more than the limits allow, it means the same in whatever pieces it comes, and a good
// answer has one status and one end.
func FuzzAnswer(f *testing.F) {
	var b, block bytes.Buffer
	fr := http2.NewFramer(&b, nil)
	enc := hpack.NewEncoder(&block)
	headers := func(end bool, pairs ...string) {
		block.Reset()
		for i := 0; i < len(pairs); i += 2 {
			_ = enc.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]})
		}
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: end})
	}
	_ = fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
	_ = fr.WritePing(false, [8]byte{})
	headers(false, ":status", "103", "link", "x")
	headers(false, ":status", "200", "content-type", "application/grpc", "content-length", "4")
	_ = fr.WriteDataPadded(1, false, []byte("body"), make([]byte, 3))
	_ = fr.WriteWindowUpdate(1, 100)
	headers(true, "grpc-status", "0", "grpc-message", "fine")
	_ = fr.WriteRSTStream(1, http2.ErrCodeNo)
	_ = fr.WriteGoAway(1, http2.ErrCodeNo, []byte("bye"))
	f.Add(b.Bytes())
	f.Add(b.Bytes()[:60])
	f.Add([]byte("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := answerTo(t, bytes.NewReader(data))
		again, err2 := answerTo(t, iotest.OneByteReader(bytes.NewReader(data)))
		if got != again || fmt.Sprint(err) != fmt.Sprint(err2) {
			t.Errorf("in one piece %q, %v; in bytes %q, %v", got, err, again, err2)
		}
		if err != nil && !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrUnprocessed) && !errors.Is(err, io.ErrUnexpectedEOF) &&
			!errors.As(err, new(ResetError)) {
			t.Errorf("error %v", err)
		}
	})
}

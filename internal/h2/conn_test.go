package h2

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

var small = Limits{Header: 16 << 10, Fields: 100}

// service is the other end, frame by frame.
type service struct {
	*http2.Framer
	t    *testing.T
	conn net.Conn
	enc  *hpack.Encoder
	buf  bytes.Buffer
}

// pair returns both ends of a connection on loopback. Deadlines keep a test that hangs from hanging for ever.
func pair(t *testing.T) (*Conn, net.Conn, *service) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	near, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err := l.Accept()
	if err = errors.Join(err, l.Close()); err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{near, far} {
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		t.Cleanup(func() { _ = c.Close() })
	}
	s := &service{Framer: http2.NewFramer(far, far), t: t, conn: far}
	s.enc = hpack.NewEncoder(&s.buf)
	s.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	s.AllowIllegalWrites = true
	return new(Pool).New(near), near, s
}

func (s *service) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Error(err)
	}
}

func (s *service) greet(settings ...http2.Setting) {
	s.t.Helper()
	preface := make([]byte, len(http2.ClientPreface))
	_, err := io.ReadFull(s.conn, preface)
	s.must(err)
	if string(preface) != http2.ClientPreface {
		s.t.Errorf("preface %q", preface)
	}
	s.must(s.WriteSettings(settings...))
}

func (s *service) block(pairs ...string) []byte {
	s.buf.Reset()
	for i := 0; i < len(pairs); i += 2 {
		s.must(s.enc.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]}))
	}
	return s.buf.Bytes()
}

func (s *service) headers(id uint32, end bool, pairs ...string) {
	s.must(s.WriteHeaders(http2.HeadersFrameParam{
		StreamID: id, BlockFragment: s.block(pairs...), EndHeaders: true, EndStream: end,
	}))
}

// await reads frames until one that ok likes comes.
func (s *service) await(ok func(http2.Frame) bool) http2.Frame {
	for {
		f, err := s.ReadFrame()
		if err != nil {
			s.t.Errorf("the service waits in vain: %v", err)
			return nil
		}
		if ok(f) {
			return f
		}
	}
}

func isEnd(f http2.Frame) bool {
	switch f := f.(type) {
	case *http2.MetaHeadersFrame:
		return f.StreamEnded()
	case *http2.DataFrame:
		return f.StreamEnded()
	}
	return false
}

// ask sends a request without a body.
func ask(t *testing.T, c *Conn, l Limits) {
	t.Helper()
	if err := c.Begin(l); err != nil {
		t.Fatal(err)
	}
	c.Open(AppendField(AppendRequest(nil, "POST", "e.test", "/"), "TE", "trailers"), true)
}

// read returns the answer in words.
func read(c *Conn) (string, error) {
	var b strings.Builder
	for {
		e, err := c.Next(func() {})
		if err != nil {
			return strings.TrimSpace(b.String()), err
		}
		switch e.Kind {
		case Informational, Head:
			fmt.Fprintf(&b, "%d ", e.Status)
		case Trailer:
			b.WriteString("trailer ")
		case Data:
			if len(e.Data) > 40 {
				fmt.Fprintf(&b, "%dB ", len(e.Data))
			} else {
				fmt.Fprintf(&b, "%q ", e.Data)
			}
		}
		for _, f := range e.Fields {
			fmt.Fprintf(&b, "%s=%s ", f.Name, f.Value)
		}
		if e.End {
			return b.String() + "end", nil
		}
	}
}

// finish ends an exchange, whose service answers at once, and reports whether another one can follow.
func finish(t *testing.T, c *Conn) bool {
	t.Helper()
	ok := c.End()
	return c.Flush() == nil && ok
}

func TestAnswers(t *testing.T) {
	long := strings.Repeat("x", 100<<10)
	for name, c := range map[string]struct {
		answer func(s *service)
		want   string // with "!": broken after that
		err    error
	}{
		"head alone": {func(s *service) { s.headers(1, true, ":status", "200", "grpc-status", "12") }, "200 grpc-status=12 end", nil},
		"head, body, trailers": {func(s *service) {
			s.headers(1, false, ":status", "200")
			s.must(s.WriteData(1, false, []byte("body")))
			s.headers(1, true, "grpc-status", "0")
		}, `200 "body" trailer grpc-status=0 end`, nil},
		"head, trailers": {func(s *service) {
			s.headers(1, false, ":status", "200")
			s.headers(1, true, "grpc-status", "5")
		}, "200 trailer grpc-status=5 end", nil},
		"head, empty end": {func(s *service) {
			s.headers(1, false, ":status", "200")
			s.must(s.WriteData(1, true, nil))
		}, `200 "" end`, nil},
		"ends, and resets with NO_ERROR": {func(s *service) {
			s.headers(1, true, ":status", "200")
			s.must(s.WriteRSTStream(1, http2.ErrCodeNo))
		}, "200 end", nil},
		"informational": {func(s *service) {
			s.headers(1, false, ":status", "103", "link", "x")
			s.headers(1, true, ":status", "204")
		}, "103 link=x 204 end", nil},
		"padding": {func(s *service) {
			s.headers(1, false, ":status", "200", "content-length", "2")
			s.must(s.WriteDataPadded(1, true, []byte("ab"), make([]byte, 50)))
		}, `200 content-length=2 "ab" end`, nil},
		"head in pieces": {func(s *service) {
			b := bytes.Clone(s.block(":status", "200", "a", "b", "c", "d"))
			s.must(s.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: b[:3], EndStream: true}))
			s.must(s.WriteContinuation(1, false, b[3:4]))
			s.must(s.WriteContinuation(1, true, b[4:]))
		}, "200 a=b c=d end", nil},
		"between other frames": {func(s *service) {
			s.must(s.WritePing(false, [8]byte{1}))
			s.must(s.WriteWindowUpdate(0, 5))
			s.must(s.WriteRawFrame(0x77, 0, 0, []byte("whatever")))
			s.headers(1, true, ":status", "200")
		}, "200 end", nil},

		"reset with NO_ERROR in the middle": {func(s *service) {
			s.headers(1, false, ":status", "200")
			s.must(s.WriteRSTStream(1, http2.ErrCodeNo))
		}, "200 !", ResetError{http2.ErrCodeNo}},
		"reset after the body": {func(s *service) {
			s.headers(1, false, ":status", "200")
			s.must(s.WriteData(1, false, []byte("body")))
			s.must(s.WriteRSTStream(1, http2.ErrCodeCancel))
		}, `200 "body" !`, ResetError{http2.ErrCodeCancel}},
		"refused":          {func(s *service) { s.must(s.WriteRSTStream(1, http2.ErrCodeRefusedStream)) }, "!", ErrUnprocessed},
		"GOAWAY before it": {func(s *service) { s.must(s.WriteGoAway(0, http2.ErrCodeNo, nil)) }, "!", ErrUnprocessed},
		"GOAWAY after it": {func(s *service) {
			s.must(s.WriteGoAway(1, http2.ErrCodeNo, nil))
			s.headers(1, true, ":status", "200")
		}, "200 end", nil},
		"end of the connection in the body": {func(s *service) {
			s.headers(1, false, ":status", "200")
			s.must(s.conn.(*net.TCPConn).CloseWrite())
		}, "200 !", io.ErrUnexpectedEOF},
		"end of the connection in a frame": {func(s *service) {
			s.headers(1, false, ":status", "200")
			_, err := s.conn.Write([]byte{0, 0, 9, 0, 0, 0, 0, 0, 1, 'x'})
			s.must(errors.Join(err, s.conn.(*net.TCPConn).CloseWrite()))
		}, "200 !", io.ErrUnexpectedEOF},

		"body before the head":        {func(s *service) { s.must(s.WriteData(1, true, []byte("x"))) }, "!", ErrMalformed},
		"trailers that are not alone": {func(s *service) { s.headers(1, false, ":status", "200"); s.headers(1, false, "a", "b") }, "200 !", ErrMalformed},
		"status in trailers":          {func(s *service) { s.headers(1, false, ":status", "200"); s.headers(1, true, ":status", "200") }, "200 !", ErrMalformed},
		"no status":                   {func(s *service) { s.headers(1, true, "a", "b") }, "!", ErrMalformed},
		"two statuses":                {func(s *service) { s.headers(1, true, ":status", "200", ":status", "200") }, "!", ErrMalformed},
		"status after a field":        {func(s *service) { s.headers(1, true, "a", "b", ":status", "200") }, "!", ErrMalformed},
		"status 099":                  {func(s *service) { s.headers(1, true, ":status", "099") }, "!", ErrMalformed},
		"status 20x":                  {func(s *service) { s.headers(1, true, ":status", "20x") }, "!", ErrMalformed},
		"status 101":                  {func(s *service) { s.headers(1, false, ":status", "101") }, "!", ErrMalformed},
		"informational end":           {func(s *service) { s.headers(1, true, ":status", "103") }, "!", ErrMalformed},
		"other pseudo field":          {func(s *service) { s.headers(1, true, ":status", "200", ":path", "/") }, "!", ErrMalformed},
		"upper case":                  {func(s *service) { s.headers(1, true, ":status", "200", "Grpc-Status", "0") }, "!", ErrMalformed},
		"line break":                  {func(s *service) { s.headers(1, true, ":status", "200", "a", "b\r\nc: d") }, "!", ErrMalformed},
		"connection-specific":         {func(s *service) { s.headers(1, true, ":status", "200", "connection", "close") }, "!", ErrMalformed},
		"transfer-encoding":           {func(s *service) { s.headers(1, true, ":status", "200", "transfer-encoding", "chunked") }, "!", ErrMalformed},
		"two lengths":                 {func(s *service) { s.headers(1, true, ":status", "200", "content-length", "0", "content-length", "0") }, "!", ErrMalformed},
		"a length of -1":              {func(s *service) { s.headers(1, true, ":status", "200", "content-length", "-1") }, "!", ErrMalformed},
		"shorter than announced, alone": {func(s *service) {
			s.headers(1, true, ":status", "200", "content-length", "1")
		}, "!", ErrMalformed},
		"shorter than announced": {func(s *service) {
			s.headers(1, false, ":status", "200", "content-length", "3")
			s.must(s.WriteData(1, true, []byte("ab")))
		}, "200 content-length=3 !", ErrMalformed},
		"shorter than announced, with trailers": {func(s *service) {
			s.headers(1, false, ":status", "200", "content-length", "3")
			s.headers(1, true, "a", "b")
		}, "200 content-length=3 !", ErrMalformed},
		"longer than announced": {func(s *service) {
			s.headers(1, false, ":status", "200", "content-length", "1")
			s.must(s.WriteData(1, false, []byte("ab")))
		}, "200 content-length=1 !", ErrMalformed},
		"body with 204": {func(s *service) {
			s.headers(1, false, ":status", "204")
			s.must(s.WriteData(1, true, []byte("ab")))
		}, "204 !", ErrMalformed},
		"on a stream that is not open": {func(s *service) { s.headers(3, true, ":status", "200") }, "!", ErrMalformed},
		"on a stream of its own":       {func(s *service) { s.headers(2, true, ":status", "200") }, "!", ErrMalformed},
		"push": {func(s *service) {
			s.must(s.WritePushPromise(http2.PushPromiseParam{StreamID: 1, PromiseID: 2, BlockFragment: s.block(":path", "/"), EndHeaders: true}))
		}, "!", ErrMalformed},
		"no HPACK": {func(s *service) {
			s.must(s.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0xff, 0xff, 0xff}, EndHeaders: true}))
		}, "!", ErrMalformed},
		"header in between": {func(s *service) {
			s.must(s.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: s.block(":status", "200")}))
			s.must(s.WritePing(false, [8]byte{}))
		}, "!", ErrMalformed},
		"too large a header": {func(s *service) { s.headers(1, true, ":status", "200", "a", long[:15<<10], "b", long[:1000]) }, "!", ErrMalformed},
		"too many fields": {func(s *service) {
			pairs := []string{":status", "200"}
			for range 101 {
				pairs = append(pairs, "a", "b")
			}
			s.headers(1, true, pairs...)
		}, "!", ErrMalformed},
		"too large a frame": {func(s *service) {
			s.headers(1, false, ":status", "200")
			_ = s.WriteData(1, false, []byte(long[:maxFrame+1]))
		}, "200 !", ErrMalformed},
		"window beyond all bounds": {func(s *service) {
			s.must(s.WriteWindowUpdate(1, 1<<31-1))
		}, "!", ErrMalformed},
		"window of nothing": {func(s *service) { s.must(s.WriteWindowUpdate(1, 0)) }, "!", ErrMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			conn, near, s := pair(t)
			done := make(chan struct{})
			go func() {
				defer close(done)
				s.greet()
				if s.await(isEnd) != nil {
					c.answer(s)
				}
			}()
			ask(t, conn, small)
			got, err := read(conn)
			if want, broken := strings.CutSuffix(c.want, "!"); got != strings.TrimSpace(want) || (err != nil) != broken || !errors.Is(err, c.err) {
				t.Errorf("%s, %v: want %s, %v", got, err, c.want, c.err)
			}
			<-done
			finish(t, conn)
			_ = near.Close()
		})
	}
}

// One exchange follows the other, also after one that was cancelled, whose answer still comes.
func TestExchangesFollowEachOther(t *testing.T) {
	c, near, s := pair(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.greet()
		for id := uint32(1); id < 20; id += 2 {
			if s.await(isEnd) == nil {
				return
			}
			if id == 9 {
				s.headers(id, false, ":status", "200", "x", "learnt now")
				f, _ := s.await(func(f http2.Frame) bool { return f.Header().Type == http2.FrameRSTStream }).(*http2.RSTStreamFrame)
				if f == nil || f.ErrCode != http2.ErrCodeCancel {
					t.Errorf("cancelled by %v", f)
				}
				s.must(s.WriteData(id, false, make([]byte, 10_000)))
				s.headers(id, true, "y", "too late")
				continue
			}
			s.headers(id, true, ":status", "200", "x", "learnt now", "y", "too late")
		}
	}()
	for id := 1; id < 20; id += 2 {
		ask(t, c, small)
		if id == 9 {
			if e, err := c.Next(func() {}); err != nil || e.Kind != Head {
				t.Fatal(e, err)
			}
			_ = near.SetReadDeadline(time.Unix(1, 0))
			if _, err := c.Next(func() {}); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal(err)
			}
			_ = near.SetReadDeadline(time.Now().Add(time.Minute))
		} else if got, err := read(c); err != nil || got != "200 x=learnt now y=too late end" {
			t.Fatal(id, got, err)
		}
		if !finish(t, c) {
			t.Fatalf("the connection can't be used after exchange %d", id)
		}
	}
	<-done
}

package agent

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/tunnel"
)

// fields is a block of headers that leaves the table of the other side alone.
func fields(pairs ...string) []byte {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for i := 0; i < len(pairs); i += 2 {
		_ = e.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1], Sensitive: true})
	}
	return b.Bytes()
}

// serveFrames starts a service that answers each HEADERS frame by what the path asks for.
func serveFrames(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go answerFrames(conn)
		}
	}()
	return "http://" + l.Addr().String()
}

func answerFrames(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	if _, err := io.ReadFull(conn, make([]byte, len(http2.ClientPreface))); err != nil {
		return
	}
	fr := http2.NewFramer(conn, conn)
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	_ = fr.WriteSettings()
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			return
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				_ = fr.WriteSettingsAck()
			}
		case *http2.MetaHeadersFrame:
			headers := func(end bool, pairs ...string) {
				_ = fr.WriteHeaders(http2.HeadersFrameParam{
					StreamID: f.StreamID, BlockFragment: fields(pairs...), EndHeaders: true, EndStream: end,
				})
			}
			switch path := f.PseudoValue("path"); path {
			case "/at-once":
				headers(true, ":status", "200", "content-type", "application/grpc", "grpc-status", "12")
			case "/end-later", "/trailers-later":
				headers(false, ":status", "200", "content-type", "application/grpc", "content-length", "0")
				// Long enough for whoever would send the head by itself.
				<-time.After(100 * time.Millisecond)
				if path == "/end-later" {
					_ = fr.WriteData(f.StreamID, true, nil)
				} else {
					headers(true, "grpc-status", "12")
				}
			}
		}
	}
}

// framesOf returns the frames of the answer to a request.
func framesOf(t *testing.T, fr *http2.Framer, stream uint32, path string) (frames []string) {
	t.Helper()
	err := fr.WriteHeaders(http2.HeadersFrameParam{
		StreamID: stream, EndHeaders: true, EndStream: true, BlockFragment: fields(":method", "POST", ":scheme", "http",
			":authority", "e", ":path", path, "content-type", "application/grpc", "te", "trailers"),
	})
	for err == nil {
		var f http2.Frame
		f, err = fr.ReadFrame()
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				err = fr.WriteSettingsAck()
			}
		case *http2.MetaHeadersFrame:
			frame := "HEADERS"
			for _, h := range f.RegularFields() {
				if h.Name == "grpc-status" {
					frame += " " + h.Value
				}
			}
			if frames = append(frames, frame); f.StreamEnded() {
				return append(frames, "END")
			}
		case *http2.DataFrame:
			if frames = append(frames, fmt.Sprint("DATA ", f.Length)); f.StreamEnded() {
				return append(frames, "END")
			}
		}
	}
	t.Fatalf("%s: after %v: %v", path, frames, err)
	return nil
}

// The answer to a failed call of gRPC is a single HEADERS frame that ends the stream. Followed by an empty DATA frame, the
// same bytes are an answer without trailers.
func TestAnswerWithoutABodyIsOneFrame(t *testing.T) {
	h := start(t, nil, func() (l config.Listener) {
		l = listenerFor("http", "e", serveFrames(t))
		l.AccessLog = true // so that requests are read
		return l
	}())
	conn := h.open(tunnel.Header{Endpoint: "e", Protocol: tunnel.ProtocolH2})
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	fr := http2.NewFramer(conn, conn)
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if err := fr.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	stream := uint32(1)
	for _, c := range []struct {
		path, want string
		times      int
	}{
		{"/end-later", "[HEADERS END]", 2},
		{"/trailers-later", "[HEADERS HEADERS 12 END]", 2},
		{"/at-once", "[HEADERS 12 END]", 500},
	} {
		for range c.times {
			if got := fmt.Sprint(framesOf(t, fr, stream, c.path)); got != c.want {
				t.Fatalf("%s is answered by %s: want %s", c.path, got, c.want)
			}
			stream += 2
		}
	}
}

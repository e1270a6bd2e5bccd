package proxy

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/pikoproxy/piko/internal/fault"
	"github.com/pikoproxy/piko/internal/limit"
)

// h2frames is one end of a connection of HTTP/2, frame by frame.
type h2frames struct {
	*http2.Framer
	block bytes.Buffer
	enc   *hpack.Encoder
}

func newH2frames(w io.Writer, r io.Reader) *h2frames {
	f := &h2frames{Framer: http2.NewFramer(w, r)}
	f.enc = hpack.NewEncoder(&f.block)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	return f
}

// headers writes a header section. Errors show by what does not come.
func (f *h2frames) headers(id uint32, end bool, pairs ...string) {
	f.block.Reset()
	for i := 0; i < len(pairs); i += 2 {
		_ = f.enc.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]})
	}
	_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: f.block.Bytes(), EndHeaders: true, EndStream: end})
}

func endsStream(f http2.Frame) bool {
	switch f := f.(type) {
	case *http2.MetaHeadersFrame:
		return f.StreamEnded()
	case *http2.DataFrame:
		return f.StreamEnded()
	}
	return false
}

// serveFrames offers a service as ep1 that is a function of its connection, after the preface and with each head of a request.
func (f *fixture) serveFrames(answer func(s *h2frames, head *http2.MetaHeadersFrame)) *tcpSession {
	return f.serveRaw(func(c net.Conn, br *bufio.Reader) {
		if _, err := br.Discard(len(http2.ClientPreface)); err != nil {
			return
		}
		s := newH2frames(c, br)
		_ = s.WriteSettings()
		for {
			frame, err := s.ReadFrame()
			if err != nil {
				return
			}
			if head, ok := frame.(*http2.MetaHeadersFrame); ok {
				answer(s, head)
			}
		}
	})
}

// call sends a call and returns the frames of its answer in words.
func (f *fixture) call(path string, body []byte, ended bool) string {
	f.t.Helper()
	conn, br := f.dial()
	defer conn.Close()
	_, _ = io.WriteString(conn, http2.ClientPreface)
	c := newH2frames(conn, br)
	_ = c.WriteSettings()
	c.headers(1, false, ":method", "POST", ":scheme", "http", ":authority", "ep1.piko.test", ":path", path,
		"content-type", "application/grpc", "te", "trailers")
	_ = c.WriteData(1, ended, body)
	var words []string
	for {
		frame, err := c.ReadFrame()
		if err != nil {
			return strings.Join(append(words, err.Error()), " ")
		}
		switch frame := frame.(type) {
		case *http2.MetaHeadersFrame:
			words = append(words, "headers")
			for _, h := range frame.Fields {
				if h.Name == ":status" || strings.HasPrefix(h.Name, "grpc-") || h.Name == strings.ToLower(fault.Header) {
					words = append(words, h.Value)
				}
			}
		case *http2.DataFrame:
			words = append(words, fmt.Sprintf("data %q", frame.Data()))
		case *http2.RSTStreamFrame:
			return strings.Join(append(words, "reset"), " ")
		}
		if endsStream(frame) {
			return strings.Join(append(words, "end"), " ")
		}
	}
}

// An answer reaches the client with its trailers where the service has put them, in whatever frames and at whatever times it
// comes; and one that breaks off never looks complete.
func TestGRPCAnswersFrameByFrame(t *testing.T) {
	moment := func() { <-time.After(20 * time.Millisecond) }
	message := []byte{0, 0, 0, 0, 1, 'x'}
	read := func(s *h2frames) {
		for f, err := s.ReadFrame(); err == nil && !endsStream(f); f, err = s.ReadFrame() {
		}
	}
	for name, c := range map[string]struct {
		unended bool // the client has not ended its request
		answer  func(s *h2frames, id uint32)
		want    string
	}{
		"only trailers": {false, func(s *h2frames, id uint32) {
			read(s)
			s.headers(id, true, ":status", "200", "grpc-status", "12")
		}, "headers 200 12 end"},
		"only trailers, before the request has ended": {true, func(s *h2frames, id uint32) {
			s.headers(id, true, ":status", "200", "grpc-status", "12")
			_ = s.WriteRSTStream(id, http2.ErrCodeNo)
		}, "headers 200 12 end"},
		"only trailers, and a reset later": {true, func(s *h2frames, id uint32) {
			s.headers(id, true, ":status", "200", "grpc-status", "12")
			moment()
			_ = s.WriteRSTStream(id, http2.ErrCodeNo)
		}, "headers 200 12 end"},
		"head and trailers": {false, func(s *h2frames, id uint32) {
			s.headers(id, false, ":status", "200")
			s.headers(id, true, "grpc-status", "12")
		}, "headers 200 headers 12 end"},
		"head, and trailers later": {false, func(s *h2frames, id uint32) {
			s.headers(id, false, ":status", "200")
			moment()
			s.headers(id, true, "grpc-status", "12")
		}, "headers 200 headers 12 end"},
		"head and trailers, before the request has ended": {true, func(s *h2frames, id uint32) {
			s.headers(id, false, ":status", "200")
			moment()
			s.headers(id, true, "grpc-status", "12")
			_ = s.WriteRSTStream(id, http2.ErrCodeNo)
		}, "headers 200 headers 12 end"},
		"head of no length and trailers": {false, func(s *h2frames, id uint32) {
			s.headers(id, false, ":status", "200", "content-length", "0")
			moment()
			s.headers(id, true, "grpc-status", "12")
		}, "headers 200 headers 12 end"},
		"message and trailers at once": {false, func(s *h2frames, id uint32) {
			s.headers(id, false, ":status", "200")
			_ = s.WriteData(id, false, []byte("m"))
			s.headers(id, true, "grpc-status", "0")
		}, `headers 200 data "m" headers 0 end`},
		"message after a while, and trailers after another": {false, func(s *h2frames, id uint32) {
			s.headers(id, false, ":status", "200")
			moment()
			_ = s.WriteData(id, false, []byte("m"))
			moment()
			s.headers(id, true, "grpc-status", "0")
		}, `headers 200 data "m" headers 0 end`},
		"reset in place of trailers": {false, func(s *h2frames, id uint32) {
			s.headers(id, false, ":status", "200")
			_ = s.WriteData(id, false, []byte("m"))
			_ = s.WriteRSTStream(id, http2.ErrCodeNo)
		}, `headers 200 data "m" reset`},
		"reset behind the head": {false, func(s *h2frames, id uint32) {
			s.headers(id, false, ":status", "200")
			moment()
			_ = s.WriteRSTStream(id, http2.ErrCodeCancel)
		}, "headers 200 reset"},
		"reset in place of an answer": {false, func(s *h2frames, id uint32) {
			_ = s.WriteRSTStream(id, http2.ErrCodeInternal)
		}, "headers 502 " + fault.UpstreamBroke.Code},
		"no answer": {false, func(s *h2frames, id uint32) {
			s.headers(id, true, ":status", "200", "connection", "close")
		}, "headers 502 " + fault.InvalidResponse.Code},
		"less than announced": {false, func(s *h2frames, id uint32) {
			s.headers(id, false, ":status", "200", "content-length", "2")
			_ = s.WriteData(id, true, []byte("m"))
		}, "headers 200 reset"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, nil)
			f.serveFrames(func(s *h2frames, head *http2.MetaHeadersFrame) { c.answer(s, head.StreamID) })
			for range 5 {
				got := f.call("/", message, !c.unended)
				if got != c.want && !(strings.HasPrefix(c.want, "headers 502") && strings.HasPrefix(got, c.want)) {
					t.Fatalf("%s: want %s", got, c.want)
				}
			}
		})
	}
}

// A call that the service has refused unprocessed is sent once more, body and all, on a stream of its own.
func TestGRPCIsSentAgainIfItWasRefused(t *testing.T) {
	for name, refuse := range map[string]func(s *h2frames, id uint32){
		"reset":  func(s *h2frames, id uint32) { _ = s.WriteRSTStream(id, http2.ErrCodeRefusedStream) },
		"GOAWAY": func(s *h2frames, id uint32) { _ = s.WriteGoAway(id-2, http2.ErrCodeNo, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, nil)
			bodies := make(chan string, 10)
			s := f.serveFrames(func(s *h2frames, head *http2.MetaHeadersFrame) {
				body := ""
				for {
					frame, err := s.ReadFrame()
					if err != nil {
						return
					}
					if d, ok := frame.(*http2.DataFrame); ok {
						body += string(d.Data())
					}
					if endsStream(frame) {
						break
					}
				}
				bodies <- body
				if head.StreamID == 3 {
					refuse(s, 3)
					return
				}
				s.headers(head.StreamID, true, ":status", "200", "grpc-status", "0")
			})
			for range 2 {
				if got := f.call("/", []byte("body"), true); got != "headers 200 0 end" {
					t.Fatal(got)
				}
			}
			if len(bodies) != 3 || len(s.opened()) != 2 {
				t.Errorf("%d requests on %d streams: want 3 on 2", len(bodies), len(s.opened()))
			}
			for range 3 {
				if body := <-bodies; body != "body" {
					t.Errorf("body %q", body)
				}
			}
		})
	}
}

// Within a message a client is held to its pace, between two it may rest.
func TestSlowBodyOfACall(t *testing.T) {
	report, count := reported(t)
	const still = 100 * time.Millisecond
	f := newFixture(t, func(o *Options) {
		report(o)
		o.BodyTimeout = still
	})
	var reset bool
	seen := make(chan struct{}, 10)
	f.serveH2(func(w http.ResponseWriter, r *http.Request) {
		_, err := io.Copy(io.Discard, r.Body)
		reset = err != nil
		seen <- struct{}{}
	})
	half := []byte{0, 0, 0, 0, 5, 'h', 'a'}
	if got := f.call("/", half, false); !strings.HasPrefix(got, "headers 408 "+fault.RequestTimeout.Code) {
		t.Errorf("half a message is answered by %s", got)
	}
	await(t, seen, "end of the call")
	if count(limit.SlowBody) != 1 || !reset {
		t.Errorf("counted %v, broken for the service %v", count(limit.SlowBody), reset)
	}
	pr, pw := io.Pipe()
	go func() {
		_, _ = pw.Write(append(half, "lf."...))
		<-time.After(4 * still)
		_, _ = pw.Write(append(half, "lf."...))
		_ = pw.Close()
	}()
	resp, err := f.h2client().Do(f.grpc(t.Context(), "/", pr))
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%v %v", resp, err)
	}
	readAll(t, resp)
}

func TestMessagesAreFollowed(t *testing.T) {
	stream := append(append([]byte{0, 0, 0, 0, 0}, 1, 0, 0, 1, 2), make([]byte, 0x102)...)
	for piece := 1; piece < len(stream); piece++ {
		var m messageReader
		for at := 0; at < len(stream); at += piece {
			m.follow(stream[at:min(at+piece, len(stream))])
			end := at+piece == 5 || at+piece >= len(stream)
			if resting := m.head == 0 && m.left == 0; resting != end {
				t.Fatalf("pieces of %d: after %d bytes resting is %v", piece, at+piece, resting)
			}
		}
	}
}

func TestTimeoutsOfCalls(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"1S": time.Second, "20m": 20 * time.Millisecond, "99999999H": 1<<63 - 1, "5u": 5000, "7n": 7, "3M": 3 * time.Minute,
		"": -1, "S": -1, "1": -1, "1x": -1, "-1S": -1, "999999999S": -1, "1 S": -1,
	} {
		got, ok := grpcTimeout(text)
		if !ok {
			got = -1
		}
		if got != want && (want < 1<<62 || got < 200*365*24*time.Hour) {
			t.Errorf("%q is %v, want %v", text, got, want)
		}
	}
}

// A service that gives up at the deadline of a call is not heard before the client, which has the same.
func TestGRPCDeadlineIsTheClientsToTell(t *testing.T) {
	f := newFixture(t, nil)
	given := make(chan struct{}, 1)
	f.serveFrames(func(s *h2frames, head *http2.MetaHeadersFrame) {
		s.headers(head.StreamID, false, ":status", "200")
		<-time.After(20 * time.Millisecond)
		_ = s.WriteRSTStream(head.StreamID, http2.ErrCodeCancel)
		given <- struct{}{}
	})
	patiently(t, func(time.Duration) error { // what the service says is held back for no longer than outwaitLimit
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		r := f.grpc(ctx, "/", strings.NewReader("x"))
		r.Header.Set("Grpc-Timeout", "20m")
		resp, err := f.h2client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		await(t, given, "the service's reset")
		late := time.AfterFunc(50*time.Millisecond, cancel)
		defer late.Stop()
		if _, err = io.ReadAll(resp.Body); !errors.Is(err, context.Canceled) {
			return fmt.Errorf("the client reads %w: want what it did itself", err)
		}
		return nil
	})
}

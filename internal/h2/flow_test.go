package h2

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// begin opens a request with a body.
func begin(t *testing.T, c *Conn) {
	t.Helper()
	if err := c.Begin(small); err != nil {
		t.Fatal(err)
	}
	c.Open(AppendRequest(nil, "PUT", "e.test", "/"), false)
}

// take reads the body of a request, and gives windows back after each piece, or never.
func (s *service) take(back bool) (body []byte, trailer bool) {
	s.await(func(f http2.Frame) bool {
		switch f := f.(type) {
		case *http2.DataFrame:
			body = append(body, f.Data()...)
			if n := uint32(len(f.Data())); back && n > 0 {
				s.must(s.WriteWindowUpdate(0, n))
				s.must(s.WriteWindowUpdate(f.StreamID, n))
			}
		case *http2.MetaHeadersFrame:
			trailer = f.StreamEnded()
		}
		return isEnd(f)
	})
	return body, trailer
}

// The request keeps to the windows of the service, also to those of a first SETTINGS that comes late.
func TestRequestKeepsToTheWindows(t *testing.T) {
	for name, settings := range map[string][]http2.Setting{
		"that were given":  nil,
		"that are smaller": {{ID: http2.SettingInitialWindowSize, Val: 100}},
		"that are larger":  {{ID: http2.SettingInitialWindowSize, Val: 1 << 20}},
	} {
		t.Run(name, func(t *testing.T) {
			c, _, s := pair(t)
			want := bytes.Repeat([]byte("0123456789abcdef"), 20_000)
			sent := make(chan error, 1)
			begin(t, c)
			go func() {
				sent <- errors.Join(c.Send(want[:7], false), c.Send(want[7:], false),
					c.SendTrailer(AppendField(nil, "X-Last", "word")))
			}()
			go func() {
				s.greet(settings...)
				body, trailer := s.take(true)
				if !bytes.Equal(body, want) || !trailer {
					t.Errorf("%d bytes, trailer %v", len(body), trailer)
				}
				s.headers(1, true, ":status", "200")
			}()
			if got, err := read(c); err != nil || got != "200 end" {
				t.Errorf("%s, %v", got, err)
			}
			if err := <-sent; err != nil {
				t.Error(err)
			}
			if !finish(t, c) {
				t.Error("the connection can't be used again")
			}
		})
	}
}

// A client that sends everything before it reads anything does not stop the request, as long as the answer fits its window.
func TestRequestGoesOnWhileNobodyTakesTheAnswer(t *testing.T) {
	c, _, s := pair(t)
	const answer = window - 100
	go func() {
		s.greet()
		s.await(func(f http2.Frame) bool { return f.Header().Type == http2.FrameData })
		s.headers(1, false, ":status", "200")
		piece := make([]byte, maxFrame)
		for left := answer; left > 0; left -= min(left, maxFrame) {
			s.must(s.WriteData(1, false, piece[:min(left, maxFrame)]))
		}
		s.must(s.WriteWindowUpdate(0, 1<<20))
		s.must(s.WriteWindowUpdate(1, 1<<20))
		s.take(false)
		s.must(s.WriteData(1, true, nil))
	}()
	begin(t, c)
	first := make(chan error, 1)
	go func() { first <- c.Send(make([]byte, 10), false) }()
	if e, err := c.Next(func() {}); err != nil || e.Kind != Head {
		t.Fatal(e, err)
	}
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	// The one who reads is busy, and this is more than the first window.
	if err := c.Send(make([]byte, 300_000), true); err != nil {
		t.Fatal(err)
	}
	got := 0
	for {
		e, err := c.Next(func() {})
		if err != nil {
			t.Fatal(err)
		}
		if got += len(e.Data); e.End {
			break
		}
	}
	if got != answer || !finish(t, c) {
		t.Errorf("%d bytes: want %d, and the connection whole", got, answer)
	}
}

// What nobody takes is bounded by the window, also while somebody attends the service.
func TestAttendKeepsNoMoreThanTheWindow(t *testing.T) {
	c, _, s := pair(t)
	pong := make(chan struct{})
	go func() {
		s.greet()
		s.await(isEnd)
		s.headers(1, false, ":status", "200")
		s.must(s.WritePing(false, [8]byte{7}))
		s.await(func(f http2.Frame) bool { p, ok := f.(*http2.PingFrame); return ok && p.IsAck() && p.Data[0] == 7 })
		close(pong)
		for range window/maxFrame + 1 {
			s.must(s.WriteData(1, false, make([]byte, maxFrame)))
		}
	}()
	ask(t, c, small)
	if e, err := c.Next(func() {}); err != nil || e.Kind != Head {
		t.Fatal(e, err)
	}
	c.Attend(c.ID()) // until the service breaks the rules
	<-pong
	got, err := read(c)
	if !errors.Is(err, ErrMalformed) || len(got) == 0 {
		t.Errorf("%v: want an overflow of the window", err)
	}
	c.Attend(c.ID() + 2) // somebody else's time has come: nothing happens
	if finish(t, c) {
		t.Error("the connection counts as whole")
	}
}

// The service learns that there is room again before its window is used up.
func TestAnswerLargerThanTheWindow(t *testing.T) {
	c, _, s := pair(t)
	const pieces = 5 * window / maxFrame
	go func() {
		s.greet()
		s.await(isEnd)
		s.headers(1, false, ":status", "200")
		room := window
		for i := range pieces {
			for room < maxFrame {
				f, ok := s.await(func(f http2.Frame) bool {
					return f.Header().Type == http2.FrameWindowUpdate && f.Header().StreamID == 1
				}).(*http2.WindowUpdateFrame)
				if !ok {
					return
				}
				room += int(f.Increment)
			}
			room -= maxFrame
			s.must(s.WriteData(1, i == pieces-1, make([]byte, maxFrame)))
		}
	}()
	ask(t, c, small)
	got := 0
	for {
		e, err := c.Next(func() {})
		if err != nil {
			t.Fatal(err)
		}
		if got += len(e.Data); e.End {
			break
		}
	}
	if got != pieces*maxFrame {
		t.Errorf("%d bytes", got)
	}
}

// An answer may end before the request has. The sender returns, and the service hears that nothing more comes.
func TestEarlyAnswerEndsTheRequest(t *testing.T) {
	for _, reset := range []bool{false, true} {
		c, near, s := pair(t)
		over := make(chan struct{})
		go func() {
			defer close(over)
			s.greet()
			s.await(func(f http2.Frame) bool { return f.Header().Type == http2.FrameHeaders })
			s.headers(1, true, ":status", "200", "grpc-status", "12")
			if reset {
				s.must(s.WriteRSTStream(1, http2.ErrCodeNo))
			}
			s.await(func(f http2.Frame) bool { return f.Header().Type == http2.FrameRSTStream })
			s.await(isEnd)
			s.headers(3, true, ":status", "200")
		}()
		begin(t, c)
		sent := make(chan error, 1)
		go func() { sent <- c.Send(make([]byte, 1<<20), true) }()
		if got, err := read(c); err != nil || got != "200 grpc-status=12 end" {
			t.Errorf("%s, %v", got, err)
		}
		if err := <-sent; !errors.Is(err, ErrEnded) {
			t.Errorf("sender: %v", err)
		}
		if c.Complete() || !finish(t, c) {
			t.Error("it counts as complete, or the connection as broken")
		}
		ask(t, c, small)
		if got, err := read(c); err != nil || got != "200 end" {
			t.Errorf("the next one: %s, %v", got, err)
		}
		finish(t, c)
		<-over
		_ = near.Close()
	}
}

// Frames that bring nothing forward cost the service its connection.
func TestFloods(t *testing.T) {
	for name, frame := range map[string]func(s *service) error{
		"PING":           func(s *service) error { return s.WritePing(false, [8]byte{}) },
		"SETTINGS":       func(s *service) error { return s.WriteSettings() },
		"empty DATA":     func(s *service) error { return s.WriteData(1, false, nil) },
		"unknown":        func(s *service) error { return s.WriteRawFrame(0x99, 0, 0, nil) },
		"WINDOW_UPDATE":  func(s *service) error { return s.WriteWindowUpdate(1, 1) },
		"RST_STREAM":     func(s *service) error { return s.WriteRSTStream(0xfffffff, http2.ErrCodeNo) },
		"PRIORITY":       func(s *service) error { return s.WritePriority(1, http2.PriorityParam{Weight: 3}) },
		"header in bits": func(s *service) error { return s.WriteContinuation(1, false, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			c, near, s := pair(t)
			over := make(chan struct{})
			go func() {
				defer close(over)
				s.greet()
				s.await(isEnd)
				go func() { _, _ = io.Copy(io.Discard, s.conn) }()
				s.headers(1, false, ":status", "200")
				if name == "header in bits" {
					s.must(s.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: s.block("a", "b")}))
				}
				for range 100_000 {
					if frame(s) != nil {
						return
					}
				}
			}()
			ask(t, c, small)
			if got, err := read(c); !errors.Is(err, ErrMalformed) {
				t.Errorf("%.50s, %v: want it to be too much", got, err)
			}
			_ = near.Close()
			<-over
		})
	}
}

// Frames that come with what brings the exchange forward may be many.
func TestProgressPaysForFrames(t *testing.T) {
	c, _, s := pair(t)
	go func() {
		s.greet()
		s.await(isEnd)
		s.headers(1, false, ":status", "200")
		for range 20_000 {
			s.must(s.WriteData(1, false, []byte("x")))
			s.must(s.WritePing(true, [8]byte{}))
			s.must(s.WriteWindowUpdate(0, 1))
		}
		s.must(s.WriteData(1, true, nil))
	}()
	ask(t, c, small)
	if _, err := read(c); err != nil {
		t.Error(err)
	}
}

// Between two exchanges the service may say things, and leave.
func TestDrain(t *testing.T) {
	for name, leaves := range map[string]func(s *service){
		"GOAWAY": func(s *service) { s.must(s.WriteGoAway(1, http2.ErrCodeNo, nil)) },
		"end":    func(*service) {},
		"":       nil,
	} {
		c, near, s := pair(t)
		said, heard := make(chan struct{}), make(chan struct{})
		go func() {
			s.greet()
			s.await(isEnd)
			s.headers(1, true, ":status", "200")
			<-heard
			s.must(s.WritePing(false, [8]byte{}))
			if leaves != nil {
				leaves(s)
				s.must(s.conn.(interface{ CloseWrite() error }).CloseWrite())
			}
			close(said)
		}()
		ask(t, c, small)
		if got, err := read(c); err != nil {
			t.Fatal(got, err)
		}
		if !finish(t, c) || !c.Usable() {
			t.Fatal("not usable after a good exchange")
		}
		close(heard)
		<-said
		if leaves == nil {
			_ = near.SetReadDeadline(time.Now().Add(300 * time.Millisecond)) // TCP has no other way to say: nothing more
		}
		if usable := c.Drain(); usable != (leaves == nil) {
			t.Errorf("after %q: usable %v", name, usable)
		}
	}
}

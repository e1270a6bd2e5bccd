package proxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/sirupsen/logrus"

	"github.com/pikoproxy/piko/internal/fault"
	"github.com/pikoproxy/piko/internal/limit"
	"github.com/pikoproxy/piko/internal/router"
	"github.com/pikoproxy/piko/internal/tunnel"
)

// reported returns options that count rejections, and a function that says how many there were for a reason.
func reported(t *testing.T) (func(*Options), func(limit.Reason) float64) {
	t.Helper()
	reg := prometheus.NewRegistry()
	log := logrus.New()
	log.SetOutput(io.Discard)
	report := limit.NewReporter(log, reg)
	count := func(reason limit.Reason) float64 {
		all, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, family := range all {
			for _, m := range family.GetMetric() {
				for _, label := range m.GetLabel() {
					if label.GetValue() == string(reason) {
						return m.GetCounter().GetValue()
					}
				}
			}
		}
		return 0
	}
	return func(o *Options) { o.Report = report }, count
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for !f() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not in time: %s", what)
		}
	}
}

func TestSlowBodyOverHTTP2(t *testing.T) {
	report, count := reported(t)
	f := newFixture(t, func(o *Options) {
		report(o)
		o.BodyTimeout = 100 * time.Millisecond
	})
	f.serveHTTP(func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })
	body, w := io.Pipe()
	defer w.Close()
	go func() { _, _ = w.Write([]byte("beginning")) }()
	resp, err := f.h2client().Do(f.request("POST", "/", body))
	if err != nil {
		t.Fatal(err)
	}
	readAll(t, resp)
	if resp.StatusCode != http.StatusRequestTimeout || count(limit.SlowBody) != 1 {
		t.Errorf("status %d, counted %v", resp.StatusCode, count(limit.SlowBody))
	}
}

// A client and a service that talk to each other may take their time, and so may a service that reads slowly.
func TestPatienceWithBodiesInConversation(t *testing.T) {
	patiently(t, func(still time.Duration) error { return converse(t, still) })
}

// converse is a conversation that takes longer than a body alone might stand still.
func converse(t *testing.T, still time.Duration) error {
	report, count := reported(t)
	f := newFixture(t, func(o *Options) {
		report(o)
		o.BodyTimeout = still
	})
	f.serveRaw(func(c net.Conn, br *bufio.Reader) {
		if _, err := readRequestHead(br); err != nil {
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n")
		for {
			line, err := br.ReadString('\n')
			if err != nil {
				return
			}
			if strings.HasPrefix(line, "late") {
				_, _ = io.WriteString(c, "4\r\nlate\r\n0\r\n\r\n")
				return
			}
		}
	})
	c, br := f.dial()
	io.WriteString(c, "POST / HTTP/1.1\r\nHost: ep1.piko.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	quiet := time.NewTimer(2 * still)
	<-quiet.C
	io.WriteString(c, "4\r\nlate\r\n0\r\n\r\n")
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "oklate" || count(limit.SlowBody) != 0 {
		return fmt.Errorf("answer %q, %w, counted %v", body, err, count(limit.SlowBody))
	}
	return nil
}

// dripping yields a byte whenever it is asked, and says that each has taken 0.9 s.
type dripping struct{ b *bodyReader }

func (d dripping) Read(p []byte) (int, error) {
	d.b.waited += 900 * time.Millisecond
	p[0] = 'x'
	return 1, nil
}

func (dripping) Close() error { return nil }

func TestLeastRateOfABody(t *testing.T) {
	for _, c := range []struct {
		rate, reads int
		err         error
	}{{0, 100, nil}, {1, 100, nil}, {2, 12, errSlowBody}, {1000, 12, errSlowBody}} {
		b := &bodyReader{rate: int64(c.rate)}
		b.body = dripping{b}
		var err error
		n := 0
		for n < 100 && err == nil {
			n++
			_, err = b.Read(make([]byte, 10))
		}
		if !errors.Is(err, c.err) || n != c.reads {
			t.Errorf("1.1 B/s with %d wanted: %v after %d reads, want %v after %d", c.rate, err, n, c.err, c.reads)
		}
	}
}

// One stream of HTTP/2 that its client does not read is cut off; others of the connection, and one that is silent by the
// will of its service, go on.
func TestSlowReaderOfOneStream(t *testing.T) {
	report, count := reported(t)
	f := newFixture(t, func(o *Options) {
		report(o)
		o.WriteTimeout = 200 * time.Millisecond
	})
	wake := make(chan struct{})
	woken := sync.OnceFunc(func() { close(wake) })
	defer woken()
	f.serveHTTP(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/large":
			chunk := make([]byte, 64<<10)
			for range 1000 {
				if _, err := w.Write(chunk); err != nil {
					return
				}
			}
		case "/events":
			io.WriteString(w, "one")
			w.(http.Flusher).Flush()
			<-wake
			io.WriteString(w, "two")
		}
	})
	client := f.h2client()
	events, err := client.Do(f.request("GET", "/events", nil))
	if err != nil {
		t.Fatal(err)
	}
	large, err := client.Do(f.request("GET", "/large", nil))
	if err != nil {
		t.Fatal(err)
	}
	defer large.Body.Close()
	eventually(t, "slow reader counted", func() bool { return count(limit.SlowReader) == 1 })
	woken()
	if body := readAll(t, events); body != "onetwo" {
		t.Errorf("events: %q", body)
	}
	if _, err := io.Copy(io.Discard, large.Body); err == nil {
		t.Error("an answer that was cut off looks complete")
	}
}

// overfull is a session that has to give up what its streams hold.
type overfull struct{ *tcpSession }

func (s overfull) Open(ctx context.Context, h tunnel.Header) (router.Conn, error) {
	c, err := s.tcpSession.Open(ctx, h)
	return unread{c}, err
}

type unread struct{ router.Conn }

func (c unread) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil {
		err = tunnel.ErrUnread
	}
	return n, err
}

// An answer that is lost since its client did not read it is no fault of the service, which would get no more requests.
func TestLostAnswerIsTheReadersFault(t *testing.T) {
	report, count := reported(t)
	f := newFixture(t, report)
	s := f.serveRaw(answer("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nten bytes."))
	f.router.RemoveSession(s)
	f.router.Add("ep1", overfull{s}, router.UpstreamOptions{Weight: 1, Protocol: tunnel.ProtocolHTTP})
	resp, err := f.client().Do(f.request("GET", "/", nil))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for _, c := range s.conns() {
		_ = c.CloseRead() // the service sends nothing more
	}
	if _, err := io.Copy(io.Discard, resp.Body); err == nil {
		t.Error("an answer that was lost looks complete")
	}
	eventually(t, "slow reader counted", func() bool { return count(limit.SlowReader) == 1 })
	if n := testutil.ToFloat64(f.server.metrics.faults[fault.UpstreamBroke.Code]); n != 0 {
		t.Errorf("the service was blamed %v times", n)
	}
}

func TestLimitsOfAnswers(t *testing.T) {
	for _, c := range []struct {
		name, answer string
		change       func(*Options)
		want         int
	}{
		{"header as large as it may be", "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 900) + "\r\nContent-Length: 0\r\n\r\n",
			func(o *Options) { o.MaxResponseHeaderBytes = 1024 }, 200},
		{"header too large", "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 1100) + "\r\nContent-Length: 0\r\n\r\n",
			func(o *Options) { o.MaxResponseHeaderBytes = 1024 }, 502},
		{"informational", strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 2) + "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
			func(o *Options) { o.MaxInformational = 2 }, 200},
		{"too many informational", strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 3) + "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
			func(o *Options) { o.MaxInformational = 2 }, 502},
	} {
		t.Run(c.name, func(t *testing.T) {
			report, count := reported(t)
			f := newFixture(t, func(o *Options) {
				report(o)
				c.change(o)
			})
			f.serveRaw(answer(c.answer))
			resp, _, err := f.raw("GET / HTTP/1.1\r\nHost: ep1.piko.test\r\n\r\n")
			if err != nil || resp.StatusCode != c.want {
				t.Fatal(resp, err)
			}
			if got := count(limit.BadResponse); (got == 1) != (c.want == 502) {
				t.Errorf("counted %v", got)
			}
		})
	}
}

func TestTwinsWithUnderscores(t *testing.T) {
	for word, want := range map[string]string{"drop": "api_key", "allow": "api_key x_forwarded_for", "reject": "400"} {
		t.Run(word, func(t *testing.T) {
			f := newFixture(t, func(o *Options) { o.Underscores = underscoresOf(word) })
			f.serveHTTP(func(w http.ResponseWriter, r *http.Request) {
				for _, name := range []string{"api_key", "x_forwarded_for", "x_piko_endpoint", "transfer_encoding"} {
					if len(r.Header[http.CanonicalHeaderKey(name)]) > 0 {
						fmt.Fprint(w, name, " ")
					}
				}
			})
			resp, body, err := f.raw("GET / HTTP/1.1\r\nHost: ep1.piko.test\r\napi_key: 1\r\nX_Forwarded_For: 1.2.3.4\r\n" +
				"X_Piko_Endpoint: ep2\r\nTransfer_Encoding: chunked\r\n\r\n")
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != 200 {
				body = resp.Status[:3]
			}
			if strings.TrimSpace(body) != want {
				t.Errorf("%q, want %q", body, want)
			}
		})
	}
}

// Connections of HTTP/2 that have carried enough end, and no request is lost by it.
func TestConnectionsOfHTTP2HaveAnEnd(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.MaxRequests = 5 })
	f.serveHTTP(func(http.ResponseWriter, *http.Request) {})
	client := f.h2client()
	conns := map[net.Conn]bool{}
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
		GotConn: func(i httptrace.GotConnInfo) { conns[i.Conn] = true },
	})
	for range 100 {
		resp, err := client.Do(f.request("GET", "/", nil).WithContext(ctx))
		if err != nil {
			t.Fatal(err)
		}
		readAll(t, resp)
		if resp.StatusCode != 200 {
			t.Fatal(resp.Status)
		}
	}
	if len(conns) < 3 {
		t.Errorf("100 requests by %d connections, which carry 5 each and some more", len(conns))
	}
}

// A client of HTTP/2 that takes back nearly all it asks for loses its connection; one that takes back half does not.
func TestFloodOfResets(t *testing.T) {
	for _, c := range []struct {
		name  string
		every int // of so many requests one is not taken back
		cut   bool
	}{{"all", 1 << 30, true}, {"half", 2, false}} {
		t.Run(c.name, func(t *testing.T) {
			server, err := New(Options{Router: router.New(router.Options{})})
			if err != nil {
				t.Fatal(err)
			}
			x := &exchange{server: server, settings: server.settings.Load()}
			client, conn := net.Pipe()
			defer client.Close()
			ctx := (&front{server: server}).connContext(t.Context(), conn)
			gone := false
			for i := range 3 * floodResets {
				x.r = (&http.Request{ProtoMajor: 2}).WithContext(ctx)
				x.outlived()
				if i%c.every != 0 || c.every == 1<<30 {
					x.tookBack()
				}
				if x.record.reason == limit.ResetFlood && !gone {
					gone = true
					if i < floodResets-1 {
						t.Errorf("cut off after %d resets", i+1)
					}
				}
			}
			if gone != c.cut {
				t.Errorf("cut off: %v, want %v", gone, c.cut)
			}
		})
	}
}

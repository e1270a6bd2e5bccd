package proxy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"runtime/pprof"
	"strings"
	"testing"
	"time"

	"github.com/pikoproxy/piko/internal/router"
	"github.com/pikoproxy/piko/internal/tunnel"
)

// serveH2 offers a net/http service that speaks HTTP/2 with prior knowledge only, as gRPC servers do.
func (f *fixture) serveH2(h http.HandlerFunc) *tcpSession {
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	srv := httptest.NewUnstartedServer(h)
	srv.Config.Protocols = p
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.Start()
	f.t.Cleanup(func() {
		f.router.CloseIdle()
		srv.Close()
	})
	return f.offer(srv.Listener.Addr().String(), tunnel.ProtocolHTTP)
}

func (f *fixture) grpc(ctx context.Context, path string, body io.Reader) *http.Request {
	r := f.request("POST", path, body).WithContext(ctx)
	r.Header.Set("Content-Type", "application/grpc+proto")
	r.Header.Set("TE", "trailers")
	r.Header.Set("X-Forwarded-For", "6.6.6.6")
	return r
}

func TestGRPCStreamsBothWaysWithTrailers(t *testing.T) {
	f := newFixture(t, nil)
	s := f.serveH2(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/grpc")
		if r.ProtoMajor != 2 || r.Header.Get("Te") != "trailers" || r.Header.Get("X-Forwarded-For") != "127.0.0.1" ||
			r.Header.Get("X-Piko-Endpoint") != "" || r.Host != "ep1.piko.test" {
			t.Errorf("%s %s %v", r.Proto, r.Host, r.Header)
		}
		br := bufio.NewReader(r.Body)
		for {
			line, err := br.ReadString('\n')
			if err != nil {
				break
			}
			io.WriteString(w, strings.ToUpper(line))
			w.(http.Flusher).Flush()
		}
		w.Header().Set(http.TrailerPrefix+"Grpc-Status", "0")
		w.Header().Set(http.TrailerPrefix+"Grpc-Message", "fine")
	})
	client := f.h2client()
	for range 3 {
		pr, pw := io.Pipe()
		resp, err := client.Do(f.grpc(t.Context(), "/pkg.Echo/Talk", struct{ io.Reader }{firstLine(pw, pr)}))
		if err != nil {
			t.Fatal(err)
		}
		br := bufio.NewReader(resp.Body)
		for i := range 5 {
			// Each message goes out only when the answer to the one before has come.
			want := fmt.Sprintf("LINE %d\n", i)
			if line, err := br.ReadString('\n'); err != nil || line != want {
				t.Fatalf("%q %v, want %q", line, err, want)
			}
			fmt.Fprintf(pw, "line %d\n", i+1)
		}
		pw.Close()
		io.Copy(io.Discard, br)
		resp.Body.Close()
		if resp.Trailer.Get("Grpc-Status") != "0" || resp.Trailer.Get("Grpc-Message") != "fine" {
			t.Errorf("trailers %v", resp.Trailer)
		}
	}
	if h := s.opened(); len(h) != 1 || h[0].Protocol != tunnel.ProtocolH2 {
		t.Errorf("streams %+v, want one kept HTTP/2 connection", h)
	}
}

// firstLine writes the first message before anybody has asked for one.
func firstLine(pw *io.PipeWriter, pr *io.PipeReader) io.Reader {
	return io.MultiReader(strings.NewReader("line 0\n"), pr)
}

func TestGRPCTrailersOnly(t *testing.T) {
	f := newFixture(t, nil)
	f.serveH2(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Grpc-Status", "12")
		w.WriteHeader(200)
	})
	resp, err := f.h2client().Do(f.grpc(t.Context(), "/", strings.NewReader("x")))
	if err != nil || resp.Header.Get("Grpc-Status") != "12" {
		t.Fatalf("%v %v", resp, err)
	}
	if body := readAll(t, resp); body != "" {
		t.Errorf("body %q", body)
	}
}

// A client that cancels cancels the call, and the connection to the service lives on.
func TestGRPCCancellation(t *testing.T) {
	f := newFixture(t, nil)
	started, cancelled := make(chan struct{}, 1), make(chan struct{}, 1)
	s := f.serveH2(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/answering" {
			w.(http.Flusher).Flush()
		}
		started <- struct{}{}
		<-r.Context().Done()
		cancelled <- struct{}{}
	})
	client := f.h2client()
	for _, path := range []string{"/silent", "/answering", "/silent"} {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			if resp, err := client.Do(f.grpc(ctx, path, strings.NewReader("x"))); err == nil {
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
		}()
		await(t, started, "call")
		cancel()
		await(t, cancelled, "cancellation")
		await(t, done, "end of the client")
	}
	if n := len(s.opened()); n != 1 {
		t.Logf("%d streams: a connection was given back too late to be used again", n)
	}
}

func TestGRPCFailures(t *testing.T) {
	release := make(chan struct{})
	service := func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/break":
			io.WriteString(w, "half")
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		case "/slow":
			<-release
		case "/stream":
			// The clock runs only when the request has ended: this one lasts longer than the limit.
			io.Copy(io.Discard, r.Body)
		}
	}
	within := func(limit time.Duration) *fixture {
		f := newFixture(t, func(o *Options) { o.ResponseHeaderTimeout = limit })
		f.serveH2(service)
		return f
	}
	f := within(patience)
	resp, err := f.h2client().Do(f.grpc(t.Context(), "/break", nil))
	if err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(resp.Body); err == nil || string(body) != "half" {
		t.Errorf("a broken answer looks complete: %q", body)
	}
	resp.Body.Close()
	f = within(100 * time.Millisecond)
	resp, err = f.h2client().Do(f.grpc(t.Context(), "/slow", nil))
	close(release)
	if err != nil || resp.StatusCode != 504 {
		t.Fatalf("%v %v, want 504", resp, err)
	}
	readAll(t, resp)
	patiently(t, func(limit time.Duration) error {
		f := within(limit)
		pr, pw := io.Pipe()
		timer := time.AfterFunc(3*limit, func() { pw.CloseWithError(io.EOF) })
		defer timer.Stop()
		resp, err := f.h2client().Do(f.grpc(t.Context(), "/stream", pr))
		if err != nil || resp.StatusCode != 200 {
			return fmt.Errorf("%v %w, want 200", resp, err)
		}
		readAll(t, resp)
		return nil
	})
}

// An idle connection that the service has closed is replaced without anybody noticing.
func TestGRPCConnectionClosedByTheService(t *testing.T) {
	f := newFixture(t, nil)
	var srv *http.Server
	s := f.serveH2(func(w http.ResponseWriter, r *http.Request) {
		if srv == nil {
			srv = r.Context().Value(http.ServerContextKey).(*http.Server)
		}
	})
	client, before := f.h2client(), readers(t)
	for range 3 {
		resp, err := client.Do(f.grpc(t.Context(), "/", nil))
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("%v %v", resp, err)
		}
		readAll(t, resp)
		closeConnections(t, s)
		awaitReaders(t, before+1) // that of the client
	}
}

// readers counts the HTTP/2 connections that this process reads as a client.
func readers(t *testing.T) int {
	t.Helper()
	var all strings.Builder
	if err := pprof.Lookup("goroutine").WriteTo(&all, 2); err != nil {
		t.Fatal(err)
	}
	return strings.Count(all.String(), "lientConnReadLoop).run(")
}

// awaitReaders waits until no more connections than that are read. A connection that was closed is known to be when nobody
// reads it any more.
func awaitReaders(t *testing.T, most int) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); readers(t) > most; <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("more than %d connections are read", most)
		}
	}
}

func closeConnections(t *testing.T, s *tcpSession) {
	t.Helper()
	for _, c := range s.conns() {
		c.SetLinger(0)
		c.Close()
	}
}

func TestGRPCWithoutHTTP2UpstreamUsesHTTP1(t *testing.T) {
	f := newFixture(t, nil)
	s := f.serveHTTP(func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
	f.router.RemoveSession(s)
	f.router.Add("ep1", s, router.UpstreamOptions{Weight: 1}) // a classic agent: its protocol is not known
	resp, err := f.h2client().Do(f.grpc(t.Context(), "/", strings.NewReader("x")))
	if err != nil || readAll(t, resp) != "x" {
		t.Errorf("%v %v", resp, err)
	}
	if h := s.opened(); h[len(h)-1].Protocol != tunnel.ProtocolHTTP {
		t.Errorf("streams %+v", h)
	}
}

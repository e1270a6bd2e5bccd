package guard

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

const patience = 40 * time.Second

// serve runs an HTTP server behind a guard and returns its address.
func serve(t *testing.T, o Options, h http.HandlerFunc) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if o.Limits == nil {
		o.Limits = func() Limits { return Limits{Bytes: 32 << 10, Fields: 100, Target: 16 << 10} }
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	srv := &http.Server{
		Handler: h, ConnContext: With, Protocols: protocols, TLSConfig: o.TLS.Clone(), ReadHeaderTimeout: patience,
		ErrorLog: log.New(io.Discard, "", 0),
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(NewListener(l, o)) }()
	t.Cleanup(func() {
		srv.Close()
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("serve: %v", err)
		}
	})
	return l.Addr().String()
}

func dial(t *testing.T, addr string) (net.Conn, *bufio.Reader) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return c, bufio.NewReader(c)
}

func send(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

func receive(t *testing.T, br *bufio.Reader) (int, string) {
	t.Helper()
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// tell answers with what the guard has to say, or else with the path.
func tell(w http.ResponseWriter, r *http.Request) {
	if refusal := From(r.Context()).Refusal(); refusal != 0 && r.RequestURI == Target {
		w.WriteHeader(400)
		_, _ = io.WriteString(w, refusal.Error())
		return
	}
	_, _ = io.WriteString(w, r.URL.Path)
}

const get = " HTTP/1.1\r\nHost: a\r\n\r\n"

// The refusal waits for the answers before it, however early its reason was read, and does not disturb them.
func TestRefusalIsAnsweredAfterEarlierRequests(t *testing.T) {
	inHandler, goOn := make(chan struct{}), make(chan struct{})
	addr := serve(t, Options{}, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			close(inHandler)
			<-goOn
			if r.Context().Err() != nil {
				t.Error("the request before the refused one was cancelled")
			}
		}
		tell(w, r)
	})
	c, br := dial(t, addr)
	send(t, c, "GET /slow"+get+"GET /hidden HTTP/1.1\nHost: a\r\n\r\n")
	<-inHandler
	send(t, c, "GET /more"+get)
	close(goOn)
	if code, body := receive(t, br); code != 200 || body != "/slow" {
		t.Errorf("first answer %d %q", code, body)
	}
	if code, body := receive(t, br); code != 400 || body != bareLF.Error() {
		t.Errorf("second answer %d %q", code, body)
	}
	if _, err := br.ReadByte(); err == nil {
		t.Error("the connection goes on")
	}
}

// Nor does a doubtful body of a pipelined request.
func TestRefusedBodyDoesNotDisturbEarlierRequests(t *testing.T) {
	addr := serve(t, Options{}, func(w http.ResponseWriter, r *http.Request) {
		_, err := io.ReadAll(r.Body)
		if err != nil {
			w.WriteHeader(400)
			_, _ = io.WriteString(w, From(r.Context()).Refusal().Error())
			return
		}
		if r.Context().Err() != nil {
			t.Error("cancelled")
		}
		tell(w, r)
	})
	c, br := dial(t, addr)
	send(t, c, "GET /first"+get+"POST /second HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n")
	if code, body := receive(t, br); code != 200 || body != "/first" {
		t.Errorf("first answer %d %q", code, body)
	}
	if code, body := receive(t, br); code != 400 || body != badChunkSize.Error() {
		t.Errorf("second answer %d %q", code, body)
	}
}

func TestHeadHasItsTime(t *testing.T) {
	addr := serve(t, Options{HeaderTimeout: 100 * time.Millisecond}, tell)
	for name, before := range map[string]string{"first head": "", "head on a used connection": "GET /first" + get} {
		c, br := dial(t, addr)
		if before != "" {
			send(t, c, before)
			receive(t, br)
		}
		send(t, c, "GET / HTTP/1.1\r\nHo")
		if code, body := receive(t, br); code != 400 || body != slowHead.Error() {
			t.Errorf("%s: %d %q", name, code, body)
		}
	}
}

// Neither the time that a body takes nor that between two requests counts.
func TestOnlyTheHeadHasItsTime(t *testing.T) {
	addr := serve(t, Options{HeaderTimeout: 20 * time.Millisecond}, func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		_, _ = w.Write(b)
	})
	c, br := dial(t, addr)
	for range 2 {
		send(t, c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\na")
		<-time.After(60 * time.Millisecond)
		send(t, c, "b")
		if code, body := receive(t, br); code != 200 || body != "ab" {
			t.Errorf("%d %q", code, body)
		}
		<-time.After(60 * time.Millisecond)
	}
}

// What follows a request for an upgrade is not looked at before that is decided: it may be no HTTP.
func TestUpgrade(t *testing.T) {
	const early = "\x81\x05\x00\x01\n\r\n\n\xff"
	addr := serve(t, Options{}, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/up" {
			defer From(r.Context()).Resume()
			tell(w, r)
			return
		}
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		outer := conn
		conn = Pass(conn)
		if _, plain := conn.(*net.TCPConn); !plain && conn != outer {
			t.Errorf("passed on as %T", conn)
		}
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\n\r\n")
		_, _ = io.Copy(conn, io.MultiReader(io.LimitReader(rw, int64(rw.Reader.Buffered())), conn))
	})
	for name, sendIt := range map[string]func(c net.Conn, br *bufio.Reader, head, rest string){
		"at once": func(c net.Conn, br *bufio.Reader, head, rest string) {
			send(t, c, head+rest)
			_, _ = br.Peek(1)
		},
		"later": func(c net.Conn, br *bufio.Reader, head, rest string) {
			send(t, c, head)
			_, _ = br.Peek(1)
			send(t, c, rest)
		},
	} {
		c, br := dial(t, addr)
		sendIt(c, br, "GET /up HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\n\r\n", early)
		want := "HTTP/1.1 101 Switching Protocols\r\n\r\n" + early
		got := make([]byte, len(want))
		if _, err := io.ReadFull(br, got); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}

		c, br = dial(t, addr)
		sendIt(c, br, "GET /no HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\n\r\n", "GET /second"+get+"GET /third HTTP/1.1\n")
		for _, want := range []string{"/no", "/second", bareLF.Error()} {
			if _, body := receive(t, br); body != want {
				t.Errorf("%s: answer %q, want %q", name, body, want)
			}
		}
	}
}

func TestTooMuchAheadOfAnUpgrade(t *testing.T) {
	addr := serve(t, Options{}, func(w http.ResponseWriter, r *http.Request) {
		if r.RequestURI != Target {
			defer From(r.Context()).Resume()
			for tick := time.NewTicker(time.Millisecond); From(r.Context()).Refusal() == 0; {
				<-tick.C
			}
		}
		tell(w, r)
	})
	c, br := dial(t, addr)
	send(t, c, "GET /up HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\n\r\n")
	send(t, c, strings.Repeat("a", 100<<10))
	if _, body := receive(t, br); body != "/up" {
		t.Errorf("answer %q", body)
	}
	if code, body := receive(t, br); code != 400 || body != aheadOfUpgrade.Error() {
		t.Errorf("answer %d %q", code, body)
	}
}

func secured(t *testing.T) (server, client *tls.Config) {
	t.Helper()
	borrowed := httptest.NewTLSServer(nil) // for its certificate
	t.Cleanup(borrowed.Close)
	server = &tls.Config{
		Certificates: borrowed.TLS.Certificates, NextProtos: []string{"h2", "http/1.1"}, MinVersion: tls.VersionTLS12,
	}
	roots := borrowed.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	return server, &tls.Config{RootCAs: roots, ServerName: "example.com", MinVersion: tls.VersionTLS12}
}

func TestTLS(t *testing.T) {
	server, client := secured(t)
	addr := serve(t, Options{TLS: server}, func(w http.ResponseWriter, r *http.Request) {
		if r.TLS == nil || r.TLS.ServerName != "example.com" {
			t.Errorf("the request knows %+v of TLS", r.TLS)
		}
		if guarded := From(r.Context()) != nil; guarded != (r.ProtoMajor == 1) {
			t.Errorf("%s is guarded: %v", r.Proto, guarded)
		}
		tell(w, r)
	})
	for _, proto := range []string{"http/1.1", "h2"} {
		config := client.Clone()
		config.NextProtos = []string{proto}
		tr := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: proto == "h2"}
		t.Cleanup(tr.CloseIdleConnections)
		resp, err := (&http.Client{Transport: tr, Timeout: patience}).Get("https://" + addr + "/x")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 200 || (resp.ProtoMajor == 2) != (proto == "h2") {
			t.Errorf("%s: %s %d", proto, resp.Proto, resp.StatusCode)
		}
	}
	// The preface of HTTP/2 means nothing where HTTP/1.1 was agreed on.
	c, err := tls.Dial("tcp", addr, client)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	send(t, c, preface)
	if code, body := receive(t, bufio.NewReader(c)); code != 400 || body != badVersion.Error() {
		t.Errorf("preface over TLS: %d %q", code, body)
	}
}

// A client that keeps silent in its handshake holds up nobody, and is cut off with the server.
func TestSlowHandshakeHoldsUpNobody(t *testing.T) {
	server, client := secured(t)
	addr := serve(t, Options{TLS: server}, tell)
	for range 50 {
		c, _ := dial(t, addr)
		send(t, c, "\x16\x03\x01")
	}
	c, err := tls.Dial("tcp", addr, client)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	send(t, c, "GET /x"+get)
	if code, _ := receive(t, bufio.NewReader(c)); code != 200 {
		t.Errorf("answer %d", code)
	}
}

func TestPlainRequestToTLS(t *testing.T) {
	server, _ := secured(t)
	var mu sync.Mutex
	var lines strings.Builder
	addr := serve(t, Options{TLS: server, ErrorLog: log.New(lockedWriter{&mu, &lines}, "", 0)}, tell)
	c, br := dial(t, addr)
	send(t, c, "GET /"+get)
	if code, body := receive(t, br); code != 400 || !strings.Contains(body, "HTTPS") {
		t.Errorf("answer %d %q", code, body)
	}
	if _, err := br.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("the connection ended with %v", err)
	}
	mu.Lock()
	defer mu.Unlock()
	if !strings.HasPrefix(lines.String(), "tls handshake with 127.0.0.1:") {
		t.Errorf("logged %q", &lines)
	}
}

type lockedWriter struct {
	mu *sync.Mutex
	w  io.Writer
}

func (w lockedWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.w.Write(p)
}

func TestWithoutGuard(t *testing.T) {
	c, far := net.Pipe()
	defer c.Close()
	defer far.Close()
	if ctx := With(context.Background(), c); From(ctx) != nil || From(ctx).Refusal() != 0 {
		t.Error("a guard where there is none")
	}
	From(context.Background()).Resume()
	From(context.Background()).Discard(time.Second)
	if Pass(c) != c {
		t.Error("passed on another connection")
	}
}

package websocket

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// serveTLS is serve with TLS, and returns a client configuration that trusts the server.
func serveTLS(t testing.TB) (address string, config *tls.Config, accepted <-chan *Conn) {
	t.Helper()
	conns := make(chan *Conn, 16)
	server := newTLSServer(t, func(w http.ResponseWriter, r *http.Request) {
		if c, err := Accept(w, r, AcceptOptions{}); err == nil {
			conns <- c
		}
	})
	return server.URL, server.Client().Transport.(*http.Transport).TLSClientConfig, conns
}

func newTLSServer(t testing.TB, handler http.HandlerFunc) *httptest.Server {
	t.Helper()
	server := httptest.NewUnstartedServer(handler)
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // handshakes fail on purpose
	server.StartTLS()
	t.Cleanup(server.Close)
	return server
}

const goodHead = "GET /x HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
	"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + rawKey + "\r\n\r\n"

func TestAcceptChecksTheRequest(t *testing.T) {
	change := func(old, fresh string) string { return strings.Replace(goodHead, old, fresh, 1) }
	drop := func(name string) string {
		var kept []string
		for line := range strings.SplitSeq(goodHead, "\r\n") {
			if !strings.HasPrefix(line, name+":") {
				kept = append(kept, line)
			}
		}
		return strings.Join(kept, "\r\n")
	}
	add := func(line string) string { return change("Host: a\r\n", "Host: a\r\n"+line+"\r\n") }
	tests := []struct {
		name   string
		send   string
		status int
		header string // that the answer must have
	}{
		{"as it should be", goodHead, 101, "Sec-Websocket-Accept: " + rawAccept},
		{"other case", change("websocket", "WebSocket"), 101, ""},
		{"connection with other tokens", change("Connection: Upgrade", "Connection: keep-alive, uPGRADE"), 101, ""},
		{"connection on two lines", change("Connection: Upgrade", "Connection: keep-alive\r\nConnection: upgrade"), 101, ""},
		{"extension offered", add("Sec-WebSocket-Extensions: permessage-deflate"), 101, ""},
		{"subprotocol nobody wants", add("Sec-WebSocket-Protocol: chat"), 101, ""},
		{"post", change("GET", "POST"), 405, "Allow: GET"},
		{"head", change("GET", "HEAD"), 405, "Allow: GET"},
		{"HTTP/1.0", change("HTTP/1.1", "HTTP/1.0"), 400, ""},
		{"no upgrade", drop("Upgrade"), 426, "Upgrade: websocket"},
		{"other upgrade", change("websocket", "h2c"), 400, ""},
		{"two upgrades", change("websocket", "websocket, h2c"), 400, ""},
		{"upgrade twice", add("Upgrade: websocket"), 400, ""},
		{"no connection", drop("Connection"), 400, ""},
		{"other connection", change("Connection: Upgrade", "Connection: close"), 400, ""},
		{"no version", drop("Sec-WebSocket-Version"), 400, ""},
		{"version 12", change("Version: 13", "Version: 12"), 426, "Sec-Websocket-Version: 13"},
		{"version 8 and 13", change("Version: 13", "Version: 8, 13"), 426, "Sec-Websocket-Version: 13"},
		{"version twice", add("Sec-WebSocket-Version: 13"), 426, "Sec-Websocket-Version: 13"},
		{"no key", drop("Sec-WebSocket-Key"), 400, ""},
		{"empty key", change(rawKey, ""), 400, ""},
		{"key of 15 bytes", change(rawKey, "AAAAAAAAAAAAAAAAAAAA"), 400, ""},
		{"key of 17 bytes", change(rawKey, "AAAAAAAAAAAAAAAAAAAAAAA="), 400, ""},
		{"key not in base64", change(rawKey, "dGhlIHNhbXBsZSBub25jZQ$$"), 400, ""},
		{"key with bits too many", change(rawKey, "dGhlIHNhbXBsZSBub25jZR=="), 400, ""},
		{"key twice", add("Sec-WebSocket-Key: " + rawKey), 400, ""},
		{"body", change("Host: a\r\n", "Host: a\r\nContent-Length: 3\r\n") + "abc", 400, ""},
		{"chunked body", change("Host: a\r\n", "Host: a\r\nTransfer-Encoding: chunked\r\n") + "0\r\n\r\n", 400, ""},
	}
	address, accepted := serve(t, AcceptOptions{})
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			head, body := exchange(t, address, test.send)
			if test.status == 101 {
				_ = (<-accepted).Reset()
			} else {
				checkRefusal(t, head, body)
			}
			if !strings.HasPrefix(head, fmt.Sprintf("HTTP/1.1 %d ", test.status)) && !strings.HasPrefix(head, fmt.Sprintf("HTTP/1.0 %d ", test.status)) {
				t.Errorf("answer %q, want status %d", head, test.status)
			}
			if !strings.Contains(strings.ToLower(head), strings.ToLower(test.header)) {
				t.Errorf("answer %q, want %q in it", head, test.header)
			}
		})
	}
}

// exchange sends a request as it is and returns head and body of the answer; of 101 only the head.
func exchange(t *testing.T, address, request string) (head, body string) {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(address, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	head = readRawHead(t, conn)
	if strings.Contains(head, " 101 ") {
		return head, ""
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	rest, _ := io.ReadAll(conn) // a request with a body that was not read ends in a reset
	return head, string(rest)
}

func checkRefusal(t *testing.T, head, body string) {
	t.Helper()
	for _, want := range []string{"Content-Type: application/json", "X-Content-Type-Options: nosniff", "Cache-Control: no-store"} {
		if !strings.Contains(head, want) {
			t.Errorf("answer %q, want %q in it", head, want)
		}
	}
	var answer struct{ Error string }
	if strings.Contains(head, "Content-Length: 0") || body == "" {
		return // HEAD
	}
	if err := json.Unmarshal([]byte(body), &answer); err != nil || answer.Error == "" {
		t.Errorf("body %q: %v", body, err)
	}
}

func TestAcceptRefusesHTTP2(t *testing.T) {
	for _, r := range []*http.Request{
		{Method: http.MethodGet, ProtoMajor: 2, Header: http.Header{}},
		{Method: http.MethodConnect, ProtoMajor: 2, Header: http.Header{":protocol": {"websocket"}}},
	} {
		w := httptest.NewRecorder()
		if _, err := Accept(w, r, AcceptOptions{}); !IsRefused(err) || w.Code/100 != 4 {
			t.Errorf("%s over HTTP/2: status %d, %v", r.Method, w.Code, err)
		}
	}
}

func TestAcceptWithoutAConnectionToTakeOver(t *testing.T) {
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
	for name, value := range map[string]string{
		"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": rawKey,
	} {
		r.Header.Set(name, value)
	}
	w := httptest.NewRecorder()
	if _, err := Accept(w, r, AcceptOptions{}); err == nil || IsRefused(err) || w.Code != http.StatusInternalServerError {
		t.Fatalf("status %d, %v", w.Code, err)
	}
}

func TestSubprotocolIsAgreedOn(t *testing.T) {
	tests := []struct {
		name          string
		offers, takes []string
		want          string
		status        int
	}{
		{"one in common", []string{"a", "piko.v2"}, []string{"piko.v2"}, "piko.v2", 0},
		{"the server's preference", []string{"a", "b"}, []string{"b", "a"}, "b", 0},
		{"server wants none", []string{"a"}, nil, "", 0},
		{"client offers none", nil, []string{"a"}, "", 400},
		{"none in common", []string{"a"}, []string{"b"}, "", 400},
		{"case matters", []string{"A"}, []string{"a"}, "", 400},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			address, accepted := serve(t, AcceptOptions{Subprotocols: test.takes, Header: http.Header{
				"X-Piko-Node": {"n1"}, "Upgrade": {"other"}, "X-Split": {"a\r\nSec-WebSocket-Protocol: evil"},
			}})
			client, header, err := Dial(t.Context(), address, DialOptions{Subprotocols: test.offers, Proxy: noProxy})
			if test.status != 0 {
				if refused, ok := errors.AsType[*StatusError](err); !ok || refused.Status != test.status {
					t.Fatalf("dial: %v, want status %d", err, test.status)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			server := <-accepted
			defer server.Close()
			defer client.Close()
			if client.Subprotocol() != test.want || server.Subprotocol() != test.want {
				t.Errorf("client %q, server %q, want %q", client.Subprotocol(), server.Subprotocol(), test.want)
			}
			if header.Get("X-Piko-Node") != "n1" || client.HandshakeTime() <= 0 {
				t.Errorf("header %v after %v", header, client.HandshakeTime())
			}
		})
	}
}

func TestDialChecksTheAnswer(t *testing.T) {
	const good = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: KEY\r\n"
	tests := []struct {
		name   string
		answer string
		want   string // in the error; "" if there is none
	}{
		{"as it should be", good + "\r\n", ""},
		{"after informational answers", "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + good + "\r\n", ""},
		{"informational answers without end", strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 9) + good + "\r\n", "informational"},
		{"wrong key", strings.Replace(good, "KEY", rawAccept, 1) + "\r\n", "wrong websocket accept key"},
		{"no key", strings.Replace(good, "Sec-WebSocket-Accept: KEY\r\n", "", 1) + "\r\n", "wrong websocket accept key"},
		{"key twice", good + "Sec-WebSocket-Accept: KEY\r\n\r\n", "wrong websocket accept key"},
		{"other upgrade", strings.Replace(good, "websocket", "h2c", 1) + "\r\n", "other than websocket"},
		{"no connection", strings.Replace(good, "Connection: Upgrade\r\n", "", 1) + "\r\n", "other than websocket"},
		{"extension", good + "Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n", "extension"},
		{"subprotocol", good + "Sec-WebSocket-Protocol: chat\r\n\r\n", "subprotocol"},
		{"no HTTP", "SSH-2.0-OpenSSH_9.2\r\n\r\n", "read answer"},
		{"endless head", good + "X-Long: " + strings.Repeat("x", 64<<10), "longer than 32768 bytes"},
		{"endless line", strings.Repeat("x", 64<<10), "longer than 32768 bytes"},
		{"nothing", "", "closed before the answer"},
		{"half an answer", good, "closed before the answer"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			address, sockets := answerWith(t, func(key string) []byte {
				return []byte(strings.ReplaceAll(test.answer, "KEY", acceptKey(key)))
			})
			go func() { // the server ends its direction, and keeps the rest open
				if socket, ok := <-sockets; ok {
					_ = socket.(*net.TCPConn).CloseWrite()
				}
			}()
			client, _, err := Dial(t.Context(), address, DialOptions{Proxy: noProxy})
			if test.want == "" && err == nil {
				_ = client.Close()
				return
			}
			if err == nil || test.want == "" || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("error %v, want %q in it", err, test.want)
			}
		})
	}
}

func TestDialReportsWhatTheServerAnswered(t *testing.T) {
	tests := []struct {
		name, answer string
		status       int
		body         string
	}{
		{"refusal", "HTTP/1.1 401 Unauthorized\r\nContent-Length: 25\r\n\r\n{\"error\":\"invalid token\"}", 401, `{"error":"invalid token"}`},
		{"redirect", "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", 302, ""},
		{"no switch", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, "ok"},
		{"long body", "HTTP/1.1 503 Busy\r\nRetry-After: 3\r\n\r\n" + strings.Repeat("b", 100<<10), 503, strings.Repeat("b", 4096)},
		{"body that does not end", "HTTP/1.1 500 Oops\r\nContent-Length: 99\r\n\r\nhalf", 500, "half"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			address, _ := answerWith(t, func(string) []byte { return []byte(test.answer) })
			_, _, err := Dial(t.Context(), address, DialOptions{Proxy: noProxy})
			got, ok := errors.AsType[*StatusError](err)
			if !ok || got.Status != test.status || got.Body != test.body || got.Header == nil {
				t.Fatalf("error %v, want status %d", err, test.status)
			}
			if errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("error %v: the body was waited for too long", err)
			}
			if test.body != "" && test.status == 401 && !strings.Contains(err.Error(), "invalid token") {
				t.Fatalf("error %v does not say why", err)
			}
		})
	}
}

func TestDialEndsInTime(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close() // nobody accepts, the kernel connects
	for _, address := range []string{"http://" + ln.Addr().String(), "https://" + ln.Addr().String()} {
		_, _, err = Dial(t.Context(), address, DialOptions{Proxy: noProxy, HandshakeTimeout: 30 * time.Millisecond})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("dial of a silent server: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(30*time.Millisecond, cancel)
		if _, _, err = Dial(ctx, address, DialOptions{Proxy: noProxy}); !errors.Is(err, context.Canceled) {
			t.Fatalf("dial cancelled: %v", err)
		}
	}
}

func TestContextOfDialDoesNotBindTheConnection(t *testing.T) {
	address, accepted := serve(t, AcceptOptions{})
	ctx, cancel := context.WithCancel(t.Context())
	client, _, err := Dial(ctx, address, DialOptions{Proxy: noProxy, HandshakeTimeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	cancel()
	server := <-accepted
	defer server.Close()
	limit(t, server)
	if _, err := client.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
}

func TestDialSendsTheGivenHeader(t *testing.T) {
	seen := make(chan *http.Request, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen <- r
		w.WriteHeader(http.StatusTeapot)
	}))
	defer server.Close()
	header := http.Header{
		"X-A": {"1", "2"}, "Host": {"e.piko.test"}, "Upgrade": {"h2c"}, "Sec-WebSocket-Key": {"mine"}, "Content-Length": {"5"},
	}
	address := strings.Replace(server.URL, "http://", "ws://user:secret@", 1) + "/a%2Fb?q=1"
	_, _, err := Dial(t.Context(), address, DialOptions{Header: header, Proxy: noProxy})
	if refused, ok := errors.AsType[*StatusError](err); !ok || refused.Status != http.StatusTeapot {
		t.Fatalf("dial: %v", err)
	}
	if strings.Contains(err.Error(), "secret") {
		t.Fatalf("error %v shows the password", err)
	}
	if header.Get("Upgrade") != "h2c" || header.Get("Host") == "" {
		t.Fatalf("the caller's header was changed to %v", header)
	}
	r := <-seen
	user, password, _ := r.BasicAuth()
	if r.Host != "e.piko.test" || len(r.Header["X-A"]) != 2 || r.RequestURI != "/a%2Fb?q=1" ||
		user != "user" || password != "secret" || r.Header.Get("Upgrade") != "websocket" || len(r.Header["Sec-Websocket-Key"]) != 1 {
		t.Fatalf("request %s %s %v", r.Host, r.RequestURI, r.Header)
	}
}

func TestDialRefusesBadAddresses(t *testing.T) {
	for _, address := range []string{"", "localhost:8001", "ftp://a", "http://", "http://:80", "ws://a b", "http://u:secret@[::1"} {
		_, _, err := Dial(t.Context(), address, DialOptions{Proxy: noProxy})
		if err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("address %q: %v", address, err)
		}
	}
}

func TestDialDoesNotEndUpWithHTTP2(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, err := Accept(w, r, AcceptOptions{}); err == nil {
			_ = c.Close()
		}
	}))
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	config := server.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	config.NextProtos = []string{"h2", "http/1.1"}
	client, _, err := Dial(t.Context(), server.URL, DialOptions{Proxy: noProxy, TLS: config})
	if err != nil {
		t.Fatal(err)
	}
	_ = client.Close()
	if len(config.NextProtos) != 2 {
		t.Fatal("the caller's configuration was changed")
	}
}

// timed is a connection that remembers its deadline.
type timed struct {
	endless
	deadline time.Time
	during   time.Time // the deadline at the last write
}

func (d *timed) SetDeadline(t time.Time) error {
	d.deadline = t
	return nil
}

func (d *timed) Write(p []byte) (int, error) {
	d.during = d.deadline
	return len(p), nil
}

func TestAnswerHasADeadlineAndTheConnectionNone(t *testing.T) {
	conn := &timed{}
	if err := accept(conn, rawKey, "", nil); err != nil {
		t.Fatal(err)
	}
	if conn.during.IsZero() || !conn.deadline.IsZero() {
		t.Fatalf("deadline %v during the answer, then %v", conn.during, conn.deadline)
	}
}

func TestZeroMaskNeedsTLS(t *testing.T) {
	client, _ := pair(t, AcceptOptions{}, DialOptions{ZeroMask: true})
	if client.zeroMask {
		t.Error("frames go unmasked over plain TCP")
	}
	address, config, accepted := serveTLS(t)
	client, _, err := Dial(t.Context(), address, DialOptions{Proxy: noProxy, TLS: config, ZeroMask: true})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server := <-accepted
	defer server.Close()
	limit(t, client, server)
	if _, err := client.Write([]byte("clear")); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 5)
	if _, err := io.ReadFull(server, p); err != nil || string(p) != "clear" || !client.zeroMask {
		t.Fatalf("read %q, %v", p, err)
	}
	if client.TCPConn() == nil || server.TCPConn() == nil {
		t.Error("no TCP connection found under TLS")
	}
}

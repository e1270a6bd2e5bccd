package websocket

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"
)

// gateway is a proxy for tests: every connection asked for leads to the same server, whatever its name.
type gateway struct {
	address string
	asked   chan string // what each client wanted, and as whom
}

// startGateway listens and serves each connection with greet, which returns what was asked for, "" for a refusal.
func startGateway(t *testing.T, server string, config *tls.Config, greet func(net.Conn) string) *gateway {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gateway{address: ln.Addr().String(), asked: make(chan string, 16)}
	if config != nil {
		ln = tls.NewListener(ln, config)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			client, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer client.Close()
				_ = client.SetDeadline(time.Now().Add(time.Minute))
				asked := greet(client)
				g.asked <- asked
				if asked != "" {
					bridge(client, server)
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		serving.Wait()
	})
	return g
}

// bridge copies both ways until one side ends.
func bridge(client net.Conn, server string) {
	target, err := net.Dial("tcp", server)
	if err != nil {
		return
	}
	var copying sync.WaitGroup
	copying.Go(func() {
		_, _ = io.Copy(target, client)
		_ = target.Close()
	})
	_, _ = io.Copy(client, target)
	_ = client.Close()
	copying.Wait()
}

// greetHTTP answers CONNECT.
func greetHTTP(conn net.Conn) string {
	r, err := http.ReadRequest(bufio.NewReader(conn))
	if err != nil || r.Method != http.MethodConnect {
		_, _ = io.WriteString(conn, "HTTP/1.1 405 Method Not Allowed\r\n\r\n")
		return ""
	}
	switch {
	case strings.HasPrefix(r.Host, "forbidden."):
		_, _ = io.WriteString(conn, "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
		return ""
	case strings.HasPrefix(r.Host, "locked.") && r.Header.Get("Proxy-Authorization") == "":
		_, _ = io.WriteString(conn, "HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
		return ""
	case strings.HasPrefix(r.Host, "chatty."):
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\nhello")
		return ""
	case strings.HasPrefix(r.Host, "endless."):
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nX: "+strings.Repeat("x", 64<<10))
		return ""
	case strings.HasPrefix(r.Host, "silent."):
		_, _ = conn.Read(make([]byte, 1))
		return ""
	}
	_, _ = io.WriteString(conn, "HTTP/1.1 200 Connection established\r\nVia: 1.1 test\r\n\r\n")
	return r.Host + " as " + r.Header.Get("Proxy-Authorization")
}

// greetSOCKS answers by RFC 1928 and 1929: names only, with or without a password.
func greetSOCKS(conn net.Conn) string {
	read := func(n int) []byte {
		b := make([]byte, n)
		if _, err := io.ReadFull(conn, b); err != nil {
			return make([]byte, n)
		}
		return b
	}
	methods := read(int(read(2)[1]))
	method := methods[len(methods)-1]
	_, _ = conn.Write([]byte{5, method})
	who := ""
	if method == 2 {
		user := read(int(read(2)[1]))
		who = string(user) + ":" + string(read(int(read(1)[0])))
		if who != "user:secret" {
			_, _ = conn.Write([]byte{1, 1})
			return ""
		}
		_, _ = conn.Write([]byte{1, 0})
	}
	if kind := read(4); kind[1] != 1 || kind[3] != 3 {
		_, _ = conn.Write([]byte{5, 8, 0, 1, 0, 0, 0, 0, 0, 0})
		return ""
	}
	name := string(read(int(read(1)[0])))
	port := binary.BigEndian.Uint16(read(2))
	if strings.HasPrefix(name, "forbidden.") {
		_, _ = conn.Write([]byte{5, 2, 0, 1, 0, 0, 0, 0, 0, 0})
		return ""
	}
	_, _ = conn.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
	return fmt.Sprintf("%s:%d as %s", name, port, who)
}

func fixed(address string) func(*url.URL) (*url.URL, error) {
	return func(*url.URL) (*url.URL, error) { return url.Parse(address) }
}

// exchangeOverProxy proves that bytes pass both ways.
func exchangeOverProxy(t *testing.T, client, server *Conn) {
	t.Helper()
	defer client.Close()
	defer server.Close()
	limit(t, client, server)
	for _, way := range [][2]*Conn{{client, server}, {server, client}} {
		if _, err := way[0].Write([]byte("through")); err != nil {
			t.Fatal(err)
		}
		p := make([]byte, 7)
		if _, err := io.ReadFull(way[1], p); err != nil || string(p) != "through" {
			t.Fatalf("read %q, %v", p, err)
		}
	}
	if client.TCPConn() == nil {
		t.Fatal("no TCP connection found under the proxy's layers")
	}
}

func TestDialThroughProxies(t *testing.T) {
	plainServer, plainAccepted := serve(t, AcceptOptions{})
	tlsServer, config, tlsAccepted := serveTLS(t)
	for _, scheme := range []string{"http", "https"} {
		server, accepted := plainServer, plainAccepted
		if scheme == "https" {
			server, accepted = tlsServer, tlsAccepted
		}
		u, err := url.Parse(server)
		if err != nil {
			t.Fatal(err)
		}
		httpProxy := startGateway(t, u.Host, nil, greetHTTP)
		httpsProxy := startGateway(t, u.Host, &tls.Config{Certificates: certificateOf(t)}, greetHTTP)
		socksProxy := startGateway(t, u.Host, nil, greetSOCKS)
		target := map[string]string{"http": "example.com:80", "https": "example.com:443"}[scheme]
		tests := []struct {
			name  string
			proxy string
			via   *gateway
			asked string
		}{
			{"http", "http://" + httpProxy.address, httpProxy, target + " as "},
			{"http with password", "http://user:secret@" + httpProxy.address, httpProxy, target + " as Basic dXNlcjpzZWNyZXQ="},
			{"https", "https://user:secret@" + httpsProxy.address, httpsProxy, target + " as Basic dXNlcjpzZWNyZXQ="},
			{"socks5", "socks5://" + socksProxy.address, socksProxy, target + " as "},
			{"socks5 with password", "socks5h://user:secret@" + socksProxy.address, socksProxy, target + " as user:secret"},
		}
		for _, test := range tests {
			t.Run(test.name+" to "+scheme, func(t *testing.T) {
				// The server's certificate is for example.com, and so is that of the https proxy, besides 127.0.0.1.
				client, _, err := Dial(t.Context(), scheme+"://example.com", DialOptions{Proxy: fixed(test.proxy), TLS: config})
				if err != nil {
					t.Fatal(err)
				}
				exchangeOverProxy(t, client, <-accepted)
				if asked := <-test.via.asked; asked != test.asked {
					t.Errorf("proxy was asked for %q, want %q", asked, test.asked)
				}
			})
		}
	}
}

// certificateOf returns the certificate that serveTLS uses.
func certificateOf(t *testing.T) []tls.Certificate {
	t.Helper()
	return newTLSServer(t, http.NotFound).TLS.Certificates
}

func TestProxyOfTheEnvironmentIsUsed(t *testing.T) {
	server, accepted := serve(t, AcceptOptions{})
	host := strings.TrimPrefix(server, "http://")
	g := startGateway(t, host, nil, greetHTTP)
	t.Setenv("HTTP_PROXY", "http://"+g.address)
	t.Setenv("NO_PROXY", "direct.test")
	client, _, err := Dial(t.Context(), "ws://far.test:8001/", DialOptions{})
	if err != nil {
		t.Fatal(err)
	}
	exchangeOverProxy(t, client, <-accepted)
	if asked := <-g.asked; asked != "far.test:8001 as " {
		t.Fatalf("proxy was asked for %q", asked)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, _, err := Dial(ctx, "ws://direct.test:1/", DialOptions{}); err == nil {
		t.Fatal("NO_PROXY was not honoured")
	}
	if len(g.asked) != 0 {
		t.Fatalf("proxy was asked for %q", <-g.asked)
	}
}

func TestProxyErrorsSayWhatToDo(t *testing.T) {
	server, _ := serve(t, AcceptOptions{})
	host := strings.TrimPrefix(server, "http://")
	httpProxy := "http://" + startGateway(t, host, nil, greetHTTP).address
	socksProxy := "socks5://" + startGateway(t, host, nil, greetSOCKS).address
	tests := []struct{ name, proxy, target, want string }{
		{"forbidden", httpProxy, "http://forbidden.test", "403 Forbidden"},
		{"password wanted", httpProxy, "http://locked.test", "407: it wants a user and password"},
		{"early data", httpProxy, "http://chatty.test", "before we did"},
		{"endless head", httpProxy, "http://endless.test", "longer than 32768 bytes"},
		{"silence", httpProxy, "http://silent.test", "deadline exceeded"},
		{"socks forbidden", socksProxy, "http://forbidden.test", "not allowed"},
		{"socks wrong password", "socks5://user:wrong@" + strings.TrimPrefix(socksProxy, "socks5://"), "http://a.test", "authentication failed"},
		{"unknown scheme", "ftp://127.0.0.1:1", "http://a.test", "want http, https, socks5"},
		{"nobody there", "http://secret:secret@127.0.0.1:1", "http://a.test", "refused"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			o := DialOptions{Proxy: fixed(test.proxy), HandshakeTimeout: time.Minute}
			if test.name == "silence" {
				o.HandshakeTimeout = 50 * time.Millisecond
			}
			_, _, err := Dial(t.Context(), test.target, o)
			if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "secret") {
				t.Fatalf("error %v, want %q in it and no secret", err, test.want)
			}
			if !strings.Contains(err.Error(), "through proxy") {
				t.Fatalf("error %v does not name the proxy", err)
			}
		})
	}
	t.Run("choice fails", func(t *testing.T) {
		why := errors.New("no such proxy")
		choose := func(*url.URL) (*url.URL, error) { return nil, why }
		if _, _, err := Dial(t.Context(), "http://a.test", DialOptions{Proxy: choose}); !errors.Is(err, why) {
			t.Fatal(err)
		}
	})
}

func TestDialRefusesAnUnknownCertificate(t *testing.T) {
	address, _, _ := serveTLS(t)
	var unknown *tls.CertificateVerificationError
	if _, _, err := Dial(t.Context(), address, DialOptions{Proxy: noProxy}); !errors.As(err, &unknown) {
		t.Fatalf("dial: %v", err)
	}
}

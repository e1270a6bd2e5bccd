package proxy

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/pikoproxy/piko/internal/router"
	"github.com/pikoproxy/piko/internal/tunnel"
	"github.com/pikoproxy/piko/internal/websocket"
)

// An upgrade service greets at once, echoes in upper case, and says goodbye when it has seen the end.
func upgradeService(c net.Conn, br *bufio.Reader) {
	head, err := readRequestHead(br)
	if err != nil {
		return
	}
	if n := strings.Count(head, "Content-Length: 5\r\n"); n == 1 {
		io.CopyN(io.Discard, br, 5)
	}
	i := strings.Index(head, "\r\nUpgrade: ") + len("\r\nUpgrade: ")
	token, _, _ := strings.Cut(head[i:], "\r\n")
	fmt.Fprintf(c, "HTTP/1.1 101 Whatever\r\nConnection: upgrade\r\nUpgrade: %s\r\nX-Key: k\r\nPiko-Error: no\r\n\r\nhello ",
		strings.ToUpper(token))
	all, err := io.ReadAll(br)
	if err == nil {
		fmt.Fprintf(c, "%s bye", bytes.ToUpper(all))
	}
}

func TestUpgradePassesBytesAndHalfCloseBothWays(t *testing.T) {
	f := newFixture(t, nil)
	s := f.serveRaw(upgradeService)
	for _, token := range []string{"websocket", "SPDY/3.1", "tcp"} {
		c, br := f.dial()
		// Bytes behind the request belong to the new protocol as well.
		fmt.Fprintf(c, "POST /up HTTP/1.1\r\nHost: ep1.piko.test\r\nConnection: upgrade\r\nUpgrade: %s\r\nContent-Length: 5\r\n\r\n"+
			"12345early ", token)
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(token, err)
		}
		if resp.StatusCode != 101 || !strings.EqualFold(resp.Header.Get("Upgrade"), token) || resp.Header.Get("X-Key") != "k" ||
			resp.Header.Get("Piko-Error") != "" {
			t.Fatalf("%s: %v", token, resp)
		}
		greeting := make([]byte, 6)
		if _, err := io.ReadFull(br, greeting); err != nil || string(greeting) != "hello " {
			t.Fatalf("%s: %q %v", token, greeting, err)
		}
		io.WriteString(c, "late")
		c.(*net.TCPConn).CloseWrite()
		if rest, err := io.ReadAll(br); err != nil || string(rest) != "EARLY LATE bye" {
			t.Errorf("%s: %q %v", token, rest, err)
		}
	}
	if n := len(s.opened()); n != 3 {
		t.Errorf("%d streams for 3 upgrades: one was used again", n)
	}
}

func TestUpgradeBreaksOnBothSides(t *testing.T) {
	f := newFixture(t, nil)
	reading := make(chan error, 1)
	breakOff := make(chan struct{})
	f.serveRaw(func(c net.Conn, br *bufio.Reader) {
		head, _ := readRequestHead(br)
		io.WriteString(c, "HTTP/1.1 101 OK\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
		if strings.HasPrefix(head, "GET /service") {
			<-breakOff
			c.(*net.TCPConn).SetLinger(0)
			return
		}
		_, err := io.ReadAll(br)
		reading <- err
	})
	open := func(path string) (net.Conn, *bufio.Reader) {
		c, br := f.dial()
		fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: ep1.piko.test\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", path)
		if resp, err := http.ReadResponse(br, nil); err != nil || resp.StatusCode != 101 {
			t.Fatal(resp, err)
		}
		return c, br
	}
	c, _ := open("/client")
	c.(*net.TCPConn).SetLinger(0)
	c.Close()
	if err := await(t, reading, "end at the service"); err == nil {
		t.Error("the service takes a client that broke off for one that ended")
	}
	_, br := open("/service")
	close(breakOff)
	if _, err := br.ReadByte(); err == nil || err == io.EOF {
		t.Errorf("the client takes a service that broke off for one that ended: %v", err)
	}
}

func TestUpgradeToSomethingElseIsRefused(t *testing.T) {
	f := newFixture(t, nil)
	f.serveRaw(answer("HTTP/1.1 101 OK\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\nContent-Length"))
	resp, _, err := f.raw("GET / HTTP/1.1\r\nHost: ep1.piko.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	if err != nil || resp.StatusCode != 502 || resp.Header.Get("Piko-Error") != "PIKO-E4006" {
		t.Errorf("%v %v", resp, err)
	}
}

// When the service does not switch, the client's next bytes are an ordinary request.
func TestRefusedUpgradeStaysHTTP(t *testing.T) {
	f := newFixture(t, nil)
	s := f.serveHTTP(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Upgrade", "websocket")
		w.WriteHeader(http.StatusUpgradeRequired)
	})
	c, br := f.dial()
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: ep1.piko.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"+
		"GET / HTTP/1.1\r\nHost: ep2.piko.test\r\n\r\n")
	for _, want := range []int{426, 502} {
		resp, err := http.ReadResponse(br, nil)
		if err != nil || resp.StatusCode != want {
			t.Fatalf("%v %v, want %d", resp, err, want)
		}
		if want == 426 && resp.Header.Get("Upgrade") != "websocket" {
			t.Error("426 does not say what to upgrade to")
		}
		readAll(t, resp)
	}
	if n := len(s.opened()); n != 1 {
		t.Errorf("%d streams", n)
	}
}

func (f *fixture) offerTCP(endpoint string, handle func(net.Conn, *bufio.Reader)) *tcpSession {
	s := f.serveRaw(handle)
	f.router.RemoveSession(s)
	f.router.Add(endpoint, s, router.UpstreamOptions{Weight: 1, Protocol: tunnel.ProtocolTCP})
	return s
}

func TestTCPOverWebSocket(t *testing.T) {
	f := newFixture(t, nil)
	s := f.offerTCP("my-tcp", func(c net.Conn, br *bufio.Reader) {
		all, err := io.ReadAll(br)
		if err == nil {
			fmt.Fprintf(c, "%d bytes", len(all))
		}
	})
	for _, base := range []string{"", "/some/base"} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		c, _, err := websocket.Dial(ctx, "ws://"+f.addr+base+"/_piko/v1/tcp/My-TCP", websocket.DialOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write(make([]byte, 300<<10)); err != nil {
			t.Fatal(err)
		}
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(c); err != nil || string(got) != fmt.Sprint(300<<10, " bytes") {
			t.Errorf("%q %v", got, err)
		}
	}
	if h := s.opened()[0]; h.Endpoint != "my-tcp" || h.Protocol != tunnel.ProtocolTCP || !strings.HasPrefix(h.Client, "127.0.0.1:") {
		t.Errorf("stream header %+v", h)
	}
}

func TestTCPFailsBeforeTheUpgrade(t *testing.T) {
	f := newFixture(t, nil)
	for path, want := range map[string]string{"nobody": "502 no available upstreams", "..": "400 invalid endpoint id"} {
		resp, body, err := f.raw("GET /_piko/v1/tcp/" + path + " HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
			"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
		if err != nil || !strings.HasPrefix(want, fmt.Sprint(resp.StatusCode)) || !strings.Contains(body, `"error":"`+want[4:]) {
			t.Errorf("%s: %v %s %v, want %s", path, resp, body, err, want)
		}
	}
}

package agent

import (
	"bufio"
	"crypto/tls"
	"encoding/hex"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/tunnel"
)

func TestSpliceHalfClosesBothWays(t *testing.T) {
	address := tcpService(t, func(c *net.TCPConn) {
		defer func() { _ = c.Close() }()
		_, _ = c.Write([]byte("greeting,"))
		_ = c.CloseWrite() // ends first, and still reads
		b, _ := io.ReadAll(c)
		if string(b) != "late words" {
			t.Errorf("service reads %q", b)
		}
	})
	h := start(t, nil, listenerFor("tcp", "e", address))
	if got := ask(t, h.open(tunnel.Header{Endpoint: "e"}), "late words"); got != "greeting," {
		t.Errorf("client reads %q", got)
	}
	h = start(t, nil, listenerFor("tcp", "e", tcpService(t, shout)))
	if got := ask(t, h.open(tunnel.Header{Endpoint: "e"}), "first the client"); got != "FIRST THE CLIENT" {
		t.Errorf("client reads %q", got)
	}
}

func TestBrokenServiceDoesNotLookLikeAnEnd(t *testing.T) {
	address := tcpService(t, func(c *net.TCPConn) {
		_, _ = io.ReadFull(c, make([]byte, 1))
		_, _ = c.Write([]byte("half of"))
		_ = c.SetLinger(0)
		_ = c.Close()
	})
	h := start(t, nil, listenerFor("tcp", "e", address))
	st := h.open(tunnel.Header{Endpoint: "e"})
	if _, err := st.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(st); err == nil {
		t.Errorf("client reads %q and a clean end", b)
	}
}

func TestBrokenClientResetsTheService(t *testing.T) {
	got := make(chan error, 1)
	address := tcpService(t, func(c *net.TCPConn) {
		defer func() { _ = c.Close() }()
		_, err := io.ReadAll(c)
		got <- err
	})
	h := start(t, nil, listenerFor("tcp", "e", address))
	st := h.open(tunnel.Header{Endpoint: "e"})
	if _, err := st.Write([]byte("half of")); err != nil {
		t.Fatal(err)
	}
	_ = st.Reset()
	if err := <-got; err == nil {
		t.Error("the service reads a clean end")
	}
}

func TestDeadServiceIsARefusalUntilItIsBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "service.sock")
	for _, change := range []func(*config.Listener){
		func(*config.Listener) {},
		func(l *config.Listener) { l.HostHeader = "service.test" },
	} {
		l := listenerFor("http", "e", "unix:"+path)
		change(&l)
		h := start(t, nil, l)
		for range 3 {
			if code := h.refused(tunnel.Header{Endpoint: "e", Protocol: tunnel.ProtocolHTTP}); code != tunnel.CodeServiceUnreachable {
				t.Errorf("stream is answered with %q", code)
			}
		}
		if n := strings.Count(h.log.String(), "service unreachable"); n != 1 {
			t.Errorf("the log says so %d times", n)
		}
		ln, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		s := httptest.NewUnstartedServer(http.HandlerFunc(echoRequest))
		_ = s.Listener.Close()
		s.Listener = ln
		s.Start()
		if status, body := h.get(h.client("e", tunnel.ProtocolHTTP), "http://client.test/"); status != 200 ||
			!strings.HasPrefix(body, "GET / host=") {
			t.Errorf("answer is %d %q", status, body)
		}
		eventually(t, "good news in the log", func() bool { return strings.Contains(h.log.String(), "service reachable again") })
		s.Close()
	}
}

func TestSplicedHTTPIsUntouched(t *testing.T) {
	const request = "GET /a//b?x=%zz;y HTTP/1.1\r\nhOsT: Odd.Test\r\nX-Odd:  spaced \r\n\r\n"
	got := make(chan string, 1)
	address := tcpService(t, func(c *net.TCPConn) {
		defer func() { _ = c.Close() }()
		b := make([]byte, len(request))
		_, _ = io.ReadFull(c, b)
		got <- string(b)
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	})
	h := start(t, nil, listenerFor("http", "e", address))
	st := h.open(tunnel.Header{Endpoint: "e", Protocol: tunnel.ProtocolHTTP})
	if _, err := st.Write([]byte(request)); err != nil {
		t.Fatal(err)
	}
	if b := <-got; b != request {
		t.Errorf("service reads %q", b)
	}
}

func TestOneStreamKeepsOneConnection(t *testing.T) {
	conns := make(chan struct{}, 10)
	s := httptest.NewUnstartedServer(http.HandlerFunc(echoRequest))
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			conns <- struct{}{}
		}
	}
	s.Start()
	t.Cleanup(s.Close)
	h := start(t, nil, listenerFor("http", "e", s.URL))
	st := h.open(tunnel.Header{Endpoint: "e", Protocol: tunnel.ProtocolHTTP})
	r := bufio.NewReader(st)
	for range 5 {
		if _, err := io.WriteString(st, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
	}
	if len(conns) != 1 {
		t.Errorf("the service sees %d connections", len(conns))
	}
}

func TestProxyProtocolTellsTheServiceWhoTheClientIs(t *testing.T) {
	heads := make(chan *proxyproto.Header, 1)
	read := func(c net.Conn) {
		defer func() { _ = c.Close() }()
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		r := bufio.NewReader(c)
		head, err := proxyproto.Read(r)
		if err != nil {
			t.Error(err)
		}
		heads <- head
		b, _ := io.ReadAll(r)
		_, _ = c.Write(b)
	}
	address := tcpService(t, func(c *net.TCPConn) { read(c) })
	for name, c := range map[string]struct {
		version, client, wantSource string
		wantVersion                 byte
	}{
		"v1 IPv4":       {"v1", "192.0.2.7:4444", "192.0.2.7:4444", 1},
		"v2 IPv4":       {"v2", "192.0.2.7:4444", "192.0.2.7:4444", 2},
		"v1 IPv6":       {"v1", "[2001:db8::7]:4444", "[2001:db8::7]:4444", 1},
		"v2 IPv6":       {"v2", "[2001:db8::7]:4444", "[2001:db8::7]:4444", 2},
		"v1 not known":  {"v1", "", "", 1},
		"v2 not known":  {"v2", "", "", 2},
		"v2 not an IP":  {"v2", "client.test:80", "", 2},
		"v1 odd client": {"v1", "\r\nPROXY", "", 1},
	} {
		t.Run(name, func(t *testing.T) {
			l := listenerFor("tcp", "e", address)
			l.ProxyProtocol = c.version
			h := start(t, nil, l)
			if got := ask(t, h.open(tunnel.Header{Endpoint: "e", Client: c.client}), "payload"); got != "payload" {
				t.Errorf("answer is %q", got)
			}
			head := <-heads
			if head.Version != c.wantVersion {
				t.Errorf("version is %d", head.Version)
			}
			source := ""
			if head.Command == proxyproto.PROXY && head.SourceAddr != nil {
				source = head.SourceAddr.String()
			}
			if source != c.wantSource {
				t.Errorf("source is %q, want %q", source, c.wantSource)
			}
		})
	}
}

func TestProxyProtocolBytes(t *testing.T) {
	client := &net.TCPAddr{IP: net.ParseIP("192.0.2.7"), Port: 4444}
	tcp := &net.TCPAddr{IP: net.ParseIP("127.0.0.1"), Port: 6379}
	unix := &net.UnixAddr{Name: "/run/s", Net: "unix"}
	const signature = "0d0a0d0a000d0a515549540a"
	for name, c := range map[string]struct {
		version         byte
		client, service net.Addr
		want            string
	}{
		"v1":         {1, client, tcp, "PROXY TCP4 192.0.2.7 127.0.0.1 4444 6379\r\n"},
		"v1 unix":    {1, client, unix, "PROXY TCP4 192.0.2.7 0.0.0.0 4444 0\r\n"},
		"v1 unknown": {1, nil, tcp, "PROXY UNKNOWN\r\n"},
		"v2":         {2, client, tcp, unhex(t, signature+"2111000cc00002077f000001115c18eb")},
		"v2 unix":    {2, client, unix, unhex(t, signature+"2111000cc000020700000000115c0000")},
		"v2 unknown": {2, nil, tcp, unhex(t, signature+"20000000")},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := proxyHeader(c.version, c.client, c.service).Format()
			if err != nil || string(got) != c.want {
				t.Errorf("header is %q, %v; want %q", got, err, c.want)
			}
		})
	}
}

func unhex(t *testing.T, s string) string {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestFullListenerRefusesConnections(t *testing.T) {
	l := listenerFor("tcp", "e", tcpService(t, shout))
	l.MaxInFlight = 2
	h := start(t, nil, l)
	a, b := h.open(tunnel.Header{Endpoint: "e"}), h.open(tunnel.Header{Endpoint: "e"})
	if code := h.refused(tunnel.Header{Endpoint: "e"}); code != tunnel.CodeOverloaded {
		t.Errorf("third stream is answered with %q", code)
	}
	if got := ask(t, a, "x"); got != "X" {
		t.Errorf("answer is %q", got)
	}
	_ = a.Close()
	eventually(t, "room", func() bool { return h.refused(tunnel.Header{Endpoint: "e"}) == "" })
	_ = b
}

func TestRawBytesNeedAListenerThatWasDeclaredForThem(t *testing.T) {
	h := start(t, nil, listenerFor("http", "web", tcpService(t, shout)), listenerFor("tcp", "raw", tcpService(t, shout)))
	if code := h.refused(tunnel.Header{Endpoint: "web", Protocol: tunnel.ProtocolTCP}); code != tunnel.CodeNotListening {
		t.Errorf("stream of bytes for an HTTP listener is answered with %q", code)
	}
	if got := ask(t, h.open(tunnel.Header{Endpoint: "raw", Protocol: tunnel.ProtocolHTTP}), "any"); got != "ANY" {
		t.Errorf("answer is %q", got)
	}
}

func tlsService(t *testing.T, h2 bool) *httptest.Server {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Seen", r.Proto+" "+r.Host)
	}))
	s.EnableHTTP2 = h2
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func TestServiceOverTLSSpeaksWhatTheStreamCarries(t *testing.T) {
	for name, c := range map[string]struct {
		h2       bool
		protocol string
		host     string
		want     string
	}{
		"http spliced": {false, tunnel.ProtocolHTTP, "", "HTTP/1.1 client.test"},
		"http1 of two": {true, tunnel.ProtocolHTTP, "", "HTTP/1.1 client.test"},
		"h2 spliced":   {true, tunnel.ProtocolH2, "", "HTTP/2.0 client.test"},
		"http proxied": {true, tunnel.ProtocolHTTP, "service.test", "HTTP/1.1 service.test"},
		"h2 proxied":   {true, tunnel.ProtocolH2, "service.test", "HTTP/2.0 service.test"},
	} {
		t.Run(name, func(t *testing.T) {
			s := tlsService(t, c.h2)
			l := listenerFor("http", "e", s.URL)
			l.HostHeader = c.host
			l.TLS.InsecureSkipVerify = true
			h := start(t, nil, l)
			res, err := h.client("e", c.protocol).Get("http://client.test/")
			if err != nil {
				t.Fatal(err)
			}
			_ = res.Body.Close()
			if got := res.Header.Get("X-Seen"); got != c.want {
				t.Errorf("the service sees %q, want %q", got, c.want)
			}
		})
	}
}

func TestServiceWithoutTrustOrHTTP2IsARefusal(t *testing.T) {
	s := tlsService(t, false)
	h := start(t, nil, listenerFor("http", "untrusted", s.URL))
	if code := h.refused(tunnel.Header{Endpoint: "untrusted", Protocol: tunnel.ProtocolHTTP}); code != tunnel.CodeServiceUnreachable {
		t.Errorf("stream is answered with %q", code)
	}
	l := listenerFor("http", "old", s.URL)
	l.TLS.InsecureSkipVerify = true
	h = start(t, nil, l)
	if code := h.refused(tunnel.Header{Endpoint: "old", Protocol: tunnel.ProtocolH2}); code != tunnel.CodeServiceUnreachable {
		t.Errorf("h2 stream is answered with %q", code)
	}
}

func TestServiceOverTLSIsAskedForItsOwnName(t *testing.T) {
	for addr, want := range map[string]string{"https://service.test:8443": "service.test", "https://127.0.0.1": "127.0.0.1"} {
		s := newService(listenerFor("http", "e", addr), &tls.Config{})
		if s.tls.ServerName != want {
			t.Errorf("%s: server name is %q", addr, s.tls.ServerName)
		}
	}
	named := newService(listenerFor("http", "e", "https://127.0.0.1"), &tls.Config{ServerName: "given.test"})
	if named.tls.ServerName != "given.test" {
		t.Errorf("server name is %q", named.tls.ServerName)
	}
}

func TestAddressesThatLookLikeMetadataServicesAreDangerous(t *testing.T) {
	for addr, want := range map[string]bool{
		"http://169.254.169.254":          true,
		"169.254.1.1:80":                  true,
		"[fe80::1]:80":                    true,
		"[fd00:ec2::254]:80":              true,
		"[::ffff:169.254.169.254]:80":     true,
		"http://metadata.google.internal": true,
		"METADATA.google.internal.:80":    true,
		"100.100.100.200:80":              true,
		"localhost:80":                    false,
		"3000":                            false,
		"10.0.0.1:80":                     false,
		"unix:/run/metadata":              false,
		"metadata.example.com:80":         false,
	} {
		if got := newService(listenerFor("http", "e", addr), &tls.Config{}).dangerous(); got != want {
			t.Errorf("%s: dangerous is %v", addr, got)
		}
	}
}

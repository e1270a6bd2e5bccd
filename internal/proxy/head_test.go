package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/syntax"
)

// recorder is a service that answers 200 and tells what it was sent.
func (f *fixture) recorder() chan string {
	heads := make(chan string, 100)
	f.serveRaw(func(c net.Conn, br *bufio.Reader) {
		for {
			head, err := readRequestHead(br)
			if err != nil {
				return
			}
			if m := regexp.MustCompile(`Content-Length: (\d+)`).FindStringSubmatch(head); m != nil {
				var n int64
				fmt.Sscan(m[1], &n)
				io.CopyN(io.Discard, br, n)
			}
			heads <- head
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}
	})
	return heads
}

func TestRequestHeads(t *testing.T) {
	f := newFixture(t, nil)
	heads := f.recorder()
	for _, c := range []struct {
		name, request string
		status        int
		has, hasNot   string // separated by '|'; compared without regard to case
	}{
		{"plain", "GET /t?a=1 HTTP/1.1\r\nHost: ep1.piko.test\r\n\r\n", 200,
			"get /t?a=1 http/1.1\r\nhost: ep1.piko.test\r\n|x-forwarded-for: 127.0.0.1\r\n|x-forwarded-proto: http\r\n|" +
				"x-forwarded-host: ep1.piko.test\r\n|forwarded: for=127.0.0.1;host=ep1.piko.test;proto=http\r\n",
			"accept-encoding|user-agent|connection|content-length|transfer-encoding"},
		{"by header", "GET / HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nx-piko-endpoint: EP1\r\n\r\n", 200,
			"host: 127.0.0.1:8000\r\n|forwarded: for=127.0.0.1;host=\"127.0.0.1:8000\";proto=http", "x-piko"},
		{"header before host", "GET / HTTP/1.1\r\nHost: other.piko.test\r\nX-Piko-Endpoint: ep1\r\n\r\n", 200, "other.", "x-piko"},
		{"empty header", "GET / HTTP/1.1\r\nHost: ep1.piko.test\r\nX-Piko-Endpoint:\r\n\r\n", 400, "", ""},
		{"header twice", "GET / HTTP/1.1\r\nHost: ep1.piko.test\r\nX-Piko-Endpoint: ep1\r\nX-Piko-Endpoint: ep1\r\n\r\n", 400, "", ""},
		{"header list", "GET / HTTP/1.1\r\nHost: ep1.piko.test\r\nX-Piko-Endpoint: ep1, ep2\r\n\r\n", 400, "", ""},
		{"header path", "GET / HTTP/1.1\r\nHost: ep1.piko.test\r\nX-Piko-Endpoint: ../ep1\r\n\r\n", 400, "", ""},
		{"absolute form", "GET http://ep1.piko.test/t?x HTTP/1.1\r\nHost: ep2.piko.test\r\n\r\n", 200,
			"get /t?x http/1.1\r\nhost: ep1.piko.test\r\n", "ep2"},
		{"absolute form without path", "GET http://ep1.piko.test?x HTTP/1.1\r\nHost: ep1.piko.test\r\n\r\n", 200, "get /?x http", ""},
		{"absolute form with user", "GET http://ep1.piko.test@evil.example/ HTTP/1.1\r\nHost: ep1.piko.test\r\n\r\n", 400, "", ""},
		{"absolute form ftp", "GET ftp://ep1.piko.test/ HTTP/1.1\r\nHost: ep1.piko.test\r\n\r\n", 400, "", ""},
		{"double slash", "GET //evil.example/t HTTP/1.1\r\nHost: ep1.piko.test\r\n\r\n", 200, "get //evil.example/t http", ""},
		{"fragment", "GET /t#x HTTP/1.1\r\nHost: ep1.piko.test\r\n\r\n", 400, "", ""},
		{"high bytes", "GET /t\xe9 HTTP/1.1\r\nHost: ep1.piko.test\r\n\r\n", 400, "", ""},
		{"encoded", "GET /a%2Fb%2f..%2ft HTTP/1.1\r\nHost: ep1.piko.test\r\n\r\n", 200, "get /a%2fb%2f..%2ft http", ""},
		{"lower-case method", "get / HTTP/1.1\r\nHost: ep1.piko.test\r\n\r\n", 200, "", ""},
		{"CONNECT", "CONNECT ep1.piko.test:443 HTTP/1.1\r\nHost: ep1.piko.test:443\r\n\r\n", 405, "", ""},
		{"TRACE", "TRACE / HTTP/1.1\r\nHost: ep1.piko.test\r\n\r\n", 405, "", ""},
		{"reserved", "GET /_piko/v1/other HTTP/1.1\r\nHost: ep1.piko.test\r\n\r\n", 404, "", ""},
		{"reserved, encoded", "GET /%5Fpiko/v1/tcp/ep1 HTTP/1.1\r\nHost: ep1.piko.test\r\n\r\n", 404, "", ""},
		{"reserved, other case", "GET /a/_PIKO HTTP/1.1\r\nHost: ep1.piko.test\r\n\r\n", 404, "", ""},
		{"not reserved", "GET /a_piko/b/_pikos HTTP/1.1\r\nHost: ep1.piko.test\r\n\r\n", 200, "/a_piko/b/_pikos", ""},
		{"TCP without WebSocket", "GET /base/_piko/v1/tcp/ep1 HTTP/1.1\r\nHost: ep1.piko.test\r\n\r\n", 426, "", ""},
		{"internal fields", "GET / HTTP/1.1\r\nHost: ep1.piko.test\r\nX-Piko-Forward: true\r\nX-Piko-Tenant-Id: t\r\n" +
			"X_Piko_Forward: 1\r\nX-Piko_Endpoint: ep2\r\nPiko-Error: x\r\nProxy: http://evil\r\nEarly-Data: 1\r\n\r\n", 200,
			"", "iko-forward|tenant|iko_forward|iko_endpoint|piko-error|evil|early"},
		{"forged origin", "GET / HTTP/1.1\r\nHost: ep1.piko.test\r\nX-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Host: evil\r\n" +
			"X-Forwarded-Proto: evil\r\nX-Forwarded-Port: evil\r\nX-Forwarded-Prefix: evil\r\nForwarded: for=evil\r\n" +
			"X-Real-Ip: 203.0.113.9\r\nTrue-Client-Ip: 203.0.113.9\r\nX_Forwarded_For: 203.0.113.9\r\n\r\n", 200,
			"x-forwarded-for: 127.0.0.1\r\n", "203.0.113.9|evil"},
		{"underscore twins", "POST / HTTP/1.1\r\nHost: ep1.piko.test\r\nTransfer_Encoding: chunked\r\nContent_Length: 7\r\n" +
			"Content-Length: 5\r\nApi_Key: 1\r\n\r\nhello", 200, "content-length: 5\r\n|api_key: 1", "ransfer_|ontent_"},
		{"hop by hop", "GET / HTTP/1.1\r\nHost: ep1.piko.test\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\n" +
			"Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nTE: gzip, trailers\r\n\r\n", 200,
			"te: trailers\r\n|connection: te\r\n", "x-hop|keep-alive|proxy-|gzip"},
		{"connection names ours", "GET / HTTP/1.1\r\nHost: ep1.piko.test\r\nConnection: X-Piko-Endpoint\r\n\r\n", 400, "", ""},
		{"connection names twin", "GET / HTTP/1.1\r\nHost: ep1.piko.test\r\nConnection: x_forwarded_for\r\n\r\n", 400, "", ""},
		{"connection names host", "GET / HTTP/1.1\r\nHost: ep1.piko.test\r\nConnection: close, Host\r\n\r\n", 400, "", ""},
		{"connection names length", "POST / HTTP/1.1\r\nHost: ep1.piko.test\r\nConnection: Content-Length\r\nContent-Length: 0\r\n\r\n", 400, "", ""},
		{"connection is no token", "GET / HTTP/1.1\r\nHost: ep1.piko.test\r\nConnection: a b\r\n\r\n", 400, "", ""},
		{"unknown expectation", "POST / HTTP/1.1\r\nHost: ep1.piko.test\r\nExpect: y 100-continue\r\nContent-Length: 5\r\n\r\nhello", 417, "", ""},
		{"h2c upgrade", "GET / HTTP/1.1\r\nHost: ep1.piko.test\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n" +
			"HTTP2-Settings: AAMAAABk\r\n\r\n", 200, "", "h2c|http2-settings|upgrade"},
		{"upgrade without connection", "GET / HTTP/1.1\r\nHost: ep1.piko.test\r\nUpgrade: websocket\r\n\r\n", 200, "", "upgrade"},
		{"upgrade refused", "GET / HTTP/1.1\r\nHost: ep1.piko.test\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n", 200,
			"connection: upgrade\r\nupgrade: websocket\r\n", ""},
		{"empty POST", "POST / HTTP/1.1\r\nHost: ep1.piko.test\r\n\r\n", 200, "content-length: 0\r\n", ""},
		{"OPTIONS counts hops", "OPTIONS / HTTP/1.1\r\nHost: ep1.piko.test\r\nMax-Forwards: 3\r\n\r\n", 200, "max-forwards: 2\r\n", ": 3"},
		{"OPTIONS for us", "OPTIONS / HTTP/1.1\r\nHost: ep1.piko.test\r\nMax-Forwards: 0\r\n\r\n", 204, "", ""},
		{"HTTP/1.0", "GET / HTTP/1.0\r\nX-Piko-Endpoint: ep1\r\n\r\n", 200, "get / http/1.1\r\nhost: ep1\r\n", ""},
		{"foreign token stays", "GET / HTTP/1.1\r\nHost: ep1.piko.test\r\nAuthorization: Basic eDp5\r\n\r\n", 200, "authorization: basic", ""},
	} {
		resp, body, err := f.raw(c.request)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if resp.StatusCode != c.status {
			t.Errorf("%s: status %d %s, want %d", c.name, resp.StatusCode, body, c.status)
		}
		if c.status != 200 {
			if len(heads) != 0 {
				t.Errorf("%s: the service was asked: %q", c.name, <-heads)
			}
			if c.status >= 400 && resp.Header.Get("Piko-Error") == "" {
				t.Errorf("%s: no code", c.name)
			}
			continue
		}
		head := strings.ToLower(await(t, heads, c.name))
		for _, want := range strings.Split(c.has, "|") {
			if !strings.Contains(head, want) {
				t.Errorf("%s: no %q in %q", c.name, want, head)
			}
		}
		for _, bad := range strings.Split(c.hasNot, "|") {
			if bad != "" && strings.Contains(head, bad) {
				t.Errorf("%s: %q in %q", c.name, bad, head)
			}
		}
	}
}

func TestTooManyFields(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.MaxHeaderFields = 10 })
	f.recorder()
	for n, want := range map[int]int{10: 200, 11: 431} {
		resp, _, err := f.raw("GET / HTTP/1.1\r\nHost: ep1.piko.test\r\n" + strings.Repeat("X: y\r\n", n) + "\r\n")
		if err != nil || resp.StatusCode != want {
			t.Errorf("%d fields: %v %v, want %d", n, resp, err, want)
		}
	}
}

func TestDomains(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.Domains = []string{"piko.test"} })
	heads := f.recorder()
	for host, want := range map[string]int{
		"ep1.piko.test": 200, "EP1.PIKO.TEST.:80": 200, "ep1.evil.test": 404, "piko.test": 404, ".piko.test": 400, "127.0.0.1": 400,
	} {
		resp, _, err := f.raw("GET / HTTP/1.1\r\nHost: " + host + "\r\n\r\n")
		if err != nil || resp.StatusCode != want {
			t.Errorf("%s: %v %v, want %d", host, resp, err, want)
		}
	}
	if n := len(heads); n != 2 {
		t.Errorf("%d requests reached the service", n)
	}
}

func TestTrustedProxiesAreBelieved(t *testing.T) {
	f := newFixture(t, func(o *Options) {
		o.TrustedProxies = config.CIDRs{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("10.0.0.0/8")}
	})
	heads := f.recorder()
	_, _, err := f.raw("GET / HTTP/1.1\r\nHost: ep1.piko.test\r\nX-Forwarded-For: 6.6.6.6, 192.0.2.1\r\n" +
		"X-Forwarded-For: 10.0.0.1\r\nX-Forwarded-Proto: HTTPS\r\nX-Forwarded-Host: public.example\r\nX-Forwarded-Port: 443\r\n" +
		"Forwarded: for=192.0.2.1\r\n\r\n")
	if err != nil {
		t.Fatal(err)
	}
	head := await(t, heads, "request")
	for _, want := range []string{
		"\r\nX-Forwarded-For: 6.6.6.6, 192.0.2.1, 10.0.0.1, 127.0.0.1\r\n", "\r\nX-Forwarded-Proto: https\r\n",
		"\r\nX-Forwarded-Host: public.example\r\n", "\r\nX-Forwarded-Port: 443\r\n",
		"\r\nForwarded: for=192.0.2.1, for=127.0.0.1;host=public.example;proto=https\r\n",
	} {
		if !strings.Contains(head, want) {
			t.Errorf("no %q in %q", want, head)
		}
	}
}

func TestClientOf(t *testing.T) {
	trusted := config.CIDRs{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}
	for _, c := range []struct {
		lines string // separated by '|'
		want  string
	}{
		{"192.0.2.1", "192.0.2.1"},
		{"6.6.6.6, 192.0.2.1, 10.0.0.1", "192.0.2.1"},
		{"6.6.6.6|192.0.2.1|10.0.0.1 ,\t10.0.0.2", "192.0.2.1"},
		{"10.0.0.1, 10.0.0.2", "10.0.0.1"},
		{"evil, 10.0.0.1", "10.0.0.1"},
		{"192.0.2.1, evil", "invalid IP"},
		{"192.0.2.1, , 10.0.0.1", "10.0.0.1"},
		{"[2001:db8::1]:443, fd00::1", "2001:db8::1"},
		{"::ffff:192.0.2.1", "192.0.2.1"},
		{"192.0.2.1:5", "192.0.2.1"},
		{"", "invalid IP"},
	} {
		if got := clientOf(strings.Split(c.lines, "|"), trusted).String(); got != c.want {
			t.Errorf("%q: %s, want %s", c.lines, got, c.want)
		}
	}
}

func TestProtectedAndTrailerNames(t *testing.T) {
	for _, name := range []string{"host", "X-Piko-Anything", "x_piko_endpoint", "content-TYPE", "cookie", "Authorization"} {
		if !protected(name) {
			t.Errorf("%s may be removed through Connection", name)
		}
	}
	for name, want := range map[string]bool{
		"Grpc-Status": true, "X-Sum": true, "Digest": true, "Content-Length": false, "X-Piko-Endpoint": false, "Host": false,
		"X_piko_endpoint": false, "Set-Cookie": false, "Authorization": false, "X-Forwarded-For": false, "If-Match": false,
	} {
		if inTrailer(name) != want {
			t.Errorf("inTrailer(%s) is %v", name, !want)
		}
	}
	if !slices.Equal([]bool{syntax.IsToken(""), syntax.IsToken("a b"), syntax.IsToken("a-b_c!")}, []bool{false, false, true}) {
		t.Error("tokens")
	}
}

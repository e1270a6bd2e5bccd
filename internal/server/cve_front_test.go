package server_test

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/pikoproxy/piko/internal/config"
)

// The faults of others in what a client may say about itself, in paths, and in holding on to connections.

func TestCVE_2021_33197_ConnectionNamesWhatAProxyAdds(t *testing.T) {
	n, r := exposed(t, nil)
	n.refused(r, getWith("Connection: X-Forwarded-For, close"), "400")
}

func TestCVE_2024_45410_ConnectionRemovesForwardedFields(t *testing.T) {
	n, r := exposed(t, nil)
	for _, name := range []string{"X-Forwarded-Host", "x-forwarded-proto", "X-Real-Ip", "Forwarded", "x-piko-endpoint", "Authorization"} {
		n.refused(r, getWith("Connection: close, "+name), "400")
	}
}

func TestCVE_2026_29054_ConnectionNamesFieldsInAnyCase(t *testing.T) {
	n, r := exposed(t, nil)
	n.refused(r, getWith("connection: X-fOrWaRdEd-HoSt, close"), "400")
}

func TestCVE_2025_64484_UnderscoreTwins(t *testing.T) {
	n, r := exposed(t, nil)
	n.exchange(getWith("X_Forwarded_For: 6.6.6.6", "X-Forwarded_For: 6.6.6.6", "x_piko_endpoint: other", "Connection: close"))
	if text := strings.ToLower(r.text()); strings.Contains(text, "_for") || strings.Contains(text, "x_piko") {
		t.Errorf("a twin reached the service:\n%s", r.text())
	}
}

func TestCVE_2026_30851_IdentityFieldsOfAClient(t *testing.T) {
	n, r := exposed(t, nil)
	n.exchange(getWith("X-Forwarded-For: 6.6.6.6", "X-Piko-Forward: 1", "X-Piko-Tenant: t", "X-Real-Ip: 6.6.6.6", "Connection: close"))
	if text := r.text(); text == "" || strings.Contains(text, "6.6.6.6") || strings.Contains(strings.ToLower(text), "x-piko") {
		t.Errorf("what a client claims reached the service:\n%s", text)
	}
}

func TestCVE_2022_2880_QueryIsNotRepaired(t *testing.T) {
	n, r := exposed(t, nil)
	for _, query := range []string{"a=1;b=2&c=%zz", "a=%", "x=1&x=2;x=3"} {
		n.unchanged(r, query)
	}
}

// unchanged wants a query to reach the service as it was sent.
func (n *running) unchanged(r *recorder, query string) {
	n.t.Helper()
	n.exchange("GET /q?" + query + " HTTP/1.1\r\nHost: e.piko.test\r\nConnection: close\r\n\r\n")
	if !strings.Contains(r.text(), "GET /q?"+query+" HTTP/1.1\r\n") {
		n.t.Errorf("the query %.80q reached the service as\n%.200s", query, r.text())
	}
}

// Who counts parameters stops somewhere: what stands behind must not be hidden from one of two readers.
func TestCVE_2026_39825_QueryOfMoreParametersThanAnybodyCounts(t *testing.T) {
	n, r := exposed(t, nil)
	n.unchanged(r, strings.Repeat("a&", 6000)+"admin=1")
}

func TestCVE_2026_65600_ReservedPathInDisguise(t *testing.T) {
	n, r := exposed(t, nil)
	for _, path := range []string{ // also CVE-2025-66490
		"/_PIKO/x", "/%5Fpiko/x", "/%5fPiKo/v1/tcp/e", "/a/_piko/", "/_piko%2Fv1%2ftcp%2Fe", "/%5f%70%69%6b%6f",
	} {
		n.reserved(r, path)
	}
}

func TestCVE_2026_48020_ReservedPathBehindDots(t *testing.T) {
	n, r := exposed(t, nil)
	for _, path := range []string{ // also CVE-2026-40912
		"/x/../_piko/v1", "/x/..%2f_piko/v1", "/x/%2e%2e/_piko/v1", "/./_piko/v1", "//_piko/v1", "/x/.%2E/%5Fpiko",
	} {
		n.reserved(r, path)
	}
}

// reserved wants a path to be ours, and no byte of the request to reach the service.
func (n *running) reserved(r *recorder, path string) {
	n.t.Helper()
	n.refused(r, "GET "+path+" HTTP/1.1\r\nHost: e.piko.test\r\nConnection: close\r\n\r\n", "404", "426")
	if r.text() != "" {
		n.t.Errorf("%s: the service was sent\n%s", path, r.text())
	}
}

func TestCVE_2026_27588_OneNameInEverySpelling(t *testing.T) {
	n := start(t, func(c *config.Pikod) { c.Proxy.Auth = keyed(secret) })
	n.agent("a", "e", "other")
	bearer := "Authorization: Bearer " + token(t, secret, inAnHour(), "e")
	for host, want := range map[string]string{
		"e.piko.test": "200", "E.PIKO.TEST": "200", "e.piko.test.": "200", "E.piko.test:80": "200",
		"other.piko.test": "401", "OTHER.piko.test": "401", "Other.piko.test.": "401", "other.piko.test:80": "401",
	} {
		if got := statuses(n.exchange("GET / HTTP/1.1\r\nHost: " + host + "\r\n" + bearer + "\r\nConnection: close\r\n\r\n")); got != want {
			t.Errorf("Host %s: %s, want %s", host, got, want)
		}
	}
}

func TestCVE_2026_40910_OneFieldIsCheckedAndUsed(t *testing.T) {
	n := start(t, func(c *config.Pikod) { c.Proxy.Auth = keyed(secret) })
	n.agent("service of e", "e")
	n.agent("service of other", "other")
	bearer := "Authorization: Bearer " + token(t, secret, inAnHour(), "e")
	for _, fields := range []string{"X-Piko-Endpoint: e", "X-Piko-Endpoint: e\r\nX-Forwarded-Host: other.piko.test"} {
		got := n.exchange("GET / HTTP/1.1\r\nHost: other.piko.test\r\n" + fields + "\r\n" + bearer + "\r\nConnection: close\r\n\r\n")
		if !strings.HasSuffix(got, "service of e") {
			t.Errorf("%q leads to %q", fields, got)
		}
	}
	for _, fields := range []string{"X-Piko-Endpoint: other", "X-Piko-Endpoint: e\r\nX-Piko-Endpoint: other", "X-Piko-Endpoint: e, other"} {
		got := n.exchange("GET / HTTP/1.1\r\nHost: e.piko.test\r\n" + fields + "\r\n" + bearer + "\r\nConnection: close\r\n\r\n")
		if s := statuses(got); s != "401" && s != "400" || strings.Contains(got, "service of") {
			t.Errorf("%q leads to %q", fields, got)
		}
	}
}

func TestCVE_2022_21698_MethodsMakeNoMetrics(t *testing.T) {
	n, _ := exposed(t, nil)
	for i := range 50 {
		n.exchange(fmt.Sprintf("METHOD%d / HTTP/1.1\r\nHost: e.piko.test\r\nConnection: close\r\n\r\n", i))
	}
	if text := n.get(n.url("admin", "/metrics")).body; strings.Contains(text, "METHOD") {
		t.Error("a method that a client made up is the label of a metric")
	}
}

// stalls opens a connection, sends a beginning, and wants the node to close it soon.
func (n *running) stalls(t *testing.T, beginning string) {
	t.Helper()
	conn, err := net.Dial("tcp", n.server.Addr("proxy").String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, beginning); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	began := time.Now()
	if _, err := io.Copy(io.Discard, conn); err != nil && time.Since(began) > patience-time.Second {
		t.Errorf("after %q the connection stays open", beginning)
	}
}

func soon(c *config.Pikod) {
	c.Proxy.ReadHeaderTimeout, c.Proxy.IdleTimeout = config.Duration(300*time.Millisecond), config.Duration(300*time.Millisecond)
}

func TestCVE_2026_56853_StalledPrefaceOfHTTP2(t *testing.T) {
	n, _ := exposed(t, soon)
	for _, part := range []string{"P", "PRI * HT", "PRI * HTTP/2.0\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r", "GET / HTTP/1.1\r\nHo"} {
		n.stalls(t, part)
	}
}

func TestCVE_2026_26999_StalledTLSHandshake(t *testing.T) {
	cert, key, _ := certify(t)
	n := start(t, func(c *config.Pikod) {
		soon(c)
		c.Proxy.Limits.TLSHandshakeTimeout = config.Duration(300 * time.Millisecond)
		c.Proxy.TLS.Cert, c.Proxy.TLS.Key = cert, key
	})
	for _, part := range []string{"\x16", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"} {
		n.stalls(t, part)
	}
}

// The handshake by which an authority asks whose a name is has the same time as any other.
func TestCVE_2026_22045_StalledHandshakeOfAnAuthority(t *testing.T) {
	cert, key, _ := certify(t)
	n := start(t, func(c *config.Pikod) {
		soon(c)
		c.Proxy.Limits.TLSHandshakeTimeout = config.Duration(300 * time.Millisecond)
		c.Proxy.TLS.Cert, c.Proxy.TLS.Key = cert, key
	})
	hello := clientHello(t, &tls.Config{ServerName: "e.piko.test", NextProtos: []string{"acme-tls/1"}})
	n.stalls(t, hello)
	n.stalls(t, hello[:len(hello)/2])
}

// clientHello is the first record of a client.
func clientHello(t *testing.T, c *tls.Config) string {
	t.Helper()
	client, server := net.Pipe()
	defer server.Close()
	ended := make(chan error, 1)
	go func() { ended <- tls.Client(client, c).Handshake() }()
	head := make([]byte, 5)
	if _, err := io.ReadFull(server, head); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, binary.BigEndian.Uint16(head[3:]))
	if _, err := io.ReadFull(server, body); err != nil {
		t.Fatal(err)
	}
	_ = client.Close()
	<-ended
	return string(head) + string(body)
}

// frames opens an HTTP/2 connection without TLS.
func (n *running) frames(t *testing.T) (*http2.Framer, net.Conn) {
	t.Helper()
	conn, err := net.Dial("tcp", n.server.Addr("proxy").String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	f := http2.NewFramer(conn, conn)
	if err := f.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	return f, conn
}

func TestCVE_2023_45288_ContinuationWithoutEnd(t *testing.T) {
	n, _ := exposed(t, nil)
	f, conn := n.frames(t)
	go func() { _, _ = io.Copy(io.Discard, conn) }()
	var block bytes.Buffer
	e := hpack.NewEncoder(&block)
	_ = e.WriteField(hpack.HeaderField{Name: ":method", Value: "GET"})
	err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes()})
	sent := 0
	for ; err == nil && sent < 64<<20; sent += 16 << 10 {
		block.Reset()
		_ = e.WriteField(hpack.HeaderField{Name: "x", Value: strings.Repeat("a", 15<<10), Sensitive: true})
		err = f.WriteContinuation(1, false, block.Bytes())
	}
	if err == nil {
		t.Errorf("%d bytes of one header were taken", sent)
	}
	t.Logf("the connection was closed after %d KiB", sent>>10)
}

func TestCVE_2023_39325_RapidReset(t *testing.T) {
	n, r := exposed(t, nil)
	f, conn := n.frames(t)
	go func() { _, _ = io.Copy(io.Discard, conn) }()
	var block bytes.Buffer
	e := hpack.NewEncoder(&block)
	const most = 20_000
	var err error
	sent := 0
	for id := uint32(1); err == nil && sent < most; id += 2 {
		block.Reset()
		for _, h := range [][2]string{{":method", "GET"}, {":scheme", "http"}, {":authority", "e.piko.test"}, {":path", "/"}} {
			_ = e.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]})
		}
		if err = f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: true}); err == nil {
			err = f.WriteRSTStream(id, http2.ErrCodeCancel)
		}
		sent++
	}
	if got := n.exchange(getWith("Connection: close")); statuses(got) != "200" {
		t.Errorf("another client is answered %q meanwhile", got)
	}
	if served := strings.Count(r.text(), "GET / "); served > most/2 {
		t.Errorf("of %d requests that were cancelled at once %d reached the service", sent, served)
	}
	eventually(t, "the end of the cancelled requests", func() bool {
		return strings.Contains(n.get(n.url("admin", "/metrics")).body, "\npiko_proxy_requests_in_flight 0\n")
	})
	t.Logf("%d streams were reset before the connection ended with %v", sent, err)
}

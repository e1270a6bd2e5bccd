package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sirupsen/logrus"

	"github.com/pikoproxy/piko/internal/auth"
	"github.com/pikoproxy/piko/internal/fault"
	"github.com/pikoproxy/piko/internal/logline"
	"github.com/pikoproxy/piko/internal/router"
	"github.com/pikoproxy/piko/internal/tunnel"
)

func TestShutdownWaitsForRequestsAndSwitchedConnections(t *testing.T) {
	f := newFixture(t, nil)
	started, release := make(chan struct{}), make(chan struct{})
	f.serveRaw(func(c net.Conn, br *bufio.Reader) {
		head, err := readRequestHead(br)
		if err != nil {
			return
		}
		started <- struct{}{}
		<-release
		if strings.Contains(head, "Upgrade: x") {
			io.WriteString(c, "HTTP/1.1 101 OK\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nswitched ")
			started <- struct{}{}
			<-release
			io.WriteString(c, "done")
			return
		}
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone")
	})
	plain, plainReader := f.dial()
	io.WriteString(plain, "GET / HTTP/1.1\r\nHost: ep1.piko.test\r\n\r\n")
	await(t, started, "request")
	up, upReader := f.dial()
	io.WriteString(up, "GET / HTTP/1.1\r\nHost: ep1.piko.test\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
	await(t, started, "upgrade")
	release <- struct{}{}
	// Either of the two may have been released; the other follows.
	over := make(chan error, 1)
	go func() { over <- f.server.Shutdown(t.Context()) }()
	if err := <-f.served; err != nil { // Serve returns as soon as nothing is accepted any more
		t.Error(err)
	}
	f.served <- nil
	if _, err := net.Dial("tcp", f.addr); err == nil {
		t.Error("still accepting")
	}
	select {
	case err := <-over:
		t.Fatalf("shutdown did not wait: %v", err)
	default:
	}
	release <- struct{}{}
	await(t, started, "switch")
	release <- struct{}{}
	if resp, err := http.ReadResponse(plainReader, nil); err != nil || readAll(t, resp) != "done" {
		t.Errorf("%v %v", resp, err)
	}
	if resp, err := http.ReadResponse(upReader, nil); err != nil || resp.StatusCode != 101 {
		t.Errorf("%v %v", resp, err)
	}
	if rest, err := io.ReadAll(io.LimitReader(upReader, 13)); err != nil || string(rest) != "switched done" {
		t.Errorf("%q %v", rest, err)
	}
	up.Close()
	if err := await(t, over, "shutdown"); err != nil {
		t.Error(err)
	}
	if l, err := net.Listen("tcp", "127.0.0.1:0"); err != nil || f.server.Serve(t.Context(), l) == nil {
		t.Errorf("serves after shutdown: %v", err)
	}
}

func TestShutdownCutsOffWhatIsLeft(t *testing.T) {
	f := newFixture(t, nil)
	started := make(chan struct{}, 2)
	ends := make(chan error, 2)
	f.serveRaw(func(c net.Conn, br *bufio.Reader) {
		head, err := readRequestHead(br)
		if err != nil {
			return
		}
		if strings.Contains(head, "Upgrade: x") {
			io.WriteString(c, "HTTP/1.1 101 OK\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
		} else {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
		}
		started <- struct{}{}
		_, err = br.ReadByte()
		ends <- err
	})
	c, br := f.dial()
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: ep1.piko.test\r\n\r\n")
	up, upReader := f.dial()
	io.WriteString(up, "GET / HTTP/1.1\r\nHost: ep1.piko.test\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
	for range 2 {
		await(t, started, "request")
	}
	if _, err := http.ReadResponse(upReader, nil); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := f.server.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("shutdown: %v", err)
	}
	for range 2 {
		if err := await(t, ends, "end at the service"); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("the service sees a clean end: %v", err)
		}
	}
	if _, err := io.ReadAll(upReader); err == nil {
		t.Error("the switched connection looks complete")
	}
	if body, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("%q looks complete", body)
	}
}

type authFunc func(http.Header) (*auth.Identity, error)

func (f authFunc) Authenticate(_ context.Context, h http.Header, _ string) (*auth.Identity, error) {
	return f(h)
}

func TestTokensAreAskedForAndStayHere(t *testing.T) {
	var result error
	f := newFixture(t, func(o *Options) {
		o.Auth = authFunc(func(http.Header) (*auth.Identity, error) {
			if result != nil {
				return nil, result
			}
			return &auth.Identity{}, nil
		})
	})
	const get = "GET / HTTP/1.1\r\nHost: ep1.piko.test\r\n"
	for err, want := range map[error]fault.Fault{
		auth.ErrMissing: fault.MissingAuthorization, auth.ErrMalformed: fault.InvalidAuthorization,
		auth.ErrScheme: fault.UnsupportedAuthType, auth.ErrInvalid: fault.InvalidToken, auth.ErrExpired: fault.ExpiredToken,
		auth.ErrUnknownTenant: fault.UnknownTenant, auth.ErrUnavailable: fault.AuthUnavailable,
		auth.ErrNotPermitted: fault.EndpointNotPermitted, errors.New("other"): fault.InvalidToken,
	} {
		result = fmt.Errorf("wrapped: %w", err)
		resp, _, err := f.raw(get + "\r\n")
		if err != nil || resp.StatusCode != want.Status || resp.Header.Get("Piko-Error") != want.Code {
			t.Errorf("%v: %v %v, want %s", result, resp, err, want.Code)
		}
	}
	// An identity that names no endpoint permits none.
	result = nil
	if resp, _, err := f.raw(get + "\r\n"); err != nil || resp.Header.Get("Piko-Error") != fault.EndpointNotPermitted.Code {
		t.Errorf("%v %v", resp, err)
	}
}

func TestOurTokenDoesNotReachTheService(t *testing.T) {
	for sent, want := range map[string]string{
		"Authorization: Bearer ours\r\n":                                              "",
		"Authorization: Bearer theirs\r\nX-Piko-Authorization: Bearer ours\r\n":       "theirs",
		"X-Piko-Authorization: Bearer ours\r\nX_Piko_Authorization: Bearer ours2\r\n": "",
	} {
		x := &exchange{
			settings: &Settings{}, r: &http.Request{Method: "GET", Host: "h", Header: http.Header{}}, bearer: true,
		}
		for line := range strings.SplitSeq(strings.TrimSuffix(sent, crlf), crlf) {
			f, err := parseField(line)
			if err != nil {
				t.Fatal(err)
			}
			x.r.Header[f.name] = append(x.r.Header[f.name], f.value)
			if f.name == auth.PikoAuthorization {
				x.bearer = false
			}
		}
		head := string(x.appendHead(nil))
		if strings.Contains(head, "ours") || (want != "" && !strings.Contains(head, want)) {
			t.Errorf("%q: the service is sent %q", sent, head)
		}
	}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func TestAccessLogAndMetrics(t *testing.T) {
	var out syncBuffer
	l := logrus.New()
	l.SetOutput(&out)
	l.SetFormatter(&logline.Formatter{JSON: true})
	reg := prometheus.NewRegistry()
	f := newFixture(t, func(o *Options) {
		o.Log, o.Registerer, o.AccessLog = l, reg, true
	})
	s := f.serveHTTP(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		io.WriteString(w, "four")
	})
	for _, request := range []string{
		"POST /p?token=secret HTTP/1.1\r\nHost: ep1.piko.test\r\nContent-Length: 5\r\n\r\nhello",
		"POST /c HTTP/1.1\r\nHost: ep1.piko.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
		"BREW /" + strings.Repeat("l", 1000) + " HTTP/1.1\r\nHost: nobody.piko.test\r\n\r\n",
	} {
		if _, _, err := f.raw(request); err != nil {
			t.Fatal(err)
		}
	}
	f.server.tracker.waitAll() // a line is written when the answer is out
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 3 || strings.Contains(out.String(), "secret") {
		t.Fatalf("log %q", lines)
	}
	want := []map[string]any{
		{"msg": "request", "level": "info", "method": "POST", "path": "/p", "endpoint": "ep1", "status": 200.0, "received": 5.0,
			"sent": 4.0, "session": s.id, "proto": "HTTP/1.1"},
		{"method": "POST", "path": "/c", "received": 5.0},
		{"method": "BREW", "path": "/" + strings.Repeat("l", 255) + "...", "endpoint": "nobody", "status": 502.0, "code": "PIKO-E3001"},
	}
	for i, line := range lines {
		var got map[string]any
		if err := json.Unmarshal([]byte(line), &got); err != nil {
			t.Fatal(err)
		}
		for k, v := range want[i] {
			if got[k] != v {
				t.Errorf("line %d: %s is %v, want %v", i, k, got[k], v)
			}
		}
		if got["duration_us"] == nil || !strings.HasPrefix(fmt.Sprint(got["client"]), "127.0.0.1:") {
			t.Errorf("line %d: %v", i, got)
		}
	}
	metrics := gather(t, reg)
	for name, value := range map[string]float64{
		`piko_proxy_requests_total{method="POST",status="2xx"}`:  2,
		`piko_proxy_requests_total{method="other",status="5xx"}`: 1,
		`piko_proxy_faults_total{code="PIKO-E3001"}`:             1,
		`piko_proxy_received_bytes_total{}`:                      10,
		`piko_proxy_sent_bytes_total{}`:                          8,
		`piko_proxy_requests_in_flight{}`:                        0,
	} {
		if got, ok := metrics[name]; !ok || got != value {
			t.Errorf("%s is %v, want %v", name, got, value)
		}
	}
}

func gather(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := make(map[string]float64)
	for _, family := range families {
		for _, m := range family.GetMetric() {
			var labels []string
			for _, p := range m.GetLabel() {
				labels = append(labels, fmt.Sprintf("%s=%q", p.GetName(), p.GetValue()))
			}
			name := family.GetName() + "{" + strings.Join(labels, ",") + "}"
			values[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return values
}

func TestTLSCarriesBothVersionsAndUpgrades(t *testing.T) {
	borrowed := httptest.NewTLSServer(nil) // for its certificate
	defer borrowed.Close()
	f := newFixture(t, func(o *Options) {
		o.TLS = &tls.Config{Certificates: borrowed.TLS.Certificates, NextProtos: []string{"h2", "http/1.1"}, MinVersion: tls.VersionTLS12}
	})
	f.serveRaw(func(c net.Conn, br *bufio.Reader) {
		for {
			head, err := readRequestHead(br)
			if err != nil {
				return
			}
			if strings.Contains(head, "Upgrade: x") {
				io.WriteString(c, "HTTP/1.1 101 OK\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
				all, _ := io.ReadAll(br)
				fmt.Fprintf(c, "%d bytes", len(all))
				return
			}
			text := strings.Count(head, "\r\nX-Forwarded-Proto: https\r\n")
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d", text)
		}
	})
	roots := x509.NewCertPool()
	roots.AddCert(borrowed.Certificate())
	for _, version := range []string{"h2", "http/1.1"} {
		tr := &http.Transport{
			TLSClientConfig:   &tls.Config{RootCAs: roots, ServerName: "example.com"},
			ForceAttemptHTTP2: version == "h2",
		}
		client := &http.Client{Transport: tr, Timeout: patience}
		r := f.request("GET", "/", nil)
		r.URL.Scheme = "https"
		resp, err := client.Do(r)
		if err != nil || (resp.ProtoMajor == 2) != (version == "h2") || readAll(t, resp) != "1" {
			t.Errorf("%s: %v %v", version, resp, err)
		}
		tr.CloseIdleConnections()
	}
	c, err := tls.Dial("tcp", f.addr, &tls.Config{RootCAs: roots, ServerName: "example.com"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: ep1.piko.test\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n12345")
	br := bufio.NewReader(c)
	if resp, err := http.ReadResponse(br, nil); err != nil || resp.StatusCode != 101 {
		t.Fatal(resp, err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(br); err != nil || string(rest) != "5 bytes" {
		t.Errorf("%q %v", rest, err)
	}
}

func TestSettingsChangeWhileServing(t *testing.T) {
	f := newFixture(t, nil)
	f.serveHTTP(func(w http.ResponseWriter, r *http.Request) {})
	c, br := f.dial()
	for _, want := range []int{200, 404, 200} {
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: ep1.piko.test\r\n\r\n")
		resp, err := http.ReadResponse(br, nil)
		if err != nil || resp.StatusCode != want {
			t.Fatalf("%v %v, want %d", resp, err, want)
		}
		readAll(t, resp)
		if want == 200 {
			f.server.Apply(Settings{Domains: []string{"other.test"}})
		} else {
			f.server.Apply(Settings{})
		}
	}
}

func TestTenantsHaveTheirOwnEndpoints(t *testing.T) {
	f := newFixture(t, func(o *Options) {
		o.Auth = authFunc(func(h http.Header) (*auth.Identity, error) { return nil, nil })
	})
	s := f.serveHTTP(func(w http.ResponseWriter, r *http.Request) {})
	f.router.RemoveSession(s)
	f.router.Add(router.KeyOf("acme", "ep1"), s, router.UpstreamOptions{Weight: 1, Protocol: tunnel.ProtocolHTTP})
	// Who has no tenant does not reach what a tenant offers, whatever header says so.
	resp, _, err := f.raw("GET / HTTP/1.1\r\nHost: ep1.piko.test\r\nX-Piko-Tenant-Id: acme\r\n\r\n")
	if err != nil || resp.StatusCode != 502 {
		t.Errorf("%v %v", resp, err)
	}
}

package console

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"go.uber.org/goleak"

	"github.com/pikoproxy/piko/internal/admin"
	"github.com/pikoproxy/piko/internal/config"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func options() Options {
	log := logrus.New()
	log.SetOutput(io.Discard)
	return Options{Log: log, Listen: func(_, address string, _ bool) (net.Listener, error) { return net.Listen("tcp", address) }}
}

// start runs a console until the test ends.
func start(t *testing.T, c config.Admin, show admin.Options) string {
	t.Helper()
	_, addr := startConsole(t, c, show)
	return addr
}

func startConsole(t *testing.T, c config.Admin, show admin.Options) (*Console, string) {
	t.Helper()
	x, err := New(c, show, options())
	if err != nil {
		t.Fatal(err)
	}
	if err := x.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- x.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return x, "http://" + x.Addr().String()
}

func get(t *testing.T, url, token string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Minute}
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

func TestConsoleWithoutAnAddressOnlyWaits(t *testing.T) {
	x, err := New(config.DefaultAgent().Admin, admin.Options{}, options())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if x.Listen() != nil || x.Run(ctx) != nil || x.Addr() != nil {
		t.Error("no console does something")
	}
	x.Close()
}

func TestConsoleTakesOtherSettings(t *testing.T) {
	var opened []net.Listener
	o := options()
	listen := o.Listen
	o.Listen = func(name, address string, explicit bool) (net.Listener, error) {
		l, err := listen(name, address, explicit)
		opened = append(opened, l)
		return l, err
	}
	x, err := New(config.DefaultAgent().Admin, admin.Options{}, o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- x.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	change := func(f func(*config.Admin)) {
		t.Helper()
		c := x.face.Load().settings
		f(&c)
		commit, retire, err := x.Prepare(c, true)
		if err != nil {
			t.Fatal(err)
		}
		commit()
		retire()
	}
	change(func(c *config.Admin) { c.Listen = "127.0.0.1:0" })
	base := "http://" + x.Addr().String()
	if status, _ := get(t, base+"/debug/pprof/", ""); status != 404 {
		t.Errorf("profiles answer %d", status)
	}
	change(func(c *config.Admin) { c.Pprof = true })
	if status, _ := get(t, base+"/debug/pprof/", ""); status != 200 || base != "http://"+x.Addr().String() {
		t.Errorf("profiles answer %d at %s", status, x.Addr())
	}
	change(func(c *config.Admin) { c.Auth.HMACSecretKey = config.NewSecret("0123456789abcdef0123456789abcdef") })
	if status, _ := get(t, base+"/debug/pprof/", ""); status != 401 {
		t.Errorf("profiles answer %d without a token", status)
	}
	if _, _, err := x.Prepare(config.Admin{Listen: "127.0.0.1:0", TLS: config.TLS{Cert: "/no", Key: "/no"}}, true); err == nil {
		t.Error("a certificate that is not there is taken")
	}
	change(func(c *config.Admin) { c.Listen = "" })
	if x.Addr() != nil {
		t.Error("still open")
	}
	for _, l := range opened { // what answers at its address now may be another process
		_ = l.(*net.TCPListener).SetDeadline(time.Unix(1, 0))
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("the old socket is still open: %v", err)
		}
	}
}

func TestConsoleShowsWhatItIsGiven(t *testing.T) {
	c := config.DefaultAgent().Admin
	c.Listen = "127.0.0.1:0"
	base := start(t, c, admin.Options{
		Gatherer: NewRegistry("v9"),
		Ready:    func() error { return errors.New("not yet") },
		Status:   map[string]admin.StatusFunc{"": func(*http.Request) (any, error) { return []int{1, 2}, nil }},
	})
	for path, want := range map[string]struct {
		status int
		body   string
	}{
		"/health": {200, "ok"}, "/ready": {503, "not yet"}, "/status": {200, "[1,2]"},
		"/metrics": {200, `piko_build_info{version="v9"} 1`},
	} {
		if status, body := get(t, base+path, ""); status != want.status || !strings.Contains(body, want.body) {
			t.Errorf("%s answers %d %s", path, status, body)
		}
	}
}

func TestConsoleWithKeysAsksForATokenOfAnOperator(t *testing.T) {
	const secret = "0123456789abcdef0123456789abcdef"
	token := func(expires int64) string {
		encode := base64.RawURLEncoding.EncodeToString
		signed := encode([]byte(`{"alg":"HS256","typ":"JWT"}`)) + "." + encode(fmt.Appendf(nil, `{"exp":%d}`, expires))
		mac := hmac.New(sha256.New, []byte(secret))
		mac.Write([]byte(signed))
		return signed + "." + encode(mac.Sum(nil))
	}
	c := config.DefaultAgent().Admin
	c.Listen = "127.0.0.1:0"
	c.Auth.HMACSecretKey = config.NewSecret(secret)
	base := start(t, c, admin.Options{
		Status: map[string]admin.StatusFunc{"": func(*http.Request) (any, error) { return "shown", nil }},
	})
	for name, want := range map[string]struct {
		token  string
		status int
		code   string
	}{
		"none":     {"", 401, "PIKO-E2001"},
		"expired":  {token(1), 401, "PIKO-E2005"},
		"no token": {"nonsense", 401, "PIKO-E2004"},
		"good":     {token(time.Now().Add(time.Hour).Unix()), 200, "shown"},
	} {
		t.Run(name, func(t *testing.T) {
			status, body := get(t, base+"/status", want.token)
			if status != want.status || !strings.Contains(body, want.code) {
				t.Errorf("answer is %d %s", status, body)
			}
			if status, _ := get(t, base+"/health", ""); status != 200 {
				t.Errorf("probes get %d", status)
			}
		})
	}
}

func TestBadKeysAndCertificatesAreFoundBeforeAnySocketOpens(t *testing.T) {
	c := config.DefaultAgent().Admin
	c.Listen = "127.0.0.1:0"
	c.TLS.Cert, c.TLS.Key = "/nonexistent", "/nonexistent"
	c.Auth.RSAPublicKey = "no key"
	_, err := New(c, admin.Options{}, options())
	if err == nil || !strings.Contains(err.Error(), "admin.tls") || !strings.Contains(err.Error(), "admin.auth") {
		t.Errorf("New gives %v", err)
	}
}

func TestAnOperatorWithoutACertificateGoesWhenOneIsAskedFor(t *testing.T) {
	server := httptest.NewTLSServer(nil) // for its certificate
	server.Close()
	pair := server.TLS.Certificates[0]
	der, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	text := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate[0]}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})...)
	file := config.File(filepath.Join(t.TempDir(), "pair.pem"))
	if err := os.WriteFile(string(file), text, 0o600); err != nil {
		t.Fatal(err)
	}
	c := config.DefaultAgent().Admin
	c.Listen, c.TLS.Cert, c.TLS.Key = "127.0.0.1:0", file, file
	x, addr := startConsole(t, c, admin.Options{})
	conn, err := tls.Dial("tcp", strings.TrimPrefix(addr, "http://"), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(conn, "GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 4096)); err != nil {
		t.Fatal(err)
	}
	c.TLS.ClientCA = file
	commit, retire, err := x.Prepare(c, true)
	if err != nil {
		t.Fatal(err)
	}
	commit()
	retire()
	if _, err := io.Copy(io.Discard, conn); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection ends with %v, want it broken off", err)
	}
}

// What is ambiguous is refused here as everywhere else, and the connection closed.
func TestTheConsoleIsGuarded(t *testing.T) {
	c := config.DefaultAgent().Admin
	c.Listen = "127.0.0.1:0"
	addr := strings.TrimPrefix(start(t, c, admin.Options{}), "http://")
	for _, request := range []string{
		"GET /health HTTP/1.1\nHost: localhost\n\n",
		"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
		"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
	} {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(time.Minute))
		_, _ = io.WriteString(conn, request)
		text, err := io.ReadAll(conn)
		if err != nil || !strings.HasPrefix(string(text), "HTTP/1.1 400 ") {
			t.Errorf("%q is answered %q, %v", request, text, err)
		}
		_ = conn.Close()
	}
}

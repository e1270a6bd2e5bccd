package diagnose_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/diagnose"
	"github.com/pikoproxy/piko/internal/pikotest"
)

// agentFor returns the settings of an agent that offers a service that is there.
func agentFor(t *testing.T, url string, edits ...func(*config.Agent)) config.Agent {
	t.Helper()
	c := config.DefaultAgent()
	c.Connect.URL = url
	c.Listeners = []config.Listener{pikotest.HTTP("web", pikotest.Serve(t, http.NotFoundHandler()))}
	for _, edit := range edits {
		edit(&c)
	}
	return c
}

// results maps the steps to what came of them.
func results(t *testing.T, r diagnose.Report) map[string]diagnose.Step {
	t.Helper()
	m := map[string]diagnose.Step{}
	for _, s := range r.Steps {
		if _, twice := m[s.Name]; twice {
			t.Errorf("step %s twice", s.Name)
		}
		if s.Result == diagnose.Fail && s.Remedy == "" {
			t.Errorf("step %s fails without a remedy", s.Name)
		}
		m[s.Name] = s
	}
	for _, name := range []string{"token", "proxy", "names", "connect", "tls", "clock", "handshake", "service"} {
		if _, ok := m[name]; !ok {
			t.Errorf("no step %s", name)
		}
	}
	return m
}

// fails wants exactly these steps to fail, with these words in detail or remedy.
func fails(t *testing.T, r diagnose.Report, want map[string]string) {
	t.Helper()
	if r.OK != (len(want) == 0) {
		t.Errorf("ok is %v", r.OK)
	}
	for name, s := range results(t, r) {
		words, expected := want[name]
		if (s.Result == diagnose.Fail) != expected || !strings.Contains(s.Detail+" "+s.Remedy, words) {
			t.Errorf("%s: %s %q, remedy %q; want fail %v with %q", name, s.Result, s.Detail, s.Remedy, expected, words)
		}
	}
}

func signed(t *testing.T, key, claims string) config.Secret {
	t.Helper()
	enc := base64.RawURLEncoding
	text := enc.EncodeToString([]byte(`{"alg":"HS256","typ":"JWT"}`)) + "." + enc.EncodeToString([]byte(claims))
	mac := hmac.New(sha256.New, []byte(key))
	mac.Write([]byte(text))
	return config.NewSecret(text + "." + enc.EncodeToString(mac.Sum(nil)))
}

const key = "0123456789abcdef0123456789abcdef"

func nodeWithTokens(t *testing.T) *pikotest.Node {
	return pikotest.StartNode(t, func(c *config.Pikod) { c.Upstream.Auth.HMACSecretKey = config.NewSecret(key) })
}

func TestAllIsWell(t *testing.T) {
	n := nodeWithTokens(t)
	r := diagnose.Run(t.Context(), agentFor(t, "http://"+n.Upstream, func(c *config.Agent) {
		c.Connect.Token = signed(t, key, `{"exp":9e9,"piko":{"endpoints":["w*"]}}`)
	}), diagnose.Options{})
	fails(t, r, nil)
	if s := results(t, r)["handshake"]; !strings.HasPrefix(s.Detail, "session with node ") {
		t.Errorf("handshake: %q", s.Detail)
	}
	var text, object bytes.Buffer
	if err := r.Text(&text); err != nil || !strings.Contains(text.String(), "PASS  handshake  session with node ") {
		t.Errorf("text is %q, %v", &text, err)
	}
	var back diagnose.Report
	if err := r.JSON(&object); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(object.Bytes(), &back); err != nil || !back.OK || len(back.Steps) != len(r.Steps) {
		t.Errorf("JSON is %s, %v", &object, err)
	}
}

func TestTokens(t *testing.T) {
	n := nodeWithTokens(t)
	hour := time.Now().Add(time.Hour).Unix()
	for name, c := range map[string]struct {
		token config.Secret
		want  map[string]string
	}{
		"missing":         {config.Secret{}, map[string]string{"handshake": "connect.token_file"}},
		"of another key":  {signed(t, strings.ToUpper(key), `{"exp":9e9}`), map[string]string{"handshake": "connect.token_file"}},
		"expired":         {signed(t, key, `{"exp":1000}`), map[string]string{"token": "1970-01-01", "handshake": "401"}},
		"not yet":         {signed(t, key, fmt.Sprintf(`{"exp":9e9,"nbf":%d}`, hour)), map[string]string{"token": "clock", "handshake": "401"}},
		"other endpoints": {signed(t, key, `{"exp":9e9,"piko":{"endpoints":["x","we"]}}`), map[string]string{"token": "endpoints web"}},
		"other role": {
			signed(t, key, `{"exp":9e9,"piko":{"role":["client"]}}`), map[string]string{"token": "role [client]", "handshake": ""},
		},
		"no token at all": {config.NewSecret("password"), map[string]string{"token": "no JSON Web Token", "handshake": "401"}},
	} {
		t.Run(name, func(t *testing.T) {
			fails(t, diagnose.Run(t.Context(), agentFor(t, "http://"+n.Upstream, func(a *config.Agent) {
				a.Connect.Token = c.token
			}), diagnose.Options{}), c.want)
		})
	}
}

func TestClock(t *testing.T) {
	n := pikotest.StartNode(t)
	r := diagnose.Run(t.Context(), agentFor(t, "http://"+n.Upstream), diagnose.Options{
		Now: func() time.Time { return time.Now().Add(2 * time.Minute) },
	})
	fails(t, r, map[string]string{"clock": "+2m"})
}

func TestWhatIsNotThere(t *testing.T) {
	n := pikotest.StartNode(t)
	const nobody = "127.0.0.1:9" // a port that nobody else is given meanwhile
	for name, c := range map[string]struct {
		settings config.Agent
		want     map[string]string
	}{
		"node": {agentFor(t, "http://"+nobody), map[string]string{"connect": "firewall"}},
		"name": {agentFor(t, "http://piko.invalid"), map[string]string{"names": "spelling"}},
		"service": {agentFor(t, "http://"+n.Upstream, func(c *config.Agent) {
			c.Listeners[0].Addr = config.ServiceAddress(nobody)
		}), map[string]string{"service": "start the service"}},
		"proxy": {agentFor(t, "http://"+n.Upstream, func(c *config.Agent) {
			var err error
			if c.Connect.ProxyURL, err = config.ParseProxyURL("http://" + nobody); err != nil {
				t.Fatal(err)
			}
		}), map[string]string{"connect": "connect.proxy_url"}},
		"right port": {agentFor(t, "http://"+n.Proxy), map[string]string{"handshake": "8001"}},
		"TLS":        {agentFor(t, "https://"+n.Upstream), map[string]string{"tls": "http://"}},
	} {
		t.Run("no "+name, func(t *testing.T) { fails(t, diagnose.Run(t.Context(), c.settings, diagnose.Options{}), c.want) })
	}
}

// pair writes a certificate for 127.0.0.1 that signs itself.
func pair(t *testing.T, name string, from, to time.Time, ip ...net.IP) (cert, private string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, IPAddresses: ip,
		NotBefore: from, NotAfter: to, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, private = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, block := range map[string]*pem.Block{
		cert: {Type: "CERTIFICATE", Bytes: der}, private: {Type: "PRIVATE KEY", Bytes: pkcs8},
	} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, private
}

func TestCertificates(t *testing.T) {
	now, here := time.Now(), net.IPv4(127, 0, 0, 1)
	good, goodKey := pair(t, "good.test", now.Add(-time.Hour), now.Add(30*24*time.Hour), here)
	brief, briefKey := pair(t, "brief.test", now.Add(-time.Hour), now.Add(24*time.Hour), here)
	other, otherKey := pair(t, "other.test", now.Add(-time.Hour), now.Add(30*24*time.Hour))
	for name, c := range map[string]struct {
		cert, key, trust string
		client           config.ClientTLS
		mutual           bool
		want             map[string]string
		detail           string
	}{
		"trusted":           {cert: good, key: goodKey, trust: good, detail: `TLS 1.3, "good.test", until `},
		"ends soon":         {cert: brief, key: briefKey, trust: brief, detail: ": soon"},
		"unknown authority": {cert: good, key: goodKey, want: map[string]string{"tls": "connect.tls.ca"}},
		"another name":      {cert: other, key: otherKey, trust: other, want: map[string]string{"tls": "other.test) in connect.url"}},
		"not verified": {
			cert: good, key: goodKey, client: config.ClientTLS{InsecureSkipVerify: true},
			want: map[string]string{"tls": "insecure_skip_verify"},
		},
		"client certificate": {cert: good, key: goodKey, trust: good, mutual: true, want: map[string]string{"tls": "connect.tls.cert"}},
	} {
		t.Run(name, func(t *testing.T) {
			n := pikotest.StartNode(t, func(p *config.Pikod) {
				p.Upstream.TLS.Cert, p.Upstream.TLS.Key = config.File(c.cert), config.File(c.key)
				if c.mutual {
					p.Upstream.TLS.ClientCA = config.File(c.cert)
				}
			})
			r := diagnose.Run(t.Context(), agentFor(t, "https://"+n.Upstream, func(a *config.Agent) {
				a.Connect.TLS = c.client
				a.Connect.TLS.CA = config.File(c.trust)
			}), diagnose.Options{})
			fails(t, r, c.want)
			if s := results(t, r)["tls"]; !strings.Contains(s.Detail, c.detail) {
				t.Errorf("tls: %q, want %q", s.Detail, c.detail)
			}
		})
	}
}

// A server that answers with what a terminal would obey, and for ever, does no harm.
func TestStrangeServers(t *testing.T) {
	evil := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusTeapot)
		for range 1 << 14 {
			if _, err := w.Write(bytes.Repeat([]byte("\x1b[2J"), 256)); err != nil || r.Context().Err() != nil {
				return
			}
		}
	}))
	defer evil.Close()
	r := diagnose.Run(t.Context(), agentFor(t, evil.URL), diagnose.Options{})
	fails(t, r, map[string]string{"handshake": "418"})
	var text bytes.Buffer
	if err := r.Text(&text); err != nil || strings.ContainsRune(text.String(), '\x1b') {
		t.Errorf("text is %q, %v", &text, err)
	}
	ended, stop := context.WithCancel(t.Context())
	stop()
	if diagnose.Run(ended, agentFor(t, evil.URL), diagnose.Options{}).OK {
		t.Error("all is well in no time")
	}
}

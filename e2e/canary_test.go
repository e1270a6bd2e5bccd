package e2e

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// canaries are secrets that nobody could take for anything else, and everything that could show one.
type canaries struct {
	mu      sync.Mutex
	secrets map[string]string // by what they are for
	seen    map[string][]byte // what was looked at, by where
}

// secret makes one.
func (c *canaries) secret(what string) string {
	b := make([]byte, 20)
	_, _ = rand.Read(b)
	text := "canary" + hex.EncodeToString(b)
	c.keep(what, text)
	return text
}

// keep takes something that was made elsewhere for a secret.
func (c *canaries) keep(what, text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.secrets[what] = text
}

// look keeps what came from somewhere.
func (c *canaries) look(where string, b []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen[where] = append(c.seen[where], b...)
}

// verdict fails the test for each secret that stands anywhere, whole or in good part.
func (c *canaries) verdict(t *testing.T) {
	t.Helper()
	total := 0
	for where, b := range c.seen {
		total += len(b)
		for what, secret := range c.secrets {
			if i := bytes.Index(b, []byte(secret[:min(24, len(secret))])); i >= 0 {
				t.Errorf("%s shows %s: %q", where, what, b[max(0, i-60):min(len(b), i+60)])
			}
		}
	}
	t.Logf("%d secrets looked for in %d bytes from %d places", len(c.secrets), total, len(c.seen))
}

// keyMaterial is a line from the middle of a private key.
func keyMaterial(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(string(b), "\n")[1]
}

// The three daemons run with a secret wherever there can be one, at debug level, and meet every kind of error. None of the
// secrets shows in their logs, answers, metrics, status, profiles, dumps or argument lists.
func TestSecuritySecretsShowNowhere(t *testing.T) {
	parallel(t)
	c := &canaries{secrets: map[string]string{}, seen: map[string][]byte{}}
	ca := newAuthority(t)
	cert, key := ca.issue(t, "localhost")
	c.keep("the key of a certificate", keyMaterial(t, key))
	keys := map[string]string{}
	for _, s := range []string{"proxy", "upstream", "admin", "tenant"} {
		keys[s] = c.secret("the signing key of " + s)
	}
	n := &node{proxy: freeAddress(t), upstream: freeAddress(t), admin: freeAddress(t)}
	n.file = writeFile(t, "pikod.toml", fmt.Sprintf(`
log.level = "debug"
[proxy]
listen = %q
endpoint_wait = "0s"
auth.hmac_secret_key_file = %q
[upstream]
listen = %q
tls = { cert = %q, key = %q }
auth.hmac_secret_key = %q
[[upstream.tenants]]
id = "t"
auth.hmac_secret_key = %q
[admin]
listen = %q
pprof = true
auth.hmac_secret_key = %q
[cluster]
node_id = "n1"
listen = %q
secret = %q
[consul]
address = "http://127.0.0.1:9"
token = %q
`, n.proxy, writeFile(t, "key", keys["proxy"]+"\n"), n.upstream, cert, key, keys["upstream"], keys["tenant"],
		n.admin, keys["admin"], freeAddress(t), c.secret("the cluster's secret"), c.secret("Consul's token")))
	alone := writeFile(t, "pikod.toml", withoutConsul(t, n.file)) // which would never be ready
	token := func(what, key string) string {
		text := sign(t, claims{Key: key, ID: what})
		c.keep("the token of "+what, text[strings.LastIndexByte(text, '.')+1:])
		return text
	}
	operator := token("an operator", keys["admin"])
	c.without(t, n)

	n.file = alone
	n.process = start(t, nil, "pikod", "--config", n.file)
	n.awaitReady(t, n.admin)
	proxy := "http://user:" + c.secret("the password of a proxy") + "@" + freeAddress(t)
	agentSettings := agentFile(t, n, agentOptions{
		Top: "log.level = \"debug\"", URL: "https://" + n.upstream, Connect: fmt.Sprintf("token = %q\ntls.ca = %q",
			token("an agent", keys["upstream"]), ca.file),
		More: fmt.Sprintf("[admin]\nlisten = %q\nauth.hmac_secret_key = %q", freeAddress(t), c.secret("the agent's operators")),
	}, offer{Endpoint: "e", Addr: serve(t, showHeaders)}, offer{Endpoint: "dead", Addr: "127.0.0.1:9"})
	agent := start(t, nil, "piko-agent", "--config", agentSettings)
	lost := start(t, nil, "piko-agent", "--config", agentFile(t, n, agentOptions{
		Top: "log.level = \"debug\"", URL: "https://" + n.upstream,
		Connect: fmt.Sprintf("proxy_url = %q\ntoken = %q", proxy, token("a lost agent", keys["upstream"])),
	}, offer{Endpoint: "x", Addr: "127.0.0.1:9"}))
	stranger := start(t, nil, "piko-agent", "--config", agentFile(t, n, agentOptions{
		Top: "log.level = \"debug\"", URL: "https://" + n.upstream,
		Connect: fmt.Sprintf("tls.ca = %q\ntoken = %q", ca.file, token("a stranger", keys["proxy"])),
	}, offer{Endpoint: "x", Addr: "127.0.0.1:9"}))
	local := freeAddress(t)
	forward := start(t, nil, "piko-forward", "--config", writeFile(t, "piko-forward.toml", fmt.Sprintf(
		"log.level = \"debug\"\n[connect]\nurl = \"http://%s\"\ntoken = %q\n[[forwards]]\nlisten = %q\nendpoint = \"dead\"\n",
		n.proxy, token("a forwarder", keys["proxy"]), local)))
	forward.awaitListen(t, "tcp", local)
	await(t, "refusals", settle, func() error {
		if len(lost.output(t)) == 0 {
			return fmt.Errorf("the lost agent is silent")
		}
		return contains(stranger.output(t), "401")
	})
	if conn, err := net.Dial("tcp", local); err == nil { // the endpoint is not there, so it may be reset at once
		_ = conn.SetDeadline(time.Now().Add(settle))
		_, _ = io.Copy(io.Discard, conn)
		_ = conn.Close()
	}

	client := token("a client", keys["proxy"])
	await(t, "the agent is reached", settle, func() error {
		r := request(t, http.MethodGet, at("e", "/"), nil)
		r.Header.Set("Authorization", "Bearer "+client)
		a, err := try(n.client(t), r)
		c.look("what the service was sent", []byte(a.body))
		if err == nil && a.StatusCode != http.StatusOK {
			err = fmt.Errorf("status %d", a.StatusCode)
		}
		return err
	})
	c.provoke(t, n, client, operator)
	for _, p := range []*process{n.process, agent, lost, stranger, forward} {
		c.argv(t, p)
		out, _ := run(t, nil, p.name, "--reload", fmt.Sprint(p.cmd.Process.Pid))
		c.look("reload of "+p.name, []byte(out))
		file := p.cmd.Args[2]
		for _, flag := range []string{"--dump-config", "--check-config"} {
			out, code := run(t, nil, p.name, "--config", file, flag)
			if code != 0 {
				t.Errorf("%s %s: code %d: %s", p.name, flag, code, out)
			}
			c.look(p.name+" "+flag, []byte(out))
		}
		// A file with a mistake beside each secret.
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		out, code := run(t, nil, p.name, "--config", writeFile(t, filepath.Base(file), "wrong = 1\n"+string(b)+"\nx = \"\n"))
		if code != 78 {
			t.Errorf("%s with broken settings: code %d", p.name, code)
		}
		c.look(p.name+" with broken settings", []byte(out))
	}
	for _, p := range []*process{n.process, agent, lost, stranger, forward} {
		c.look("log of "+p.name, []byte(p.output(t)))
	}
	c.verdict(t)
}

// without runs a node that asks for everything that is not there: Consul, an authority, a key server. It ends as a program
// does that panics, with all its goroutines in the log.
func (c *canaries) without(t *testing.T, n *node) {
	t.Helper()
	b, err := os.ReadFile(n.file)
	if err != nil {
		t.Fatal(err)
	}
	account := base64.RawURLEncoding.EncodeToString([]byte(c.secret("what the key of an account is made of")))
	c.keep("the key of an account with an authority", account)
	file := writeFile(t, "pikod.toml", fmt.Sprintf(`%s
[[upstream.tenants]]
id = "k"
auth.jwks.url = "https://127.0.0.1:9/keys?key=%s"
[acme]
domains = ["localhost.piko.test"]
agree_tos = true
listeners = ["proxy"]
directory_url = "https://127.0.0.1:9/directory"
directory = %q
eab_key_id = "e2e"
eab_key = %q
`, b, c.secret("the key of a key server"), t.TempDir(), account))
	p := start(t, nil, "pikod", "--config", file)
	await(t, "Consul to be missed", settle, func() error { return contains(p.output(t), "consul") })
	p.awaitListen(t, "tcp", n.upstream)
	e := base64.RawURLEncoding
	r := request(t, http.MethodGet, "https://"+n.upstream+"/piko/v2/tunnel", nil)
	r.Header.Set("X-Piko-Tenant-Id", "k")
	r.Header.Set("Authorization", "Bearer "+e.EncodeToString([]byte(`{"alg":"EdDSA","kid":"k"}`))+"."+
		e.EncodeToString([]byte(`{"exp":4000000000}`))+"."+e.EncodeToString(make([]byte, 64)))
	a := do(t, &http.Client{Timeout: settle, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}, r)
	if a.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("without a key server a token is answered with %d", a.StatusCode)
	}
	c.look("answer without a key server", fmt.Appendf(nil, "%v %s", a.Header, a.body))
	await(t, "the key server to be missed", settle, func() error { return contains(p.output(t), "127.0.0.1:9/keys?[redacted]") })
	c.argv(t, p)
	for _, flag := range []string{"--dump-config", "--check-config"} {
		out, code := run(t, nil, "pikod", "--config", file, flag)
		if code != 0 {
			t.Errorf("%s: code %d: %s", flag, code, out)
		}
		c.look("pikod "+flag, []byte(out))
	}
	p.signal(t, syscall.SIGQUIT)
	<-p.done
	if err := contains(p.output(t), "\ngoroutine 1 "); err != nil {
		t.Error(err)
	}
	c.look("log of pikod without anything, and its goroutines", []byte(p.output(t)))
}

func withoutConsul(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Replace(string(b), `address = "http://127.0.0.1:9"`, "", 1)
}

// argv looks at the arguments of a running process, and at its environment.
func (c *canaries) argv(t *testing.T, p *process) {
	t.Helper()
	for _, file := range []string{"cmdline", "environ"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", p.cmd.Process.Pid, file))
		if err != nil {
			t.Fatal(err)
		}
		c.look(file+" of "+p.name, b)
	}
}

// provoke asks the listeners for everything that they refuse, and the operators' one for everything that it has.
func (c *canaries) provoke(t *testing.T, n *node, client, operator string) {
	t.Helper()
	bad := client[:len(client)-4] + "AAAA"
	c.keep("a token that was changed", bad[strings.LastIndexByte(bad, '.')+1:])
	for _, authorization := range []string{
		"", "Bearer " + bad, "Bearer " + client, "Basic " + c.secret("a password for the node"), "Bearer " + client + " " + client,
		"bearer\t" + client, client, "Bearer " + c.secret("a token that is none"), "Bearer " + operator,
	} {
		for _, url := range []string{
			"http://" + n.proxy + "/", "http://" + n.proxy + "/_piko/v1/tcp/dead", "http://" + n.proxy + "/_piko/x",
			"http://" + n.admin + "/status", "http://" + n.admin + "/metrics", "http://" + n.admin + "/reload",
		} {
			for _, endpoint := range []string{"e", "dead", "nobody", "bad name"} {
				for _, name := range []string{"Authorization", "X-Piko-Authorization"} {
					r := request(t, http.MethodGet, url, nil)
					r.Header.Set("X-Piko-Endpoint", endpoint)
					if authorization != "" {
						r.Header.Set(name, authorization)
					}
					// The service shows what it gets: what is not for us reaches it untouched, so it is not looked at.
					a, err := try(direct, r)
					if err != nil || a.Header.Get("Piko-Error") != "" {
						c.look("answers to errors", fmt.Appendf(nil, "%v %v %v", err, a.Response, a.body))
					}
				}
			}
		}
	}
	for _, path := range []string{
		"/status", "/status/sessions", "/status/upstream/endpoints", "/status/routes/e", "/status/cluster/nodes", "/metrics",
		"/debug/pprof/goroutine?debug=2", "/debug/pprof/cmdline", "/debug/pprof/heap?debug=1", "/ready", "/health",
	} {
		r := request(t, http.MethodGet, "http://"+n.admin+path, nil)
		r.Header.Set("Authorization", "Bearer "+operator)
		a := do(t, direct, r)
		c.look("admin "+path, []byte(a.body))
		c.look("admin "+path, fmt.Appendf(nil, "%v", a.Header))
	}
}

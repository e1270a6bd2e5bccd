package consul

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/pikoproxy/piko/internal/config"
)

const (
	maxAnswer     = 64 << 20 // bytes of an answer of Consul
	maxErrorText  = 4 << 10  // bytes kept of the text of a refusal
	dialTimeout   = 2 * time.Second
	handshakeTime = 5 * time.Second
)

// StatusError is an answer of Consul other than success, not found or conflict.
type StatusError struct {
	Code int
	Text string
}

// Error repeats what Consul said.
func (e *StatusError) Error() string { return fmt.Sprintf("consul answered %d: %s", e.Code, e.Text) }

// status returns the code of a StatusError in err, or 0.
func status(err error) int {
	var s *StatusError
	if errors.As(err, &s) {
		return s.Code
	}
	return 0
}

// server is one address of Consul.
type server struct {
	scheme, host string
	unix         string // path of the socket; then host is a stand-in
	local        bool   // on this host: a client agent, most likely
}

// servers are the addresses of Consul and which of them is in use. It is shared by all clients of a Directory, and safe
// for concurrent use.
type servers struct {
	list    []server
	current atomic.Int64 // counts up; modulo len(list)
}

func (s *servers) use() (server, int64) {
	n := s.current.Load()
	return s.list[int(n)%len(s.list)], n
}

// failed moves on to the next address, unless somebody did so since seen was in use.
func (s *servers) failed(seen int64) { s.current.CompareAndSwap(seen, seen+1) }

// environment holds what the CONSUL_* variables say.
type environment struct {
	address, tokenFile, token string
	secure                    bool
	auth                      *api.HttpBasicAuth
	tls                       api.TLSConfig
	namespace, partition      string
}

func readEnvironment() environment {
	c := api.DefaultConfig()
	env := environment{
		address: os.Getenv(api.HTTPAddrEnvName), tokenFile: c.TokenFile, token: c.Token, secure: c.Scheme == "https",
		auth: c.HttpAuth, tls: c.TLSConfig, namespace: c.Namespace, partition: c.Partition,
	}
	return env
}

// newServers reads the addresses; with none in the settings, that of CONSUL_HTTP_ADDR.
func newServers(addresses config.List, env environment) (*servers, error) {
	if len(addresses) == 0 && env.address != "" {
		addresses = config.List{env.address}
	}
	if len(addresses) == 0 {
		return nil, errors.New("no address of Consul: set consul.address or CONSUL_HTTP_ADDR")
	}
	s := &servers{}
	for i, a := range addresses {
		scheme, rest, found := strings.Cut(a, "://")
		if !found {
			scheme, rest = "http", a
			if env.secure {
				scheme = "https"
			}
		}
		switch {
		case scheme == "unix" && strings.HasPrefix(rest, "/"):
			stand := "socket-" + strconv.Itoa(i) + ".invalid"
			s.list = append(s.list, server{scheme: "http", host: stand, unix: rest, local: true})
		case scheme == "http" || scheme == "https":
			host := strings.TrimSuffix(rest, "/")
			if _, _, err := net.SplitHostPort(host); err != nil {
				return nil, fmt.Errorf("address %q of Consul: want host:port: %w", a, err)
			}
			s.list = append(s.list, server{scheme: scheme, host: host, local: isLoopback(host)})
		default:
			return nil, fmt.Errorf("address %q of Consul: want host:port, http://, https:// or unix:///path", a)
		}
	}
	return s, nil
}

func isLoopback(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// secured returns the TLS settings towards Consul; what the file leaves open, the environment fills.
func secured(c config.ClientTLS, env environment) (*tls.Config, error) {
	t := env.tls
	if c.Cert != "" {
		t.CertFile, t.KeyFile = string(c.Cert), string(c.Key)
	}
	if c.CA != "" {
		t.CAFile, t.CAPath = string(c.CA), ""
	}
	t.Address = cmp.Or(c.ServerName, t.Address)
	t.InsecureSkipVerify = t.InsecureSkipVerify || c.InsecureSkipVerify
	conf, err := api.SetupTLSConfig(&t)
	if err != nil {
		return nil, fmt.Errorf("TLS towards Consul: %w", err)
	}
	conf.MinVersion = tls.VersionTLS12
	return conf, nil
}

// wire is the http.RoundTripper of one role: it sends each request to the server in use with the token of the moment,
// turns refusals into errors, and limits what it reads. Each role has its own, so that no load on one can hold up
// another: a renewal never waits behind reads.
type wire struct {
	servers *servers
	tokens  *tokens
	meter   *metrics
	slow    func() // Consul asked us to slow down
	conns   int
	via     atomic.Pointer[transports]
}

// transports are what a wire sends requests by.
type transports struct {
	plain   *http.Transport
	squeeze *http.Transport // asks for compressed answers: over a network they are worth it
}

func (t *transports) closeIdle() {
	t.plain.CloseIdleConnections()
	t.squeeze.CloseIdleConnections()
}

func newWire(d *Directory, secure *tls.Config, conns int) *wire {
	w := &wire{servers: d.servers, tokens: d.tokens, meter: d.metrics, slow: d.slow, conns: conns}
	w.secure(secure)
	return w
}

// secure has new connections made with these TLS settings. Idle ones are closed.
func (w *wire) secure(c *tls.Config) {
	dialer := &net.Dialer{
		Timeout:         dialTimeout,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 2 * time.Second, Count: 3},
	}
	sockets := map[string]string{}
	for _, s := range w.servers.list {
		if s.unix != "" {
			sockets[net.JoinHostPort(s.host, "80")] = s.unix
		}
	}
	plain := &http.Transport{
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if path, ok := sockets[addr]; ok {
				return dialer.DialContext(ctx, "unix", path)
			}
			return dialer.DialContext(ctx, network, addr)
		},
		TLSClientConfig: c, TLSHandshakeTimeout: handshakeTime, ForceAttemptHTTP2: true, DisableCompression: true,
		MaxIdleConnsPerHost: w.conns, IdleConnTimeout: 90 * time.Second, MaxResponseHeaderBytes: 64 << 10,
	}
	squeeze := plain.Clone()
	squeeze.DisableCompression = false
	if old := w.via.Swap(&transports{plain, squeeze}); old != nil {
		old.closeIdle()
	}
}

// RoundTrip implements http.RoundTripper.
func (w *wire) RoundTrip(r *http.Request) (*http.Response, error) {
	to, seen := w.servers.use()
	r = r.Clone(r.Context())
	r.URL.Scheme, r.URL.Host, r.Host = to.scheme, to.host, to.host
	if to.unix != "" {
		r.Host = "localhost"
	}
	r.Header.Del("X-Consul-Token")
	if token := w.tokens.get(); token != "" {
		r.Header.Set("X-Consul-Token", token)
	}
	via := w.via.Load()
	transport := via.squeeze
	if to.local {
		transport = via.plain
	}
	resp, err := transport.RoundTrip(r)
	if err != nil {
		// The end of the caller is not the server's fault; that it let a deadline pass is.
		if !errors.Is(r.Context().Err(), context.Canceled) {
			w.meter.up.Set(0)
			w.servers.failed(seen)
		}
		return nil, fmt.Errorf("ask Consul at %s: %w", cmp.Or(to.unix, to.host), err)
	}
	if resp.StatusCode < 400 || resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusConflict {
		w.meter.up.Set(1)
		resp.Body = &limited{resp.Body, maxAnswer}
		return resp, nil
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorText)) // the code is what counts
	switch {
	case resp.StatusCode == http.StatusForbidden:
		w.tokens.refused()
	case resp.StatusCode == http.StatusTooManyRequests:
		w.meter.tooMany.Inc()
		w.slow()
		w.servers.failed(seen)
	case resp.StatusCode >= 500 && !strings.Contains(string(text), "Invalid Session TTL"):
		w.meter.up.Set(0)
		w.servers.failed(seen)
	}
	return nil, &StatusError{resp.StatusCode, strings.TrimSpace(string(text))}
}

// reset closes connections that nobody is using, so that the next request makes a new one.
func (w *wire) reset() { w.via.Load().closeIdle() }

// client returns an API client that speaks over the wire.
func (w *wire) client(c config.Consul, env environment) (*api.Client, error) {
	return api.NewClient(&api.Config{
		// The wire replaces address and token. They are set since the library would else read the environment itself, and
		// a token file only once.
		Address: "consul.invalid", Token: "replaced", HttpAuth: env.auth, HttpClient: &http.Client{Transport: w},
		Datacenter: c.Datacenter, Namespace: cmp.Or(c.Namespace, env.namespace), Partition: cmp.Or(c.Partition, env.partition),
	})
}

// limited is a body that ends with an error, and not quietly, when it is too long.
type limited struct {
	io.ReadCloser
	left int64
}

func (l *limited) Read(p []byte) (int, error) {
	if l.left <= 0 {
		return 0, fmt.Errorf("answer of Consul has more than %d bytes", maxAnswer)
	}
	n, err := l.ReadCloser.Read(p[:min(int64(len(p)), l.left)])
	l.left -= int64(n)
	return n, err
}

func writeOptions(ctx context.Context) *api.WriteOptions {
	return (&api.WriteOptions{}).WithContext(ctx)
}

func readOptions(ctx context.Context) *api.QueryOptions {
	return (&api.QueryOptions{}).WithContext(ctx)
}

// Package acme gets certificates from an authority that issues them by itself (RFC 8555), and renews them before they end.
//
//	Manager.Config ──> tls.Config of a listener: finds the certificate by SNI, answers TLS-ALPN-01 (RFC 8737)
//	Manager.Handler ─> plain HTTP: answers HTTP-01 (RFC 8555, section 8.3), redirects the rest to https
//	Manager.Run ─────> owns the goroutines that order and renew
//
// The protocol, the retries and the renewals are certmagic's. This package keeps the account and the certificates: in a
// directory for a node that is alone, and for a cluster in what the nodes share, encrypted, with a copy in the
// directory. A certificate is ordered under a lock of that place, so that of several nodes one orders and the others
// take what it got; the answer to the authority's question lies there too, so that any node can give it.
package acme

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3/acme"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/sirupsen/logrus"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/pikoproxy/piko/internal/config"
)

// ErrOff is why there is no certificate while the settings ask for none.
var ErrOff = errors.New("no certificates are ordered")

// protocol is offered by ALPN to be asked by TLS-ALPN-01.
const protocol = "acme-tls/1"

// Options are what a [Manager] needs.
type Options struct {
	// Shared returns where the nodes of a cluster keep what they have in common, once Run has been called; nil for a node
	// that is alone. Secret is what they encrypt it under, of 16 bytes or more.
	Shared func() Shared
	Secret string
	// Offered reports whether the endpoint of a host is offered by an agent. It is asked before a certificate is ordered
	// on demand.
	Offered func(host string) bool
	// Addr returns the address of a listener, "proxy" or "acme", or nil.
	Addr func(listener string) net.Addr

	Log        *logrus.Logger
	Registerer prometheus.Registerer // may be nil

	renewEvery time.Duration // how often certificates are looked at; 0: certmagic's 10 minutes
}

// Manager orders, keeps and serves certificates. All methods are safe for concurrent use.
type Manager struct {
	o       Options
	log     *zap.Logger
	metrics *metrics
	current atomic.Pointer[plan]

	mu    sync.Mutex
	life  context.Context  // nil before Run and after
	cache *certmagic.Cache // nil before the first plan that orders anything
	tasks sync.WaitGroup
}

// plan is what some settings mean. It is never changed.
type plan struct {
	settings config.ACME
	roots    *x509.CertPool // nil: those of the system
	storage  certmagic.Storage
	local    certmagic.Storage // nil: storage is local

	stop   context.CancelFunc // ends its orders; this and the following are nil until it has begun
	config *certmagic.Config
	issuer *certmagic.ACMEIssuer
}

// New returns a manager that orders nothing yet.
func New(o Options) (*Manager, error) {
	m := &Manager{o: o, log: bridge(o.Log)}
	var err error
	if m.metrics, err = newMetrics(o.Registerer, m); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	m.current.Store(&plan{})
	return m, nil
}

// Change is a change of settings that has been prepared.
type Change struct {
	m    *Manager
	next *plan
}

// Prepare checks settings. It changes nothing and asks the authority nothing. What is wrong is
// a [config.Problem].
func (m *Manager) Prepare(c config.ACME) (Change, error) {
	next := &plan{settings: c}
	if !c.Enabled() {
		return Change{m, next}, nil
	}
	if c.CA != "" {
		text, err := c.CA.Read()
		next.roots = x509.NewCertPool()
		if err != nil || !next.roots.AppendCertsFromPEM(text) {
			return Change{}, config.Problem{Key: "acme.ca", Want: "CA certificates in PEM form", Have: unreadable(string(c.CA), err)}
		}
	}
	dir := directory(c.Directory)
	if err := writable(dir); err != nil {
		return Change{}, config.Problem{Key: "acme.directory", Want: "a directory that this process may write to",
			Have: fmt.Sprintf("%q: %v", dir, err)}
	}
	next.storage = &certmagic.FileStorage{Path: dir}
	if m.o.Shared != nil {
		next.local = next.storage
		next.storage = newSealed(m.o.Shared, m.o.Secret)
	}
	return Change{m, next}, nil
}

// Commit puts prepared settings into use. Certificates that are there already are served at once; the others are ordered
// in the background as soon as the manager runs.
func (c Change) Commit() {
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	old := c.m.current.Load()
	c.m.current.Store(c.m.begunLocked(c.next))
	if old.stop != nil {
		old.stop()
	}
	if c.m.cache != nil {
		c.m.cache.RemoveManaged(gone(old.settings.Domains, c.next.settings.Domains))
	}
}

func gone(before, now []string) (out []certmagic.SubjectIssuer) {
	for _, name := range before {
		if !slices.Contains(now, name) {
			out = append(out, certmagic.SubjectIssuer{Subject: name})
		}
	}
	return out
}

// begunLocked returns a plan with certmagic's parts, and orders what is missing. While the manager does not run, and for
// settings that order nothing, it is the plan as it was.
func (m *Manager) begunLocked(planned *plan) *plan {
	if m.life == nil || !planned.settings.Enabled() {
		return planned
	}
	begun := *planned // handshakes may be looking at that one
	p := &begun
	if m.cache == nil {
		m.cache = certmagic.NewCache(certmagic.CacheOptions{
			GetConfigForCert: func(certmagic.Certificate) (*certmagic.Config, error) {
				if now := m.current.Load(); now.config != nil {
					return now.config, nil
				}
				return nil, ErrOff
			},
			Logger: m.log, RenewCheckInterval: m.o.renewEvery, Capacity: maxCached,
		})
	}
	ctx, stop := context.WithCancel(m.life)
	p.stop = stop
	p.config = certmagic.New(m.cache, certmagic.Config{
		Storage: p.storage, LocalCache: p.local, Logger: m.log, OnEvent: m.metrics.event, OnDemand: m.onDemand(p),
		// Whether a certificate has been revoked is told to no handshake of ours: authorities have given up OCSP.
		OCSP: certmagic.OCSPConfig{DisableStapling: true},
	})
	p.issuer = m.issuer(p)
	p.config.Issuers = []certmagic.Issuer{p.issuer}
	m.tasks.Go(func() {
		// What is stored is loaded before it returns; orders go on in the background until ctx ends.
		if err := p.config.ManageAsync(ctx, p.settings.Domains); err != nil && ctx.Err() == nil {
			m.o.Log.WithError(err).Error("certificates can't be ordered")
		}
	})
	return p
}

// issuer describes the authority and the ways in which it may ask us.
func (m *Manager) issuer(p *plan) *certmagic.ACMEIssuer {
	c := p.settings
	template := certmagic.ACMEIssuer{
		CA: c.DirectoryURL, TestCA: c.DirectoryURL, Email: c.Email, Agreed: c.AgreeTOS, TrustedRoots: p.roots, Logger: m.log,
	}
	if c.EABKeyID != "" {
		template.ExternalAccount = &acme.EAB{KeyID: c.EABKeyID, MACKey: c.EABKey.Reveal()}
	}
	// certmagic opens a socket of its own where ours is not: both ways are allowed only where ours is open.
	template.ListenHost, template.AltTLSALPNPort = hostPort(m.o.Addr("proxy"))
	template.DisableTLSALPNChallenge = template.AltTLSALPNPort == 0 || !c.Serves("proxy")
	var host string
	host, template.AltHTTPPort = hostPort(m.o.Addr("acme"))
	template.DisableHTTPChallenge = template.AltHTTPPort == 0
	if template.DisableTLSALPNChallenge {
		template.ListenHost = host
	}
	return certmagic.NewACMEIssuer(p.config, template)
}

// onDemand says which certificates may be ordered when a client asks for them.
func (m *Manager) onDemand(p *plan) *certmagic.OnDemandConfig {
	if !p.settings.OnDemand {
		return nil
	}
	return &certmagic.OnDemandConfig{DecisionFunc: func(_ context.Context, name string) error {
		if !slices.Contains(p.settings.Domains, name) && !m.o.Offered(name) {
			return fmt.Errorf("no certificate for %q: its endpoint is not offered", name)
		}
		return nil
	}}
}

// Run orders and renews certificates until ctx ends, and waits for what it began.
func (m *Manager) Run(ctx context.Context) error {
	m.mu.Lock()
	m.life = ctx
	m.current.Store(m.begunLocked(m.current.Load())) //nolint:contextcheck // it takes life, which is ctx
	m.mu.Unlock()
	<-ctx.Done()
	m.mu.Lock()
	m.life = nil
	cache := m.cache
	m.mu.Unlock()
	m.tasks.Wait()
	if cache != nil {
		cache.Stop()
	}
	return nil
}

// Config returns a listener's configuration that serves certificates of the authority too. Base has the certificates
// from files; it is not changed.
//
// A name that the settings order is answered with the authority's certificate; until that is there, and for every other
// name, base is asked, and a handshake fails when base has no certificate.
func (m *Manager) Config(base *tls.Config) *tls.Config {
	c := base.Clone()
	c.NextProtos = append(slices.Clone(base.NextProtos), protocol)
	c.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		if h, ok := hello.Conn.(interface{ Rest() func() }); ok && m.current.Load().settings.OnDemand {
			defer h.Rest()() // the authority may take its time, and others are not to wait for it
		}
		cert, err := m.certificate(hello)
		if err != nil && len(base.Certificates) > 0 {
			return nil, nil //nolint:nilnil // crypto/tls then takes one of base
		}
		return cert, err
	}
	return c
}

func (m *Manager) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	p := m.current.Load()
	if p.config == nil {
		return nil, ErrOff
	}
	cert, err := p.config.GetCertificate(hello)
	if err != nil {
		return nil, fmt.Errorf("certificate for %q: %w", hello.ServerName, err)
	}
	return cert, nil
}

// Handler answers the questions of the authority over plain HTTP, and sends everybody else to the same place at https.
func (m *Manager) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p := m.current.Load(); p.issuer != nil && p.issuer.HandleHTTPChallenge(w, r) {
			return
		}
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		if host == "" || strings.ContainsAny(host, "/\\@ ") || !strings.HasPrefix(r.URL.Path, "/") {
			http.Error(w, "bad request", http.StatusBadRequest)
			return
		}
		w.Header().Set("Connection", "close")
		// To the host that the client itself asked for, which a link of others can't choose.
		http.Redirect(w, r, "https://"+host+r.URL.RequestURI(), http.StatusPermanentRedirect) //nolint:gosec // see above
	})
}

// maxCached is how many certificates are held in memory; more are read anew when they are asked for.
const maxCached = 10_000

// directory returns where certificates are kept when the settings leave it open.
func directory(set string) string {
	if set != "" {
		return set
	}
	state, _, _ := strings.Cut(os.Getenv("STATE_DIRECTORY"), ":") // of systemd, which may name several
	if state == "" {
		state = "/var/lib/pikod"
	}
	return filepath.Join(state, "acme")
}

// writable reports whether a directory, or where it will be made, can be written to by this process. It changes nothing.
func writable(dir string) error {
	for {
		info, err := os.Stat(dir)
		switch {
		case errors.Is(err, fs.ErrNotExist) && filepath.Dir(dir) != dir:
			dir = filepath.Dir(dir)
			continue
		case err != nil:
			return err
		case !info.IsDir():
			return fmt.Errorf("%s is no directory", dir)
		}
		if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
			return fmt.Errorf("write to %s: %w", dir, err)
		}
		return nil
	}
}

func unreadable(path string, err error) string {
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%q, which holds none", path)
}

// hostPort splits the address of a listener; the port is 0 if there is none.
func hostPort(a net.Addr) (string, int) {
	tcp, ok := a.(*net.TCPAddr)
	if !ok || tcp == nil {
		return "", 0
	}
	if tcp.IP.IsUnspecified() {
		return "", tcp.Port
	}
	return tcp.IP.String(), tcp.Port
}

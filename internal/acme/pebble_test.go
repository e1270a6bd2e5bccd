package acme

import (
	"context"
	"crypto/tls"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/sirupsen/logrus"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/pikotest/pebbletest"
)

const patience = 60 * time.Second

// shared is what nodes have in common, in memory.
type shared struct {
	mu     sync.Mutex
	values map[string][]byte
	locks  map[string]chan struct{}
}

func newShared() *shared {
	return &shared{values: map[string][]byte{}, locks: map[string]chan struct{}{}}
}

func (s *shared) get() Shared { return s }

func (s *shared) Get(_ context.Context, key string) ([]byte, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := s.values[key]
	return v, ok, nil
}

func (s *shared) Put(_ context.Context, key string, value []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.values[key] = slices.Clone(value)
	return nil
}

func (s *shared) Delete(_ context.Context, key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.values, func(k string, _ []byte) bool { return k == key || strings.HasPrefix(k, key+"/") })
	return nil
}

func (s *shared) List(_ context.Context, key string) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for k := range s.values {
		if strings.HasPrefix(k, strings.Trim(key, "/")+"/") {
			out = append(out, k)
		}
	}
	return out, nil
}

func (s *shared) Lock(ctx context.Context, name string) error {
	for {
		s.mu.Lock()
		held, ok := s.locks[name]
		if !ok {
			s.locks[name] = make(chan struct{})
			s.mu.Unlock()
			return nil
		}
		s.mu.Unlock()
		select {
		case <-held:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *shared) Unlock(_ context.Context, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.locks[name])
	delete(s.locks, name)
	return nil
}

// node is a manager with the two listeners it works with.
type node struct {
	*Manager
	tls, http net.Listener
}

func (n *node) addr(name string) net.Addr {
	switch {
	case name == "proxy" && n.tls != nil:
		return n.tls.Addr()
	case name == "acme" && n.http != nil:
		return n.http.Addr()
	}
	return nil
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func port(l net.Listener) int { return l.Addr().(*net.TCPAddr).Port }

// start runs a node on the listeners it was given.
func (n *node) start(t *testing.T, o Options, c config.ACME) {
	t.Helper()
	log := logrus.New()
	log.SetOutput(t.Output())
	o.Log, o.Addr = log, n.addr
	var err error
	if n.Manager, err = New(o); err != nil {
		t.Fatal(err)
	}
	change, err := n.Prepare(c)
	if err != nil {
		t.Fatal(err)
	}
	change.Commit()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	servers := []*http.Server{{Handler: n.Handler(), ReadHeaderTimeout: patience}, {
		Handler:           http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }),
		ReadHeaderTimeout: patience, ErrorLog: quiet(),
	}}
	if n.http != nil {
		go func() { _ = servers[0].Serve(n.http) }()
	}
	conf := n.Config(&tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}})
	go func() { _ = servers[1].Serve(tls.NewListener(n.tls, conf)) }()
	t.Cleanup(func() {
		for _, s := range servers {
			_ = s.Close()
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// handshake returns the serial number of the certificate that is served for a name, verified.
func (n *node) handshake(p *pebbletest.Pebble, name string) (string, error) {
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", n.tls.Addr().String(),
		&tls.Config{RootCAs: p.Roots, ServerName: name, MinVersion: tls.VersionTLS12})
	if err != nil {
		return "", err
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0].SerialNumber.String(), nil
}

// served waits until a certificate is served for a name.
func (n *node) served(t *testing.T, p *pebbletest.Pebble, name string) string {
	t.Helper()
	deadline, tick := time.After(patience), time.NewTicker(50*time.Millisecond)
	defer tick.Stop()
	for {
		serial, err := n.handshake(p, name)
		if err == nil {
			return serial
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("no certificate for %s: %v", name, err)
		}
	}
}

func settings(t *testing.T, p *pebbletest.Pebble, names ...string) config.ACME {
	return config.ACME{
		Domains: names, AgreeTOS: true, DirectoryURL: p.Directory, CA: config.File(p.CA), Listeners: []string{"proxy"}, Directory: t.TempDir(),
	}
}

func TestOrdersByEachWayOfAsking(t *testing.T) {
	for way, only := range map[string]string{"TLS-ALPN-01": "proxy", "HTTP-01": "admin"} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			n := &node{tls: listen(t)}
			o := pebbletest.Options{TLSPort: port(n.tls)}
			if way == "HTTP-01" {
				n.http = listen(t)
				o = pebbletest.Options{HTTPPort: port(n.http)}
			}
			p := pebbletest.Start(t, o)
			// Names of its own: what certmagic remembers of open questions, it keeps by name for the whole process.
			name, more := only+".piko.test", "more."+only+".piko.test"
			c := settings(t, p, name, more)
			c.Listeners = []string{only}
			n.start(t, Options{}, c)
			first := n.served(t, p, name)
			n.served(t, p, more)
			if missing, end := n.survey(); missing != 0 || time.Until(end) < 24*time.Hour {
				t.Errorf("%d names without certificate, first end %v", missing, end)
			}
			if got := testutil.ToFloat64(n.metrics.orders.WithLabelValues("new", "ok")); got != 2 {
				t.Errorf("%v orders counted, want 2", got)
			}

			// A node that starts again serves what it has, without another order.
			again := &node{tls: listen(t), http: n.http}
			again.start(t, Options{}, c)
			if serial := again.served(t, p, name); serial != first {
				t.Errorf("another certificate after a restart")
			}
		})
	}
}

func TestNodesOrderOnceTogether(t *testing.T) {
	nodes := []*node{{tls: listen(t)}, {tls: listen(t)}, {tls: listen(t)}}
	p := pebbletest.Start(t, pebbletest.Options{TLSPort: port(nodes[0].tls)}) // who orders is not who is asked, mostly
	common := newShared()
	for _, n := range nodes {
		n.start(t, Options{Shared: common.get, Secret: "0123456789abcdef0123456789abcdef"}, settings(t, p, "piko.test"))
	}
	serials := map[string]bool{}
	orders := 0.0
	for _, n := range nodes {
		serials[n.served(t, p, "piko.test")] = true
		orders += testutil.ToFloat64(n.metrics.orders.WithLabelValues("new", "ok"))
	}
	if len(serials) != 1 || orders != 1 {
		t.Errorf("%d certificates, %v orders for three nodes; want one", len(serials), orders)
	}
	for key, value := range common.values {
		if strings.Contains(string(value), "PRIVATE KEY") {
			t.Errorf("%s lies open", key)
		}
	}
}

func TestRenewsWithoutAFailedHandshake(t *testing.T) {
	const clients = 8 // shaking hands all the time
	n := &node{tls: listen(t)}
	p := pebbletest.Start(t, pebbletest.Options{TLSPort: port(n.tls), Validity: 45 * time.Second})
	n.start(t, Options{renewEvery: time.Second}, settings(t, p, "piko.test"))
	first := n.served(t, p, "piko.test")
	var load sync.WaitGroup
	var handshakes atomic.Int64
	deadline := time.Now().Add(2 * patience)
	for range clients {
		load.Go(func() {
			for renewed := 0; renewed < 20; handshakes.Add(1) { // some more with the new one
				serial, err := n.handshake(p, "piko.test")
				if err != nil {
					t.Errorf("after %d handshakes: %v", handshakes.Load(), err)
					return
				}
				if serial != first {
					renewed++
				} else if time.Now().After(deadline) {
					t.Error("the certificate was not renewed")
					return
				}
			}
		})
	}
	load.Wait()
	if got := testutil.ToFloat64(n.metrics.orders.WithLabelValues("renewal", "ok")); got < 1 {
		t.Errorf("%v renewals counted", got)
	}
	t.Logf("%d handshakes of %d clients at a time until all had seen the renewed certificate", handshakes.Load(), clients)
}

func TestOrdersOnDemandOnlyForWhatIsOffered(t *testing.T) {
	n := &node{tls: listen(t)}
	p := pebbletest.Start(t, pebbletest.Options{TLSPort: port(n.tls)})
	c := settings(t, p)
	c.OnDemand = true
	n.start(t, Options{Offered: func(host string) bool { return host == "mine.piko.test" }}, c)
	n.served(t, p, "mine.piko.test")
	if _, err := n.handshake(p, "yours.piko.test"); err == nil {
		t.Error("a certificate for a host that nobody offers")
	}
	if got := testutil.ToFloat64(n.metrics.orders.WithLabelValues("new", "failed")); got != 0 {
		t.Errorf("%v orders failed: the authority was asked", got)
	}
}

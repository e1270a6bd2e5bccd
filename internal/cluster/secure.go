package cluster

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/pikoproxy/piko/internal/tunnel"
)

const (
	judgeEvery = time.Second
	judgeGrace = 3 * time.Second // for what runs on a session whose other end would not be let in any more
	renewPause = 5 * time.Second // between two attempts to replace a session
)

var errNotTrusted = errors.New("the certificate of the other node is good for nothing any more")

// security is how both ends of a session authenticate each other.
type security struct{ server, client *tls.Config }

// same reports whether there is no difference for anybody.
func (s *security) same(o *security) bool {
	if s.client.ServerName != o.client.ServerName || !s.client.RootCAs.Equal(o.client.RootCAs) || !s.server.ClientCAs.Equal(o.server.ClientCAs) {
		return false
	}
	a, b := s.client.Certificates, o.client.Certificates
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if len(a[i].Certificate) == 0 || len(b[i].Certificate) == 0 || !bytes.Equal(a[i].Certificate[0], b[i].Certificate[0]) {
			return false
		}
	}
	return true
}

// Secure replaces what the nodes authenticate each other by. Sessions are replaced by new ones, and live on until nothing runs
// on them, unless the certificate of their other end is not good any more: then they end within seconds.
func (p *Peers) Secure(server, client *tls.Config) {
	next := &security{server, client}
	if old := p.secure.Load(); old == nil || !old.same(next) {
		p.secure.Store(next)
	}
}

// serverTLS takes what is in use for each session anew.
func (p *Peers) serverTLS() *tls.Config {
	first := p.secure.Load().server
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: first.NextProtos,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return p.secure.Load().server, nil },
	}
}

// proof is the certificate by which the other end of a session was let in. It belongs to one goroutine.
type proof struct {
	chain  []*x509.Certificate
	judged *security // under which it was found good
	bad    time.Time // since when it is not; zero: it is
}

// judge reports for how long the other end would not have been let in any more. Client says that it is us who dialed.
func (f *proof) judge(now *security, client bool, at time.Time) time.Duration {
	if f.fails(now, client, at) == nil {
		f.bad = time.Time{}
		return 0
	}
	if f.bad.IsZero() {
		f.bad = at
	}
	return max(at.Sub(f.bad), 1)
}

func (f *proof) fails(now *security, client bool, at time.Time) error {
	o := x509.VerifyOptions{
		Roots: now.server.ClientCAs, CurrentTime: at, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		DNSName: now.client.ServerName,
	}
	if client {
		o.Roots, o.KeyUsages = now.client.RootCAs, nil
	}
	if o.Roots == nil || len(f.chain) == 0 {
		return nil // a secret, which is not replaced while the process runs
	}
	fresh := true
	for _, c := range f.chain {
		fresh = fresh && at.Before(c.NotAfter)
	}
	if fresh && f.judged == now {
		return nil
	}
	for _, c := range f.chain[1:] {
		o.Intermediates.AddCert(c)
	}
	if _, err := f.chain[0].Verify(o); err != nil {
		return fmt.Errorf("%w: %w", errNotTrusted, err)
	}
	f.judged = now
	return nil
}

// noting returns a configuration that writes down what the other end shows.
func (f *proof) noting(c *tls.Config) *tls.Config {
	c = c.Clone()
	verify := c.VerifyConnection
	c.VerifyConnection = func(s tls.ConnectionState) error {
		f.chain = s.PeerCertificates
		if verify != nil {
			return verify(s)
		}
		return nil
	}
	return c
}

// watchGuests ends the sessions of nodes whose certificates are not good any more.
func (p *Peers) watchGuests(ctx context.Context) {
	tick := time.NewTicker(judgeEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case at := <-tick.C:
			now := p.secure.Load()
			for _, g := range p.allGuests() {
				if g.proof.judge(now, false, at) >= judgeGrace {
					g.close(errNotTrusted)
				}
			}
		}
	}
}

func (p *Peers) allGuests() []*guest {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]*guest, 0, len(p.guests))
	for g := range p.guests {
		all = append(all, g)
	}
	return all
}

// held is a session that we dialed.
type held struct {
	*tunnel.Session
	proof *proof
	under *security // as it was dialed
	tried time.Time // to replace it
}

// replaced returns a session to take the place of one that was made under other certificates, once there is one; else nil.
func (p *Peer) replaced(ctx context.Context, h *held, at time.Time) *held {
	now := p.peers.secure.Load()
	bad := h.proof.judge(now, true, at)
	if bad >= judgeGrace {
		_ = h.CloseNow(errNotTrusted)
		return nil
	}
	if bad == 0 && h.under == now || at.Sub(h.tried) < renewPause {
		return nil
	}
	h.tried = at
	next, err := p.peers.dial(ctx, p.remote.Node(), p.hear)
	if err != nil {
		p.peers.o.Log.WithField("peer", p.ID()).WithError(err).Warn("session with peer not renewed")
		return nil
	}
	p.peers.o.Log.WithField("peer", p.ID()).Info("session with peer renewed, for its certificates have changed")
	return next
}

// finish ends a session that another has taken the place of, once nothing runs on it.
func (p *Peer) finish(ctx context.Context, h *held) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p.peers.work.Go(func() { // ends with finish
		tick := time.NewTicker(judgeEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case at := <-tick.C:
				if h.proof.judge(p.peers.secure.Load(), true, at) >= judgeGrace {
					cancel()
				}
			}
		}
	})
	_ = h.Shutdown(ctx) // what is cut off was led to a node that is none
	h.Wait()
}

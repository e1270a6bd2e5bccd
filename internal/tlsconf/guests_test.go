package tlsconf_test

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/tlsconf"
)

// desk is a listener that knows its guests, with one of them.
type desk struct {
	guests         *tlsconf.Guests
	conf           atomic.Pointer[tls.Config]
	why            error
	client, server *tls.Conn
}

func (d *desk) ending() bool {
	below, ok := d.server.NetConn().(interface{ Ending() bool })
	return ok && below.Ending()
}

func newDesk(t *testing.T, conf *tls.Config, client *tls.Config) *desk {
	t.Helper()
	d := &desk{}
	d.conf.Store(tlsconf.Remembering(conf))
	d.guests = tlsconf.NewGuests(d.conf.Load, func(why error, _ string) { d.why = errors.Join(d.why, why) })
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := d.guests.Listen(raw)
	defer l.Close()
	accepted := make(chan *tls.Conn, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		secure := tls.Server(c, d.conf.Load())
		if _, err := secure.Write([]byte("x")); err != nil {
			t.Error(err)
		}
		accepted <- secure
	}()
	if d.client, err = tls.Dial("tcp", raw.Addr().String(), client); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.client.Close() })
	if _, err := io.ReadFull(d.client, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	d.server = <-accepted
	t.Cleanup(func() { _ = d.server.Close() })
	return d
}

func TestGuestsEndSomeTimeAfterTheirCAHasGone(t *testing.T) {
	own, ca, other := newAuthority(t, "servers"), newAuthority(t, "clients"), newAuthority(t, "others")
	cert, key := own.issue(t, time.Hour, "localhost")
	under := func(ca config.File) *tls.Config {
		c, err := tlsconf.Server("proxy.tls", config.TLS{Cert: cert, Key: key, ClientCA: ca})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	clientCert, clientKey := ca.issue(t, 30*time.Minute, "client")
	client, err := tlsconf.Client("connect.tls", config.ClientTLS{Cert: clientCert, Key: clientKey, CA: own.file, ServerName: "localhost"})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for name, c := range map[string]struct {
		change func(*desk)
		at     time.Time
		want   error
	}{
		"nothing changes":         {func(*desk) {}, now, nil},
		"the same CA, read again": {func(d *desk) { d.conf.Store(under(ca.file)) }, now, nil},
		"no CA any more":          {func(d *desk) { d.conf.Store(under("")) }, now, nil},
		"another CA":              {func(d *desk) { d.conf.Store(under(other.file)) }, now, tlsconf.ErrCertificateRefused},
		"the certificate expires": {func(*desk) {}, now.Add(31 * time.Minute), tlsconf.ErrCertificateExpired},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t, under(ca.file), client)
			d.guests.Sweep(now)
			if d.ending() || d.why != nil {
				t.Fatalf("ends at once: %v", d.why)
			}
			c.change(d)
			d.guests.Sweep(c.at)
			if !errors.Is(d.why, c.want) || d.ending() != (c.want != nil) {
				t.Fatalf("ends: %v, for %v; want %v", d.ending(), d.why, c.want)
			}
			d.guests.Sweep(c.at.Add(tlsconf.GuestGrace - time.Millisecond))
			if _, err := d.server.Write([]byte("y")); err != nil {
				t.Fatalf("what runs may not finish: %v", err)
			}
			d.guests.Sweep(c.at.Add(tlsconf.GuestGrace))
			if _, err := d.server.Write([]byte("z")); (err != nil) != (c.want != nil) {
				t.Errorf("after the time to finish a write says %v", err)
			}
		})
	}
}

func TestAGuestWithoutCertificateEndsWhenOneIsAskedFor(t *testing.T) {
	own := newAuthority(t, "servers")
	cert, key := own.issue(t, time.Hour, "localhost")
	under := func(ca config.File) *tls.Config {
		c, err := tlsconf.Server("proxy.tls", config.TLS{Cert: cert, Key: key, ClientCA: ca})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	d := newDesk(t, under(""), &tls.Config{InsecureSkipVerify: true})
	d.conf.Store(under(own.file))
	d.guests.Sweep(time.Now())
	if !errors.Is(d.why, tlsconf.ErrCertificateRefused) || !d.ending() {
		t.Errorf("it goes on: %v", d.why)
	}
}

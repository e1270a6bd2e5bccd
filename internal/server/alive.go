package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
)

// preface begins a connection of HTTP/2 (RFC 9113, 3.4) with empty settings. Every HTTP server of ours answers it, with
// settings or by hanging up, and none takes it for a request.
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + "\x00\x00\x00\x04\x00\x00\x00\x00\x00"

// alive goes the way of the traffic: it connects to the listeners of clients and agents, waits for whatever they say, and asks
// for what requests need. It returns nil when all has happened, and does not return while something is stuck.
func (s *Server) alive(ctx context.Context) error {
	if state(s.state.Load()) != up {
		return nil // a drain has a limit of its own
	}
	s.router.Size()
	s.sessions.len()
	for _, name := range []string{proxyListener, upstreamListener} {
		l := s.listeners.get(name)
		if l == nil {
			continue
		}
		if err := s.reacts(ctx, l.Addr(), s.now().tls[name] != nil); err != nil {
			return fmt.Errorf("the %s listener at %s: %w", name, l.Addr(), err)
		}
	}
	return nil
}

// reacts returns nil if there is any reaction at an address.
func (s *Server) reacts(ctx context.Context, addr net.Addr, secure bool) error {
	c, err := reach(ctx, addr)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }() // nothing was asked
	deadline, _ := ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		return err
	}
	if secure {
		// Who answers is this process; that it shows a certificate to somebody it does not know is reaction enough.
		conf := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2", "http/1.1"}} //nolint:gosec // see above
		c = tls.Client(c, conf)
	}
	_, err = io.WriteString(c, preface)
	if err == nil {
		_, err = c.Read(make([]byte, 1))
	}
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		return err
	}
	return nil
}

// reach connects to a listener of this host. One that stands for all addresses of IPv6 has those of IPv4 too, as a rule, and
// is opened as such also where the host has been left no address of IPv6: it is enough that one of the two leads there.
func reach(ctx context.Context, addr net.Addr) (net.Conn, error) {
	var d net.Dialer
	t, ok := addr.(*net.TCPAddr)
	if !ok || !t.IP.IsUnspecified() {
		return d.DialContext(ctx, addr.Network(), addr.String())
	}
	hosts := []string{"::1", "127.0.0.1"}
	if t.IP.To4() != nil {
		hosts = hosts[1:]
	}
	var errs []error
	for _, host := range hosts {
		c, err := d.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(t.Port)))
		if err == nil {
			return c, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

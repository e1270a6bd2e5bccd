package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
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
	var d net.Dialer
	c, err := d.DialContext(ctx, addr.Network(), local(addr))
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

// local returns where a listener can be reached from this host.
func local(addr net.Addr) string {
	t, ok := addr.(*net.TCPAddr)
	if !ok || !t.IP.IsUnspecified() {
		return addr.String()
	}
	one := *t
	one.IP = net.IPv6loopback
	if t.IP.To4() != nil {
		one.IP = net.IPv4(127, 0, 0, 1)
	}
	return one.String()
}

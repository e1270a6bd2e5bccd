package piko

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/pikoproxy/piko/internal/relay"
)

// serviceTimeout bounds the connecting to a local service.
const serviceTimeout = 5 * time.Second

// ListenAndForward offers an endpoint and brings each of its connections to a service at a local address: host:port, or
// unix:/path. Like [Client.Listen] it keeps trying until the endpoint is routable; then it serves until ctx ends or the
// client is closed. It returns the context's error or [net.ErrClosed], or the reason why the endpoint could not be offered,
// and only after the connections that it forwarded have ended or, with ctx, been cut.
//
// While the service can't be reached, connections are refused, and the cluster brings them to another agent if there is
// one. For a service that should take nothing new but finish what it has, call [Client.Shutdown].
func (c *Client) ListenAndForward(ctx context.Context, endpoint, address string, opts ...ListenOption) error {
	network, target, err := serviceAddr(address)
	if err != nil {
		return fmt.Errorf("forward to %q: %w", address, err)
	}
	l, err := c.Listen(ctx, endpoint, opts...)
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()

	log := c.logger()
	dialer := net.Dialer{Timeout: serviceTimeout}
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		in, err := l.AcceptIncoming()
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return err
		}
		wg.Go(func() {
			service, err := dialer.DialContext(ctx, network, target)
			if err != nil {
				log.Warn("service unreachable", "endpoint", l.endpoint, "service", address, "err", err)
				_ = in.Refuse(CodeServiceUnreachable, "")
				return
			}
			conn, err := in.Accept()
			if err != nil {
				_ = service.Close() // the client has given up meanwhile
				return
			}
			if _, err := relay.Relay(ctx, conn, service, relay.Options{}); err != nil {
				log.Debug("connection broken", "endpoint", l.endpoint, "service", address, "err", err)
			}
		})
	}
}

// serviceAddr splits the address of a local service into what a dialer wants.
func serviceAddr(s string) (network, address string, err error) {
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		if path == "" {
			return "", "", errors.New("want unix:/path")
		}
		return "unix", path, nil
	}
	if _, _, err := net.SplitHostPort(s); err != nil {
		return "", "", fmt.Errorf("want host:port or unix:/path: %w", err)
	}
	return "tcp", s, nil
}

package agent

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/tunnel"
)

// health watches one service.
//
//	         first check good                     unhealthy_after bad
//	unknown ────────────────► healthy ◄──────────────────────────────► unhealthy
//	   └──────────────────────────────────────────────────────────────────▲
//	         first check bad                       healthy_after good
type health struct {
	settings config.Health
	check    func(ctx context.Context) error
	log      logrus.FieldLogger
}

// newHealth returns nil when the service is not to be checked.
func newHealth(c config.Listener, s *service, log logrus.FieldLogger) *health {
	h := &health{settings: c.Health, log: log}
	switch c.Health.Type {
	case "http":
		h.check = httpCheck(c, s)
	case "tcp":
		h.check = func(ctx context.Context) error {
			conn, err := s.dial(ctx, tunnel.ProtocolTCP, nil)
			if err != nil {
				return err
			}
			return conn.Close()
		}
	default:
		return nil
	}
	return h
}

// httpCheck asks for the path on a connection of its own, so that a stuck pool can't hide a dead service.
func httpCheck(c config.Listener, s *service) func(ctx context.Context) error {
	transport := newTransport(tunnel.ProtocolHTTP, s.dial)
	transport.DisableKeepAlives = true
	return func(ctx context.Context) error {
		url := s.scheme() + "://" + urlHost(s) + c.Health.Path
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return fmt.Errorf("health check: %w", err)
		}
		if c.HostHeader != "" {
			req.Host = c.HostHeader
		}
		req.Header.Set("User-Agent", "piko-agent (health check)")
		res, err := transport.RoundTrip(req)
		if err != nil {
			return fmt.Errorf("health check: %w", err)
		}
		defer func() { _ = res.Body.Close() }()
		if res.StatusCode >= http.StatusBadRequest {
			return fmt.Errorf("health check: service %s answers %d to %s", s.text, res.StatusCode, c.Health.Path)
		}
		return nil
	}
}

// watch checks until ctx ends and calls changed at each change of state, the first one included. Checks never overlap.
func (h *health) watch(ctx context.Context, changed func(healthy bool)) {
	ticker := time.NewTicker(time.Duration(h.settings.Interval))
	defer ticker.Stop()
	known, healthy, streak := false, false, 0
	for {
		err := h.once(ctx)
		if ctx.Err() != nil {
			return
		}
		good := err == nil
		switch {
		case good == healthy && known:
			streak = 0
		case !known || good && streak+1 >= h.settings.HealthyAfter || !good && streak+1 >= h.settings.UnhealthyAfter:
			known, healthy, streak = true, good, 0
			h.report(err)
			changed(healthy)
		default:
			streak++
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

func (h *health) once(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(h.settings.Timeout))
	defer cancel()
	return h.check(ctx)
}

func (h *health) report(err error) {
	if err != nil {
		h.log.WithField("err", err).Warn("service unhealthy, endpoint not offered")
		return
	}
	h.log.Info("service healthy")
}

package proxy

import (
	"context"
	"errors"
	"net"
	"net/http"

	"github.com/pikoproxy/piko/internal/auth"
	"github.com/pikoproxy/piko/internal/endpoint"
	"github.com/pikoproxy/piko/internal/fault"
	"github.com/pikoproxy/piko/internal/relay"
	"github.com/pikoproxy/piko/internal/router"
	"github.com/pikoproxy/piko/internal/tunnel"
)

// statusClientGone stands in the log and the metrics for a request whose client left before the answer. Nobody is sent
// it. nginx has made the number known.
const statusClientGone = 499

// authenticate finds out who sends the request, and whether that one may reach the endpoint.
func (x *exchange) authenticate() (*fault.Fault, error) {
	x.key = router.KeyOf(x.tenant, x.endpoint)
	if x.server.auth == nil {
		return x.admitted()
	}
	id, err := x.server.auth.Authenticate(x.r.Context(), x.r.Header, x.tenant)
	if err != nil {
		return x.badToken(err), err
	}
	if !id.Permits(x.endpoint) {
		return &fault.EndpointNotPermitted, nil
	}
	if id != nil {
		x.key = router.KeyOf(id.Tenant, x.endpoint)
		x.identity = id
		x.server.leases.Hold(&x.lease, id, x)
		// Our tokens never reach a service. One that needs Authorization for itself is sent ours in the other header.
		x.bearer = len(x.r.Header[auth.PikoAuthorization]) == 0
	}
	return x.admitted()
}

// admitted asks the limits about the endpoint.
func (x *exchange) admitted() (*fault.Fault, error) {
	if x.server.limiter == nil {
		return nil, nil
	}
	return x.server.limiter.Endpoint(x.origin.addr, x.key), nil
}

// badToken says how a request without a good token is answered.
func (x *exchange) badToken(err error) *fault.Fault {
	f := authFault(err)
	if f.Status == http.StatusUnauthorized && x.server.limiter != nil {
		if own := x.server.limiter.BadToken(x.origin.addr); own != nil {
			return own
		}
	}
	return f
}

func authFault(err error) *fault.Fault {
	for _, c := range []struct {
		err   error
		fault *fault.Fault
	}{
		{auth.ErrMissing, &fault.MissingAuthorization},
		{auth.ErrMalformed, &fault.InvalidAuthorization},
		{auth.ErrScheme, &fault.UnsupportedAuthType},
		{auth.ErrExpired, &fault.ExpiredToken},
		{auth.ErrUnknownTenant, &fault.UnknownTenant},
		{auth.ErrNotPermitted, &fault.EndpointNotPermitted},
		{auth.ErrUnavailable, &fault.AuthUnavailable},
	} {
		if errors.Is(err, c.err) {
			return c.fault
		}
	}
	return &fault.InvalidToken
}

// openFault says why no stream was opened.
func openFault(err error) *fault.Fault {
	var refused *tunnel.RefusedError
	switch {
	case errors.Is(err, router.ErrNoUpstream), errors.Is(err, router.ErrProtocol):
		return &fault.NoUpstreams
	case errors.Is(err, router.ErrTimeout), errors.Is(err, tunnel.ErrOpenTimeout):
		return &fault.UpstreamTimeout
	case !errors.As(err, &refused):
		return &fault.UpstreamUnreachable
	}
	switch refused.Code {
	case tunnel.CodeServiceUnreachable:
		return &fault.ServiceUnreachable
	case tunnel.CodeOverloaded:
		return &fault.Overloaded
	case tunnel.CodeNotListening, tunnel.CodeDraining:
		return &fault.NoUpstreams
	default:
		return &fault.UpstreamUnreachable
	}
}

// detailOf adds to an answer what only this case tells. Neither error texts nor names of machines go to clients.
func detailOf(f fault.Fault, err error) string {
	if f.Code == fault.InvalidResponse.Code && errors.Is(err, errMalformed) {
		return "The node's log says what is wrong with the answer."
	}
	return ""
}

func parseEndpoint(name string) (string, *fault.Fault) {
	canonical, err := endpoint.Parse(name)
	if err != nil {
		return "", &fault.InvalidEndpoint
	}
	return canonical, nil
}

// gone reports whether the exchange is to end without an answer: its client has left, or was let in by a token that is
// good for nothing any more.
func (x *exchange) gone() bool { return clientGone(x.r.Context()) || x.ended() != nil }

// clientGone reports whether the request ended because its client, or the server's drain deadline, ended it.
func clientGone(ctx context.Context) bool { return ctx.Err() != nil }

func isTimeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}

// resetClient ends a connection in a way that can't be taken for the end of an answer: an HTTP/1.0 answer of unknown
// length ends with the connection, so that a clean close would look complete.
func resetClient(w http.ResponseWriter) {
	if h, ok := w.(http.Hijacker); ok {
		if conn, _, err := h.Hijack(); err == nil {
			relay.Abort(conn)
		}
	}
}

package limit

import (
	"net/netip"
	"sync/atomic"

	"github.com/pikoproxy/piko/internal/fault"
)

// RequestSettings bound the requests of clients.
type RequestSettings struct {
	Access                                  // of the client, which for a trusted proxy is the one that it speaks for
	PerAddress  Rate                        // requests of one client
	PerEndpoint Rate                        // requests for one endpoint, of all its clients together
	FailedAuth  Rate                        // requests of one client whose token is bad
	Endpoints   map[string]EndpointSettings // by key of the router: those that differ from the others
}

// EndpointSettings are those of one endpoint.
type EndpointSettings struct {
	Access
	Rate Rate // 0: that of every endpoint
}

// Requests decides about the requests of clients.
type Requests struct {
	settings                      atomic.Pointer[RequestSettings]
	addresses, endpoints, strikes *Buckets
}

// NewRequests returns the limits of one listener.
func NewRequests(s RequestSettings) *Requests {
	r := &Requests{addresses: NewBuckets(), endpoints: NewBuckets(), strikes: NewBuckets()}
	r.Apply(s)
	return r
}

// Apply replaces the settings, for requests that come from now on. What a client has used up stays so.
func (r *Requests) Apply(s RequestSettings) { r.settings.Store(&s) }

// Client decides about a request before its token is looked at; nil: it may go on.
func (r *Requests) Client(addr netip.Addr) *fault.Fault {
	s := r.settings.Load()
	switch {
	case !s.Empty() && !s.Permits(addr):
		return &fault.AddressDenied
	case !r.addresses.AllowAddress(addr, s.PerAddress):
		return &fault.RateLimited
	}
	return nil
}

// Endpoint decides about a request before a stream is asked for; nil: it may go on.
func (r *Requests) Endpoint(addr netip.Addr, key string) *fault.Fault {
	s := r.settings.Load()
	limit := s.PerEndpoint
	if own, ok := s.Endpoints[key]; ok {
		if !own.Permits(addr) {
			return &fault.AddressDenied
		}
		if own.Rate.PerSecond > 0 {
			limit = own.Rate
		}
	}
	if !r.endpoints.Allow(key, limit) {
		return &fault.EndpointBusy
	}
	return nil
}

// BadToken hears that the token of a client is not good, and decides whether it is told why. Clients that do show a
// good one are never held up, though they may share the address.
func (r *Requests) BadToken(addr netip.Addr) *fault.Fault {
	if !r.strikes.AllowAddress(addr, r.settings.Load().FailedAuth) {
		return &fault.TooManyFailures
	}
	return nil
}

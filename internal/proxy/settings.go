package proxy

import (
	"strings"
	"time"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/endpoint"
)

// Settings are the parts of the proxy's behaviour that may change while it runs. A value is never changed after it was
// given to [New] or [Server.Apply].
type Settings struct {
	Domains               []string      // empty: the first label of any host names the endpoint
	MaxHeaderFields       int           // 0: no limit
	ResponseHeaderTimeout time.Duration // from the end of the request to the head of the answer; 0: none
	TrustedProxies        config.CIDRs  // peers whose forwarding headers are believed
	AccessLog             bool          // a line for each request, at level info
	Underscores           underscores

	MaxTargetBytes         int           // 0: 16 KiB
	MaxBodyBytes           int64         // of a request; 0: no limit
	BodyTimeout            time.Duration // for a client to send more of a body; 0: none
	MinBodyRate            int64         // bytes a second of a request's body; 0: none
	WriteTimeout           time.Duration // for a client to read more of an answer; 0: none
	MaxResponseHeaderBytes int           // 0: 64 KiB
	MaxInformational       int           // 1xx answers to one request; 0: 5
	MaxRequests            int           // of one connection of HTTP/2; 0: no limit
	MaxAge                 time.Duration // of one connection of HTTP/2; 0: no limit

	Tenants []TenantDomain
}

// TenantDomain is a domain under which the endpoints of one tenant are reached, and nobody else's.
type TenantDomain struct{ Domain, Tenant string }

// SettingsOf takes from the configuration of the proxy listener, and of the tenants, what may change while it runs.
func SettingsOf(c config.Proxy, tenants []config.Tenant) Settings {
	var domains []TenantDomain
	for _, t := range tenants {
		for _, d := range t.Domains {
			domains = append(domains, TenantDomain{d, t.ID})
		}
	}
	return Settings{
		Tenants:               domains,
		Domains:               c.Domains,
		MaxHeaderFields:       c.MaxHeaderFields,
		ResponseHeaderTimeout: time.Duration(c.ResponseHeaderTimeout),
		TrustedProxies:        c.TrustedProxies,
		AccessLog:             c.AccessLog,
		Underscores:           underscoresOf(c.Underscores),

		MaxTargetBytes:         int(c.Limits.MaxTargetBytes),
		MaxBodyBytes:           int64(c.Limits.MaxBodyBytes),
		BodyTimeout:            time.Duration(c.Limits.BodyTimeout),
		MinBodyRate:            int64(c.Limits.MinBodyRate),
		WriteTimeout:           time.Duration(c.Limits.WriteTimeout),
		MaxResponseHeaderBytes: int(c.Limits.MaxResponseHeaderBytes),
		MaxInformational:       c.Limits.MaxInformational,
		MaxRequests:            c.HTTP2.MaxRequests,
		MaxAge:                 time.Duration(c.HTTP2.MaxAge),
	}
}

// Limits belong to the listener's HTTP server and hold for the connections it accepts.
type Limits struct {
	MaxHeaderBytes    int           // of one request; 0: 32 KiB
	ReadHeaderTimeout time.Duration // for the header of one request; 0: 10 s
	IdleTimeout       time.Duration // between two requests of a connection; 0: 5 min
	HandshakeTimeout  time.Duration // for that of TLS; 0: 10 s
	MaxStreams        int           // requests in flight on a connection of HTTP/2; 0: 100
}

// LimitsOf takes the limits from the configuration of the proxy listener.
func LimitsOf(c config.Proxy) Limits {
	return Limits{
		MaxHeaderBytes:    int(c.MaxHeaderBytes),
		ReadHeaderTimeout: time.Duration(c.ReadHeaderTimeout),
		IdleTimeout:       time.Duration(c.IdleTimeout),
		HandshakeTimeout:  time.Duration(c.Limits.TLSHandshakeTimeout),
		MaxStreams:        c.HTTP2.MaxConcurrentStreams,
	}
}

func (s Settings) withDefaults() Settings {
	if s.MaxTargetBytes <= 0 {
		s.MaxTargetBytes = maxTarget
	}
	if s.MaxResponseHeaderBytes <= 0 {
		s.MaxResponseHeaderBytes = maxResponseHead
	}
	if s.MaxInformational <= 0 {
		s.MaxInformational = maxInformational
	}
	return s
}

func (l Limits) withDefaults() Limits {
	if l.MaxHeaderBytes <= 0 {
		l.MaxHeaderBytes = 32 << 10
	}
	if l.ReadHeaderTimeout <= 0 {
		l.ReadHeaderTimeout = 10 * time.Second
	}
	if l.IdleTimeout <= 0 {
		l.IdleTimeout = 5 * time.Minute
	}
	if l.MaxStreams <= 0 {
		l.MaxStreams = 100
	}
	return l
}

// tenantOf returns whose domain a host is in, or is itself: the longest domain that fits counts.
func (s *Settings) tenantOf(host string) string {
	if i := s.fitting(host); i >= 0 {
		return s.Tenants[i].Tenant
	}
	return ""
}

// Endpoint returns the endpoint that a host names, and the tenant it belongs to, if any. Errors are those of package
// endpoint.
func (s *Settings) Endpoint(host string) (tenant, name string, err error) {
	domains := s.Domains
	if i := s.fitting(host); i >= 0 {
		tenant, domains = s.Tenants[i].Tenant, []string{s.Tenants[i].Domain}
	}
	name, err = endpoint.FromHost(host, domains)
	return tenant, name, err
}

func (s *Settings) fitting(host string) int {
	best := -1
	if len(s.Tenants) == 0 {
		return best
	}
	if name, port, found := strings.Cut(host, ":"); found && !strings.Contains(port, ":") {
		host = name
	}
	host = strings.TrimSuffix(host, ".")
	for i, t := range s.Tenants {
		if under(host, t.Domain) && (best < 0 || len(t.Domain) > len(s.Tenants[best].Domain)) {
			best = i
		}
	}
	if best >= 0 {
		for _, d := range s.Domains {
			if under(host, d) && len(d) > len(s.Tenants[best].Domain) {
				return -1 // a domain of everybody's inside a tenant's
			}
		}
	}
	return best
}

// under reports whether host is domain, or ends in it behind a dot.
func under(host, domain string) bool {
	i := len(host) - len(domain)
	return i >= 0 && strings.EqualFold(host[i:], domain) && (i == 0 || host[i-1] == '.')
}

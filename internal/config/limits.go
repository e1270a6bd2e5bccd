package config

import (
	"fmt"
	"strings"
	"time"
)

// ProxyLimits bound what one client may ask of the proxy listener.
type ProxyLimits struct {
	// Most open connections of clients. More are closed at once. 0: no limit.
	MaxConnections int `toml:"max_connections" reload:"live" min:"0"`
	// Most open connections from one IPv4 address or one IPv6 network of 64 bits. More are closed at once. Connections
	// of trusted proxies and of this host itself are not counted. Many people behind one address, as in a large office
	// or behind a balancer that is missing in `trusted_proxies`, may need more. 0: no limit.
	MaxConnectionsPerAddress int `toml:"max_connections_per_address" reload:"live" min:"0"`
	// How long the TLS handshake of a client may take.
	TLSHandshakeTimeout Duration `toml:"tls_handshake_timeout" reload:"live" min:"1ms"`
	// How long a client may send nothing of a request's body while the service would take more. Then it gets 408. Once
	// the answer has begun there is no such limit, nor between two messages of gRPC. 0s: for ever.
	BodyTimeout Duration `toml:"body_timeout" reload:"live"`
	// Least bytes of a request's body that a client must send each second, on average from 10 seconds of waiting for it
	// on. Fewer are answered with 408. It holds where `body_timeout` does. 0B: no limit.
	MinBodyRate Size `toml:"min_body_rate" reload:"live"`
	// How long a client may read nothing of an answer. Then the connection is broken off. Connections that carry TCP or
	// have been upgraded may rest as long as they like. 0s: for ever.
	WriteTimeout Duration `toml:"write_timeout" reload:"live" max:"1h"`
	// Least bytes of answers that a client must take each second, on average over `write_timeout`, as long as there are
	// more for it than the network takes. The connection of one that takes fewer is broken off. It holds where
	// `write_timeout` does. 0B: no limit.
	MinReadRate Size `toml:"min_read_rate" reload:"live"`
	// Most bytes in the body of one request. More are answered with 413. 0B: no limit.
	MaxBodyBytes Size `toml:"max_body_bytes" reload:"live"`
	// Most bytes in the target of a request, which is its path with the query. More are answered with 414.
	MaxTargetBytes Size `toml:"max_target_bytes" reload:"live" min:"256B" max:"1MiB"`
	// Most bytes in the header of a service's answer. More count as no answer: the client gets 502.
	MaxResponseHeaderBytes Size `toml:"max_response_header_bytes" reload:"live" min:"1KiB" max:"16MiB"`
	// Most informational answers (1xx) of a service to one request. More count as no answer.
	MaxInformational int `toml:"max_informational" reload:"live" min:"1" max:"1000"`
}

// ProxyRates bound how often something may happen on the proxy listener.
type ProxyRates struct {
	// Requests each second from one client: one IPv4 address or one IPv6 network of 64 bits, which for a trusted proxy
	// is the one that it names. More get 429. Many people may share one address. 0: no limit.
	RequestsPerAddress float64 `toml:"requests_per_address" reload:"live" min:"0" max:"1000000"`
	// How many of these may come at once. 0: as many as in one second.
	RequestsPerAddressBurst int `toml:"requests_per_address_burst" reload:"live" min:"0" max:"1000000"`
	// Requests each second for one endpoint, from all clients of this node together. More get 429. 0: no limit.
	RequestsPerEndpoint float64 `toml:"requests_per_endpoint" reload:"live" min:"0" max:"1000000"`
	// How many of these may come at once. 0: as many as in one second.
	RequestsPerEndpointBurst int `toml:"requests_per_endpoint_burst" reload:"live" min:"0" max:"1000000"`
	// Bad tokens each second from one client. More get 429 and not the reason. Good tokens from the same address are
	// taken all the same. 0: no limit.
	FailedAuthPerAddress float64 `toml:"failed_auth_per_address" reload:"live" min:"0" max:"1000000"`
	// How many of these may come at once. 0: as many as in one second.
	FailedAuthPerAddressBurst int `toml:"failed_auth_per_address_burst" reload:"live" min:"0" max:"1000000"`
}

// ProxyHTTP2 bounds HTTP/2 on the proxy listener.
type ProxyHTTP2 struct {
	// Most requests in flight on one connection.
	MaxConcurrentStreams int `toml:"max_concurrent_streams" reload:"live" min:"1" max:"10000"`
	// After how many requests a client is asked to open another connection, which lets a balancer spread it anew. Those
	// that are in flight finish. 0: never.
	MaxRequests int `toml:"max_requests" reload:"live" min:"0"`
	// After what time a client is asked to open another connection, give or take a tenth. 0s: never.
	MaxAge Duration `toml:"max_age" reload:"live"`
}

// ProxyEndpoint is one entry of proxy.endpoints.
type ProxyEndpoint struct {
	// Name of the endpoint: `my-endpoint`, or `tenant/my-endpoint` for one that belongs to a tenant.
	Endpoint string `toml:"endpoint" reload:"live" required:"true"`
	// Networks or addresses whose clients may reach this endpoint. Others get 403. Empty: all may.
	Allow CIDRs `toml:"allow" reload:"live"`
	// Networks or addresses whose clients may not, also if `allow` holds them.
	Deny CIDRs `toml:"deny" reload:"live"`
	// Requests each second for this endpoint instead of `proxy.rates.requests_per_endpoint`. 0: that.
	Requests float64 `toml:"requests" reload:"live" min:"0" max:"1000000"`
	// How many of these may come at once. 0: as many as in one second.
	Burst int `toml:"burst" reload:"live" min:"0" max:"1000000"`
}

// UpstreamLimits bound what agents may ask of the upstream listener.
type UpstreamLimits struct {
	// Most open connections of agents, each of which is or may become a session. More are closed at once. 0: no limit.
	MaxConnections int `toml:"max_connections" reload:"live" min:"0"`
	// Most open connections from one IPv4 address or one IPv6 network of 64 bits. Whole fleets of agents may stand
	// behind one address. 0: no limit.
	MaxConnectionsPerAddress int `toml:"max_connections_per_address" reload:"live" min:"0"`
	// Most sessions of one tenant on this node. 0: no limit.
	MaxSessionsPerTenant int `toml:"max_sessions_per_tenant" reload:"live" min:"0"`
	// Most sessions on this node whose tokens have the same subject (`sub`). A whole fleet may share a token. 0: no
	// limit.
	MaxSessionsPerSubject int `toml:"max_sessions_per_subject" reload:"live" min:"0"`
	// Most sessions on this node that offer the same endpoint. 0: no limit.
	MaxSessionsPerEndpoint int `toml:"max_sessions_per_endpoint" reload:"live" min:"0"`
	// Most bytes that have come over all sessions of this node, those with other nodes included, and that nobody has read
	// yet. While there are more, requests and connections of clients get 503; from half of it on each stream may have
	// only 256 KiB on its way. One session may hold 64 MiB in any case. 0B: half of `memory_limit`, or of what that stands
	// for.
	MaxUnreadBytes Size `toml:"max_unread_bytes" reload:"live"`
	// Most endpoints of one tenant on this node. 0: no limit.
	MaxEndpointsPerTenant int `toml:"max_endpoints_per_tenant" reload:"live" min:"0"`
	// Sessions that agents from one address may ask for each second. After a failure of the network a fleet behind one
	// address comes back at once, and what is turned away here tries again. Agents of this host are not counted. 0: no
	// limit.
	SessionsPerAddress float64 `toml:"sessions_per_address" reload:"live" min:"0" max:"1000000"`
	// How many of these may come at once. 0: as many as in one second.
	SessionsPerAddressBurst int `toml:"sessions_per_address_burst" reload:"live" min:"0" max:"1000000"`
	// Bad tokens each second from one address. More get 429 and not the reason. Good tokens from the same address are
	// taken all the same. 0: no limit.
	FailedAuthPerAddress float64 `toml:"failed_auth_per_address" reload:"live" min:"0" max:"1000000"`
	// How many of these may come at once. 0: as many as in one second.
	FailedAuthPerAddressBurst int `toml:"failed_auth_per_address_burst" reload:"live" min:"0" max:"1000000"`
}

func defaultProxyLimits() ProxyLimits {
	return ProxyLimits{
		MaxConnections:           20_000,
		MaxConnectionsPerAddress: 1000,
		TLSHandshakeTimeout:      Duration(10 * time.Second),
		BodyTimeout:              Duration(30 * time.Second),
		MinBodyRate:              256,
		WriteTimeout:             Duration(time.Minute),
		MinReadRate:              256,
		MaxTargetBytes:           16 << 10,
		MaxResponseHeaderBytes:   64 << 10,
		MaxInformational:         5,
	}
}

func defaultProxyRates() ProxyRates {
	return ProxyRates{FailedAuthPerAddress: 20, FailedAuthPerAddressBurst: 40}
}

func defaultProxyHTTP2() ProxyHTTP2 {
	return ProxyHTTP2{MaxConcurrentStreams: 100, MaxRequests: 10_000, MaxAge: Duration(time.Hour)}
}

func defaultUpstreamLimits() UpstreamLimits {
	return UpstreamLimits{
		MaxConnections:            50_000,
		MaxSessionsPerTenant:      10_000,
		MaxSessionsPerSubject:     10_000,
		MaxSessionsPerEndpoint:    1000,
		MaxEndpointsPerTenant:     10_000,
		SessionsPerAddress:        100,
		SessionsPerAddressBurst:   1000,
		FailedAuthPerAddress:      20,
		FailedAuthPerAddressBurst: 40,
	}
}

// checkEndpoints checks proxy.endpoints and writes the names as they are compared.
func (l *loader) checkEndpoints(all []ProxyEndpoint) {
	for i := range all {
		key := fmt.Sprintf("proxy.endpoints[%d].endpoint", i)
		tenant, name, found := strings.Cut(all[i].Endpoint, "/")
		if !found {
			all[i].Endpoint = l.checkEndpoint(key, all[i].Endpoint)
			continue
		}
		l.checkName(key, tenant)
		all[i].Endpoint = tenant + "/" + l.checkEndpoint(key, name)
	}
}

package config

// Agent holds the settings of the agent daemon, read from piko-agent.toml.
type Agent struct {
	Source `toml:"-"`

	// How long a stopping agent waits for running requests and streams before it cuts them.
	DrainTimeout Duration `toml:"drain_timeout" reload:"live"`
	// What is logged, and how.
	Log Log `toml:"log"`
	// The nodes that the agent connects to.
	Connect AgentConnect `toml:"connect"`
	// The listener for operators, probes and scrapers. Off unless it has an address.
	Admin Admin `toml:"admin"`
	// What the agent offers: each listener is one endpoint and the service that answers for it.
	Listeners []Listener `toml:"listeners" key:"endpoint" reload:"live"`
}

// AgentConnect holds the settings of an agent's sessions with nodes.
type AgentConnect struct {
	// Address of the upstream listener of a node or balancer: `http://host:port` or `https://host:port`, with a path if a
	// proxy in front of it wants one.
	URL string `toml:"url" reload:"live" required:"true"`
	// How many sessions to keep, each to another node as far as there are that many.
	Connections int `toml:"connections" reload:"live" min:"1" max:"64"`
	// Token that allows the agent to offer its endpoints.
	Token Secret `toml:"token" reload:"live"`
	// File that holds `token`. It is read again when it changes, and nodes get the new token without a new
	// connection.
	TokenFile File `toml:"token_file" reload:"live" into:"Token"`
	// Tenant whose endpoints these are.
	TenantID string `toml:"tenant_id" reload:"live"`
	// Proxy to connect through: `http://host:port`, `https://host:port` or `socks5://host:port`, with `user:password@`
	// if it wants that. Empty: as HTTPS_PROXY, HTTP_PROXY and NO_PROXY in the environment say.
	ProxyURL ProxyURL `toml:"proxy_url" reload:"live"`
	// How often a quiet session is checked for life.
	Heartbeat Duration `toml:"heartbeat" reload:"live" min:"1s" max:"1m"`
	// TLS towards the nodes, used with `https://`.
	TLS ClientTLS `toml:"tls"`
}

// Listener is one entry of listeners: an endpoint that the agent offers.
type Listener struct {
	// Name of the endpoint.
	Endpoint string `toml:"endpoint" reload:"live" required:"true"`
	// Address of the service: a port of this host, `host:port`, `unix:/path`, `http://host:port` or
	// `https://host:port`.
	Addr ServiceAddress `toml:"addr" reload:"live" required:"true"`
	// What clients send: `http` (requests, WebSockets and gRPC included) or `tcp` (bytes).
	Protocol string `toml:"protocol" reload:"live" one_of:"http|tcp"`
	// Host header that the service sees. Empty: the one that the client sent. For `http`.
	HostHeader string `toml:"host_header" reload:"live"`
	// Version of the PROXY protocol that tells the service who the client is. Empty: none. For `tcp`.
	ProxyProtocol string `toml:"proxy_protocol" reload:"live" one_of:"|v1|v2"`
	// Share of the requests that this agent gets, compared with the others that offer the endpoint.
	Weight int `toml:"weight" reload:"live" min:"1" max:"1000"`
	// Log one line for each request and each TCP connection here too. The node logs them already.
	AccessLog bool `toml:"access_log" reload:"live"`
	// Most requests or connections in flight to the service. More are refused, and the node tries another agent.
	// 0: no limit.
	MaxInFlight int `toml:"max_in_flight" reload:"live" min:"0"`
	// Check of the service. While it fails, the endpoint is not offered.
	Health Health `toml:"health"`
	// TLS towards the service, used with `https://`.
	TLS ClientTLS `toml:"tls"`
}

// Health holds the settings of the check of a service.
type Health struct {
	// How the service is checked. `http`: GET of `path` answers below 400. `tcp`: a connection opens. Empty: it is not
	// checked.
	Type string `toml:"type" reload:"live" one_of:"|http|tcp"`
	// Path that is asked for, when `type` is `http`.
	Path string `toml:"path" reload:"live"`
	// How often the service is checked.
	Interval Duration `toml:"interval" reload:"live" min:"100ms" max:"1h"`
	// How long one check may take.
	Timeout Duration `toml:"timeout" reload:"live" min:"1ms" max:"1h"`
	// After how many failed checks in a row the endpoint is withdrawn.
	UnhealthyAfter int `toml:"unhealthy_after" reload:"live" min:"1" max:"1000"`
	// After how many good checks in a row it is offered again.
	HealthyAfter int `toml:"healthy_after" reload:"live" min:"1" max:"1000"`
}

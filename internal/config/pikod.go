package config

// Pikod holds the settings of a node, read from pikod.toml.
type Pikod struct {
	Source `toml:"-"`

	// How long a stopping node waits for running requests and streams before it cuts them.
	DrainTimeout Duration `toml:"drain_timeout" reload:"live"`
	// How long a stopping node goes on serving as before after it has reported itself not ready, so that load balancers
	// look elsewhere first. Set it to a little more than the interval of the balancer's health check.
	DrainNotice Duration `toml:"drain_notice" reload:"live"`
	// How much memory the process may hold. Garbage is collected more often from 80 % of it on. From 90 % on nothing new is
	// taken: requests of clients and sessions of agents get 503. From 95 % on connections of clients that carry nothing are
	// closed, and no new ones accepted. 0B: what the control group of the process allows, as in a container or by MemoryMax
	// of systemd; where that says nothing, a quarter more than GOMEMLIMIT in the environment; else no limit. The garbage
	// collector heeds GOMEMLIMIT, if that is set, instead of the 80 %.
	MemoryLimit Size `toml:"memory_limit" reload:"live"`
	// Most TLS handshakes that the process works on at once, those of clients, agents, operators and other nodes together.
	// More wait for their turn, no longer than a handshake may take. One that waits for the other end counts for nothing.
	// 0: four for each core.
	MaxTLSHandshakes int `toml:"max_tls_handshakes" reload:"live" min:"0" max:"1000000"`
	// What is logged, and how.
	Log Log `toml:"log"`
	// The listener that clients send their requests to.
	Proxy Proxy `toml:"proxy"`
	// The listener that agents connect to.
	Upstream Upstream `toml:"upstream"`
	// The listener for operators, probes and scrapers: health, readiness, metrics and status.
	Admin Admin `toml:"admin"`
	// How this node presents itself to the other nodes. Without Consul there are none, and this section is not used.
	Cluster Cluster `toml:"cluster"`
	// The Consul that the nodes find each other through. Without an address this node works alone and keeps its
	// routes in memory.
	Consul Consul `toml:"consul"`
	// How requests are spread over the upstreams of an endpoint.
	Balance Balance `toml:"balance"`
	// Certificates from an authority such as Let's Encrypt, ordered and renewed by the node itself, for those who have no
	// balancer in front that does it.
	ACME ACME `toml:"acme"`
}

// Proxy holds the settings of the listener for clients.
type Proxy struct {
	// Address for clients: `host:port`, `:port` for every address of the host, or `unix:/path`.
	Listen Address `toml:"listen" reload:"live" required:"true"`
	// Domains whose first label names the endpoint. Requests for hosts that lie under none of them get 404. Empty: the
	// first label of any host names the endpoint.
	Domains []string `toml:"domains" reload:"live"`
	// Most bytes in the header of one request. More is answered with 431.
	MaxHeaderBytes Size `toml:"max_header_bytes" reload:"live" min:"1KiB" max:"1MiB"`
	// Most fields in the header of one request. More are answered with 431.
	MaxHeaderFields int `toml:"max_header_fields" reload:"live" min:"1" max:"10000"`
	// How long a client may take to send the header of a request.
	ReadHeaderTimeout Duration `toml:"read_header_timeout" reload:"live" min:"1ms"`
	// How long a connection may stay open between two requests.
	IdleTimeout Duration `toml:"idle_timeout" reload:"live" min:"1ms"`
	// How long a service may take to begin its answer. 0s: as long as it likes. There is no limit on how long a whole
	// request may last.
	ResponseHeaderTimeout Duration `toml:"response_header_timeout" reload:"live"`
	// How long a request is held when nobody offers its endpoint but somebody did moments ago, or when this node has
	// just started. 0s: such a request fails at once.
	EndpointWait Duration `toml:"endpoint_wait" reload:"live" max:"5m"`
	// Networks in CIDR notation, or single addresses, whose X-Forwarded-* and Forwarded headers are believed. From
	// everybody else these headers are replaced.
	TrustedProxies CIDRs `toml:"trusted_proxies" reload:"live"`
	// Log one line for each request and each TCP connection.
	AccessLog bool `toml:"access_log" reload:"live"`
	// Networks in CIDR notation, or single addresses, that clients may come from. Others are turned away: their
	// connections are closed, or their requests get 403 when they come by a trusted proxy. Empty: everybody may come.
	Allow CIDRs `toml:"allow" reload:"live"`
	// Networks or addresses that clients may not come from, also if `allow` holds them.
	Deny CIDRs `toml:"deny" reload:"live"`
	// What becomes of request headers such as `X_Forwarded_For`, which many services can't tell from `X-Forwarded-For`,
	// so that a client could forge what only a proxy may say. `drop`: they do not reach the service. `reject`: the
	// request gets 400. `allow`: they pass, except those that would be taken for framing or for Piko's own. Other headers
	// with an underscore, such as `api_key`, always pass.
	Underscores string `toml:"underscores" reload:"live" one_of:"drop|reject|allow"`
	// Limits of what one client may ask.
	Limits ProxyLimits `toml:"limits"`
	// Limits of how often something may happen.
	Rates ProxyRates `toml:"rates"`
	// Limits of HTTP/2.
	HTTP2 ProxyHTTP2 `toml:"http2"`
	// TLS for clients. Without a certificate the listener speaks plain HTTP.
	TLS TLS `toml:"tls"`
	// Who may send requests. Without a key or key set everybody may.
	Auth Auth `toml:"auth"`
	// Endpoints that other limits hold for than for all.
	Endpoints []ProxyEndpoint `toml:"endpoints" key:"endpoint" reload:"live"`
}

// Upstream holds the settings of the listener for agents.
type Upstream struct {
	// Address for agents: `host:port`, `:port` for every address of the host, or `unix:/path`. An address that others
	// can reach needs `[upstream.auth]`, `upstream.tls.client_ca` or `allow_unauthenticated`.
	Listen Address `toml:"listen" reload:"live" required:"true"`
	// Let everybody who reaches the listener offer endpoints. Anybody can then take over any endpoint.
	AllowUnauthenticated bool `toml:"allow_unauthenticated" reload:"live"`
	// Most sessions of agents on this node. More are answered with 503. 0: no limit.
	MaxSessions int `toml:"max_sessions" reload:"live" min:"0"`
	// Most endpoints that one session may offer. More are refused one by one.
	MaxEndpointsPerSession int `toml:"max_endpoints_per_session" reload:"live" min:"1" max:"1000000"`
	// Most streams in flight on one session. A session that is full is passed over.
	MaxStreamsPerSession int `toml:"max_streams_per_session" reload:"live" min:"1" max:"1000000"`
	// Networks in CIDR notation, or single addresses, that agents may come from. Connections of others are closed.
	// Empty: everybody may come.
	Allow CIDRs `toml:"allow" reload:"live"`
	// Networks or addresses that agents may not come from, also if `allow` holds them.
	Deny CIDRs `toml:"deny" reload:"live"`
	// Limits of what agents may ask.
	Limits UpstreamLimits `toml:"limits"`
	// TLS for agents. Without a certificate the listener speaks plain HTTP.
	TLS TLS `toml:"tls"`
	// Who may offer endpoints.
	Auth Auth `toml:"auth"`
	// How a node that holds more than its share of the sessions hands some to the others. An agent connects elsewhere
	// before it leaves, so no request is lost.
	Rebalance Rebalance `toml:"rebalance"`
	// Tenants, each with its own key and its own namespace of endpoints. An agent says whose it is with the header
	// x-piko-tenant-id.
	Tenants []Tenant `toml:"tenants" key:"id" reload:"live"`
}

// Rebalance holds the settings of handing sessions to other nodes.
type Rebalance struct {
	// How far above the mean of all nodes this node's sessions may be, as a share of the mean, before it hands some
	// over: 0.2 is 20 %. 0: never.
	Threshold float64 `toml:"threshold" reload:"live" min:"0" max:"100"`
	// Share of its sessions that a node hands over each second while it is above the threshold.
	ShedRate float64 `toml:"shed_rate" reload:"live" min:"0" max:"1"`
	// Nodes with fewer sessions than this hand none over.
	MinSessions int `toml:"min_sessions" reload:"live" min:"0"`
}

// Tenant is one entry of upstream.tenants.
type Tenant struct {
	// Name of the tenant, as agents send it in x-piko-tenant-id.
	ID string `toml:"id" reload:"live" required:"true"`
	// Domains of this tenant, such as `a.example.com`: clients that ask for a host under one of them reach this tenant's
	// endpoints, and no others. If the proxy listener asks for tokens, theirs are verified with this tenant's keys.
	Domains []string `toml:"domains" reload:"live"`
	// The keys that this tenant's tokens are signed with.
	Auth Auth `toml:"auth"`
}

// Cluster holds the settings of a node among other nodes.
type Cluster struct {
	// Name of the cluster. Nodes of different clusters may share a Consul.
	Name string `toml:"name" reload:"restart" required:"true"`
	// Name of this node, unique in the cluster. Empty: the host name and a random suffix, new with each start.
	NodeID string `toml:"node_id" reload:"restart"`
	// Where this node runs, for example an availability zone. Upstreams in the same zone are preferred, and agents
	// spread their sessions over zones.
	Zone string `toml:"zone" reload:"restart"`
	// Address for other nodes: `host:port` or `:port`. Opened only when `consul.address` is set.
	Listen Address `toml:"listen" reload:"restart" required:"true"`
	// Address that other nodes reach this one at, `host:port` or `host`. Empty: the address of the interface that leads
	// to Consul, and the port of `listen`.
	Advertise string `toml:"advertise" reload:"restart"`
	// Secret that all nodes share and prove to each other without sending it. Nodes need this or `[cluster.tls]`.
	Secret Secret `toml:"secret" reload:"restart"`
	// File that holds `secret`.
	SecretFile File `toml:"secret_file" reload:"restart" into:"Secret"`
	// Networks in CIDR notation, or single addresses, that other nodes may come from. Connections of others are closed.
	// Empty: everybody may come, and has to prove to be a node.
	Allow CIDRs `toml:"allow" reload:"live"`
	// Networks or addresses that nodes may not come from, also if `allow` holds them.
	Deny CIDRs `toml:"deny" reload:"live"`
	// Mutual TLS between the nodes. Other certificates hold for sessions between nodes that are made from then on. From
	// `secret` to certificates, or back, a node goes only by a restart.
	TLS PeerTLS `toml:"tls"`
}

// Consul holds the settings of the connection to Consul.
type Consul struct {
	// Address of Consul, or a list of them: `host:port`, `http://host:port`, `https://host:port` or `unix:///path`.
	// Empty: this node works alone.
	Address List `toml:"address" reload:"restart"`
	// Token for Consul's access control.
	Token Secret `toml:"token" reload:"live"`
	// File that holds `token`.
	TokenFile File `toml:"token_file" reload:"live" into:"Token"`
	// First part of the keys in Consul's key-value store.
	Prefix string `toml:"prefix" reload:"restart" required:"true"`
	// Consul datacenter. Empty: that of the Consul agent.
	Datacenter string `toml:"datacenter" reload:"restart"`
	// Consul Enterprise namespace.
	Namespace string `toml:"namespace" reload:"restart"`
	// Consul Enterprise admin partition.
	Partition string `toml:"partition" reload:"restart"`
	// Most transactions that the nodes of the cluster together send to Consul each second.
	WriteBudget int `toml:"write_budget" reload:"live" min:"2" max:"100000"`
	// Publish the endpoints of this node as tags of its service, so that Consul's DNS answers for
	// `my-endpoint.pikod.service.consul`.
	DNSTags bool `toml:"dns_tags" reload:"restart"`
	// TLS towards Consul, used with `https://` addresses.
	TLS ClientTLS `toml:"tls"`
}

// Balance holds the settings of spreading requests over upstreams.
type Balance struct {
	// How an upstream is chosen. `p2c`: the less busy of two random ones, wherever they are. `local-first`: the sessions
	// of this node as long as there are any. `round-robin`: each in turn.
	Policy string `toml:"policy" reload:"live" one_of:"p2c|local-first|round-robin"`
	// How many requests may be tried a second time, as a share of all requests. 0: none, except where nothing had been
	// delivered.
	RetryBudget float64 `toml:"retry_budget" reload:"live" min:"0" max:"1"`
	// After how many faults in a row an upstream is left out for a while. 0: never.
	EjectAfter int `toml:"eject_after" reload:"live" min:"0" max:"1000000"`
}

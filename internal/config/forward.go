package config

// Forward holds the settings of the forwarder daemon, read from piko-forward.toml.
type Forward struct {
	Source `toml:"-"`

	// How long a stopping forwarder waits for open connections before it cuts them.
	DrainTimeout Duration `toml:"drain_timeout" reload:"live"`
	// What is logged, and how.
	Log Log `toml:"log"`
	// The nodes that the forwarder connects to.
	Connect ForwardConnect `toml:"connect"`
	// The listener for operators, probes and scrapers. Off unless it has an address.
	Admin Admin `toml:"admin"`
	// What is forwarded: each entry is one local address and the endpoint behind it.
	Forwards []ForwardEntry `toml:"forwards" key:"listen" reload:"live"`
}

// ForwardConnect holds the settings of a forwarder's connections to nodes.
type ForwardConnect struct {
	// Address of the proxy listener of a node or balancer: `http://host:port` or `https://host:port`, with a path if a proxy
	// in front of it wants one.
	URL string `toml:"url" reload:"live" required:"true"`
	// Token that allows the forwarder to reach its endpoints.
	Token Secret `toml:"token" reload:"live"`
	// File that holds `token`. It is read again when it changes.
	TokenFile File `toml:"token_file" reload:"live" into:"Token"`
	// TLS towards the nodes, used with `https://`.
	TLS ClientTLS `toml:"tls"`
}

// ForwardEntry is one entry of forwards: a local address and the endpoint behind it.
type ForwardEntry struct {
	// Local address: `host:port`, `:port` for every address of the host, or `unix:/path`.
	Listen Address `toml:"listen" reload:"live" required:"true"`
	// Name of the endpoint that connections lead to. Its listener must be of protocol `tcp`.
	Endpoint string `toml:"endpoint" reload:"live" required:"true"`
}

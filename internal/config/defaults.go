package config

import "time"

// DefaultPikod returns the settings of a pikod that has no file.
func DefaultPikod() Pikod {
	return Pikod{
		DrainTimeout: Duration(time.Minute),
		Log:          defaultLog(),
		Proxy: Proxy{
			Listen:            ":8000",
			MaxHeaderBytes:    32 << 10,
			MaxHeaderFields:   100,
			ReadHeaderTimeout: Duration(10 * time.Second),
			IdleTimeout:       Duration(5 * time.Minute),
			EndpointWait:      Duration(5 * time.Second),
			AccessLog:         true,
			Underscores:       "drop",
			Limits:            defaultProxyLimits(),
			Rates:             defaultProxyRates(),
			HTTP2:             defaultProxyHTTP2(),
			TLS:               defaultTLS(),
			Auth:              defaultAuth(),
		},
		Upstream: Upstream{
			Listen:                 "127.0.0.1:8001",
			MaxEndpointsPerSession: 10000,
			MaxStreamsPerSession:   4096,
			Limits:                 defaultUpstreamLimits(),
			TLS:                    defaultTLS(),
			Auth:                   defaultAuth(),
			Rebalance:              Rebalance{Threshold: 0.2, ShedRate: 0.005, MinSessions: 50},
		},
		Admin:   defaultAdmin("127.0.0.1:8002"),
		Cluster: Cluster{Name: "piko", Listen: ":8003"},
		Consul:  Consul{Prefix: "pikod", WriteBudget: 150},
		Balance: Balance{Policy: "p2c", RetryBudget: 0.2, EjectAfter: 5},
		ACME:    defaultACME(),
	}
}

// DefaultAgent returns the settings of a piko-agent that has no file. It offers nothing.
func DefaultAgent() Agent {
	return Agent{
		DrainTimeout: Duration(time.Minute),
		Log:          defaultLog(),
		Connect: AgentConnect{
			URL:         "http://localhost:8001",
			Connections: 2,
			Heartbeat:   Duration(10 * time.Second),
		},
		Admin: defaultAdmin(""),
	}
}

// DefaultForward returns the settings of a piko-forward that has no file. It forwards nothing.
func DefaultForward() Forward {
	return Forward{
		DrainTimeout: Duration(time.Minute),
		Log:          defaultLog(),
		Connect:      ForwardConnect{URL: "http://localhost:8000"},
		Admin:        defaultAdmin(""),
	}
}

// DefaultListener returns what a listener of an agent is before its table is read.
func DefaultListener() Listener {
	return Listener{
		Protocol: "http",
		Weight:   1,
		Health: Health{
			Path:           "/",
			Interval:       Duration(5 * time.Second),
			Timeout:        Duration(2 * time.Second),
			UnhealthyAfter: 3,
			HealthyAfter:   2,
		},
	}
}

// DefaultTenant returns what a tenant is before its table is read.
func DefaultTenant() Tenant { return Tenant{Auth: defaultAuth()} }

func defaultLog() Log { return Log{Level: "info", Format: "text"} }

func defaultAdmin(listen Address) Admin {
	return Admin{Listen: listen, MaxConnections: 1000, TLS: defaultTLS(), Auth: defaultAuth()}
}

func defaultTLS() TLS { return TLS{MinVersion: "1.2"} }

func defaultAuth() Auth {
	return Auth{
		RequireExp: true, DisconnectOnExpiry: true,
		JWKS: JWKS{CacheTTL: Duration(5 * time.Minute), Timeout: Duration(10 * time.Second)},
	}
}

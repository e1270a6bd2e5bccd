package proxy

import (
	"time"

	"github.com/pikoproxy/piko/internal/config"
)

// Settings are the parts of the proxy's behaviour that may change while it runs. A value is never changed after it was
// given to [New] or [Server.Apply].
type Settings struct {
	Domains               []string      // empty: the first label of any host names the endpoint
	MaxHeaderFields       int           // 0: no limit
	ResponseHeaderTimeout time.Duration // from the end of the request to the head of the answer; 0: none
	TrustedProxies        config.CIDRs  // peers whose forwarding headers are believed
	AccessLog             bool          // a line for each request, at level info
}

// SettingsOf takes from the configuration of the proxy listener what may change while it runs.
func SettingsOf(c config.Proxy) Settings {
	return Settings{
		Domains:               c.Domains,
		MaxHeaderFields:       c.MaxHeaderFields,
		ResponseHeaderTimeout: time.Duration(c.ResponseHeaderTimeout),
		TrustedProxies:        c.TrustedProxies,
		AccessLog:             c.AccessLog,
	}
}

// Limits belong to the listener's HTTP server and hold for the connections it accepts.
type Limits struct {
	MaxHeaderBytes    int           // of one request; 0: 32 KiB
	ReadHeaderTimeout time.Duration // for the header of one request; 0: 10 s
	IdleTimeout       time.Duration // between two requests of a connection; 0: 5 min
}

// LimitsOf takes the limits from the configuration of the proxy listener.
func LimitsOf(c config.Proxy) Limits {
	return Limits{
		MaxHeaderBytes:    int(c.MaxHeaderBytes),
		ReadHeaderTimeout: time.Duration(c.ReadHeaderTimeout),
		IdleTimeout:       time.Duration(c.IdleTimeout),
	}
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
	return l
}

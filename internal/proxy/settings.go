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
}

// SettingsOf takes from the configuration of the proxy listener what may change while it runs.
func SettingsOf(c config.Proxy) Settings {
	return Settings{
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

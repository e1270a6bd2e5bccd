package limit

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sirupsen/logrus"
	"golang.org/x/time/rate"
)

// The listeners of a node, as they are called in metrics and in the log.
const (
	Proxy    = "proxy"
	Upstream = "upstream"
	Admin    = "admin"
	Cluster  = "cluster"
)

// Reason says why somebody was turned away. There are no others than these.
type Reason string

// The reasons.
const (
	AddressDenied      Reason = "address_denied"         // by a list of networks
	Connections        Reason = "connections"            // of the listener
	AddressConnections Reason = "address_connections"    // of one address
	OutOfMemory        Reason = "memory"                 // of the process
	Resting            Reason = "memory_idle"            // a connection that carried nothing when memory was short
	Unread             Reason = "unread"                 // what came over all sessions and nobody has read
	Handshake          Reason = "tls_handshake"          // failed, or took too long
	AddressRate        Reason = "address_rate"           // requests of one client
	EndpointRate       Reason = "endpoint_rate"          // requests for one endpoint
	AuthRate           Reason = "auth_rate"              // bad tokens of one client
	RegistrationRate   Reason = "registration_rate"      // sessions that one address opens
	Sessions           Reason = "sessions"               // of the node
	TenantSessions     Reason = "tenant_sessions"        // of one tenant
	SubjectSessions    Reason = "subject_sessions"       // of one token's subject
	EndpointSessions   Reason = "endpoint_sessions"      // that offer one endpoint
	SessionEndpoints   Reason = "session_endpoints"      // that one session offers
	TenantEndpoints    Reason = "tenant_endpoints"       // of one tenant
	Unauthenticated    Reason = "unauthenticated"        // no good token
	NotPermitted       Reason = "endpoint_not_permitted" // a good token, but not for this endpoint
	BadFraming         Reason = "bad_framing"
	BadRequest         Reason = "bad_request" // malformed in any other way
	LongTarget         Reason = "target_bytes"
	LongHeader         Reason = "header_bytes"
	ManyFields         Reason = "header_fields"
	LongBody           Reason = "body_bytes"
	SlowHeader         Reason = "slow_header"
	SlowBody           Reason = "slow_body"
	SlowReader         Reason = "slow_reader"
	ResetFlood         Reason = "h2_reset_flood" // a client of HTTP/2 takes back what it asks for, again and again
	SlowService        Reason = "upstream_timeout"
	BadResponse        Reason = "upstream_response" // of a service: no HTTP, or over a limit
	Underscores        Reason = "underscores"
	ProtectedHeader    Reason = "connection_names_protected"
	Method             Reason = "method"
	ReservedPath       Reason = "reserved_path"
	UnknownDomain      Reason = "unknown_domain"
	Abuse              Reason = "abuse"    // a session broke the protocol of the tunnel
	Overload           Reason = "overload" // of all upstreams of the endpoint
	Stopping           Reason = "draining"
)

// linesPerSecond is how often one event is logged with one reason.
const linesPerSecond = 10

// Reporter counts who was turned away, in piko_rejected_total, and logs what strangers can provoke at will no more than
// ten times a second for each reason: the next line says how many were left out. The nil Reporter does nothing.
type Reporter struct {
	log     logrus.FieldLogger
	rejects *prometheus.CounterVec

	mu    sync.Mutex // guards the following
	kinds map[kind]*lines
}

// kind is made of constants, so there are few.
type kind struct{ event, listener, reason string }

type lines struct {
	limit      *rate.Limiter
	suppressed int
}

// NewReporter returns a reporter. Without a registerer the counts are kept but not published.
func NewReporter(log logrus.FieldLogger, reg prometheus.Registerer) *Reporter {
	r := &Reporter{
		log: log, kinds: make(map[kind]*lines),
		rejects: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "piko_rejected_total",
			Help: "Connections, requests, sessions and endpoints that were turned away, by listener and reason.",
		}, []string{"listener", "reason"}),
	}
	if reg != nil {
		reg.MustRegister(r.rejects)
	}
	return r
}

// Count counts somebody who was turned away and is logged elsewhere.
func (r *Reporter) Count(listener string, reason Reason) {
	if r != nil {
		r.rejects.WithLabelValues(listener, string(reason)).Inc()
	}
}

// Reject counts and logs somebody who was turned away. Facts that are nil are left out.
func (r *Reporter) Reject(listener string, reason Reason, facts logrus.Fields) {
	if r != nil {
		r.Count(listener, reason)
		r.warn(kind{"rejected", listener, string(reason)}, facts)
	}
}

// Warn logs an event that strangers can provoke. Event and reason are constants of ours.
func (r *Reporter) Warn(event, reason string, facts logrus.Fields) {
	if r != nil {
		r.warn(kind{event: event, reason: reason}, facts)
	}
}

func (r *Reporter) warn(k kind, facts logrus.Fields) {
	r.mu.Lock()
	l := r.kinds[k]
	if l == nil {
		l = &lines{limit: rate.NewLimiter(linesPerSecond, linesPerSecond)}
		r.kinds[k] = l
	}
	if !l.limit.Allow() {
		l.suppressed++
		r.mu.Unlock()
		return
	}
	suppressed := l.suppressed
	l.suppressed = 0
	r.mu.Unlock()

	fields := logrus.Fields{"reason": k.reason}
	if k.listener != "" {
		fields["listener"] = k.listener
	}
	for name, v := range facts {
		if v != nil {
			fields[name] = v
		}
	}
	if suppressed > 0 {
		fields["suppressed"] = suppressed
	}
	r.log.WithFields(fields).Warn(k.event)
}

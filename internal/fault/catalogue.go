// Package fault is the catalogue of the error answers that Piko itself gives, and the one place that writes them.
//
// Every kind of failure has a code, PIKO-E followed by four digits, that never changes its meaning: the same code
// stands in the Piko-Error response header, in the body, in the log, in the metric label and in `pikod explain`. The
// first digit tells who can do something about it: 1 the client's request, 2 its credential, 3 routing, 4 the upstream,
// 5 this node, 6 an agent's session.
//
// The body is an RFC 9457 problem whose `error` member keeps the classic text that existing Piko clients know; a
// browser that asks for HTML gets a short page. Nothing that a client sent is ever part of an answer.
//
// Everything here is immutable and safe for concurrent use. The package does not decide which fault fits, and logs
// nothing.
package fault

import "net/http"

// Fault is one kind of error answer. Values are constants in spirit: copy them, never change them.
type Fault struct {
	// Code is PIKO-E####; it never changes its meaning.
	Code string
	// Status is the HTTP status of the answer.
	Status int
	// Classic is the text of the JSON member `error`, which existing clients compare.
	Classic string
	// Title says in a few words what went wrong.
	Title string
	// Meaning says in whole sentences what has happened, for an operator or the owner of the client.
	Meaning string
	// Remedy says what to do about it.
	Remedy string
}

// The numbers below are part of the interface: never reuse one, never move one.

// What is wrong with the client's request.
var (
	MissingEndpoint = Fault{"PIKO-E1001", http.StatusBadRequest, "missing endpoint id", "No endpoint named",
		"The request names no endpoint: it has no x-piko-endpoint header, and its Host is an IP address, a " +
			"single label, or missing.",
		"Send the x-piko-endpoint header, or use a host whose first label is the endpoint, such as " +
			"my-endpoint.piko.example.com."}
	InvalidEndpoint = Fault{"PIKO-E1002", http.StatusBadRequest, "invalid endpoint id", "Malformed endpoint name",
		"The x-piko-endpoint header is empty, stands there twice, or holds something that is no endpoint name.",
		"Send exactly one name of at most 63 letters, digits and inner '-', '_' or '.'."}
	UnknownDomain = Fault{"PIKO-E1003", http.StatusNotFound, "unknown domain", "Unknown domain",
		"The host of the request is not one label under a domain of this server.",
		"Check the host name, and proxy.domains in pikod.toml."}
	InvalidTarget = Fault{"PIKO-E1004", http.StatusBadRequest, "invalid request target", "Malformed request target",
		"The request target has a byte that no URI may hold, a fragment, user information, or a scheme other " +
			"than http and https.",
		"Percent-encode the target, and send it in origin form."}
	ProtectedHeader = Fault{"PIKO-E1005", http.StatusBadRequest, "connection names a protected header",
		"Connection header names a protected field",
		"The Connection header asks to remove a field that routing, framing or authentication depends on. " +
			"That is an attack, or a broken client.",
		"Name only hop-by-hop fields in Connection."}
	TooManyFields = Fault{"PIKO-E1006", http.StatusRequestHeaderFieldsTooLarge, "too many header fields",
		"Too many header fields",
		"The request has more header fields than proxy.max_header_fields allows.",
		"Send fewer fields, or raise the limit."}
	MethodNotAllowed = Fault{"PIKO-E1007", http.StatusMethodNotAllowed, "method not allowed", "Method not allowed",
		"CONNECT and TRACE are not offered, nor is a method that is no token.",
		"For TCP through Piko use piko-forward or the SDK."}
	ReservedPath = Fault{"PIKO-E1008", http.StatusNotFound, "not found", "Reserved path",
		"Paths with a segment _piko belong to Piko and are never forwarded to a service.",
		"Choose another path. TCP over WebSocket is GET /_piko/v1/tcp/ENDPOINT."}
	ExpectationFailed = Fault{"PIKO-E1009", http.StatusExpectationFailed, "expectation failed",
		"Unknown expectation",
		"The Expect header holds something other than 100-continue.",
		"Send `Expect: 100-continue`, or no Expect header."}
	BadBody = Fault{"PIKO-E1010", http.StatusBadRequest, "invalid request body",
		"Malformed or incomplete request body",
		"The body of the request ended early or is wrongly framed, so the request to the service was aborted.",
		"Check the client's Content-Length and chunked encoding, and whether it gave up while sending."}
	BadFraming = Fault{"PIKO-E1011", http.StatusBadRequest, "invalid request framing", "Ambiguous request framing",
		"It is in doubt where the request ends: Content-Length and Transfer-Encoding together, one of them " +
			"malformed or repeated, or a line that ends without CR.",
		"Send one Content-Length of digits, or one `Transfer-Encoding: chunked` over HTTP/1.1."}
	HeaderTooLarge = Fault{"PIKO-E1012", http.StatusRequestHeaderFieldsTooLarge, "request header too large",
		"Request header too large",
		"The header of the request is larger than proxy.max_header_bytes.",
		"Send less, often fewer cookies, or raise the limit."}
	RequestTimeout = Fault{"PIKO-E1013", http.StatusRequestTimeout, "request timeout", "The client was too slow",
		"The request did not arrive within the limits of this server.",
		"Check the client's network. Limits are in the proxy section of pikod.toml."}
	RateLimited = Fault{"PIKO-E1014", http.StatusTooManyRequests, "too many requests", "Too many requests",
		"The client, or all clients of the endpoint together, sent more than the configured rate.",
		"Slow down and try again after the time in Retry-After."}
	UpgradeRequired = Fault{"PIKO-E1015", http.StatusUpgradeRequired, "websocket required", "WebSocket required",
		"The path carries TCP over WebSocket, and the request is no WebSocket handshake.",
		"Use piko-forward or the SDK. A balancer in front must let WebSockets through."}
	TargetTooLong = Fault{"PIKO-E1016", http.StatusRequestURITooLong, "request target too long",
		"Request target too long",
		"The request target has more than 16384 bytes, or the request line alone is larger than " +
			"proxy.max_header_bytes.",
		"Send long parameters in the body."}
	MalformedRequest = Fault{"PIKO-E1017", http.StatusBadRequest, "malformed request", "Malformed request head",
		"The head of the request is no HTTP/1.1: its request line or one of its fields breaks the grammar, its " +
			"Host is missing or malformed, or the connection ended within it.",
		"The node's log has the reason. Correct the client; is it speaking HTTP at all, and not TLS?"}
	BodyTooLarge = Fault{"PIKO-E1018", http.StatusRequestEntityTooLarge, "request body too large",
		"Request body too large",
		"The body of the request is larger than proxy.max_body_bytes.",
		"Send less, or raise the limit."}
	AddressDenied = Fault{"PIKO-E1019", http.StatusForbidden, "address not allowed", "Address not allowed",
		"The lists of allowed and denied networks leave out the client's address.",
		"Check proxy.allow, proxy.deny and those of proxy.endpoints in pikod.toml, and proxy.trusted_proxies if there " +
			"is a balancer in front."}
	AmbiguousField = Fault{"PIKO-E1020", http.StatusBadRequest, "underscore in a header field",
		"Header field with an underscore",
		"A header field with underscores would be taken by many services for one that only a proxy may write, such as " +
			"X_Forwarded_For, and proxy.underscores is \"reject\".",
		"Do not send it, or let proxy.underscores drop such fields."}
	EndpointBusy = Fault{"PIKO-E1021", http.StatusTooManyRequests, "too many requests",
		"Too many requests for this endpoint",
		"All clients of the endpoint together sent more than the configured rate.",
		"Slow down and try again after the time in Retry-After, or raise the limit."}
)

// What is wrong with a bearer token.
var (
	MissingAuthorization = Fault{"PIKO-E2001", http.StatusUnauthorized, "missing authorization", "No token",
		"A token is required and the request has none.",
		"Send it as `x-piko-authorization: Bearer TOKEN` or `Authorization: Bearer TOKEN`."}
	InvalidAuthorization = Fault{"PIKO-E2002", http.StatusUnauthorized, "invalid authorization",
		"Malformed authorization header",
		"The authorization header is not a scheme and a token separated by one space.",
		"Send `Authorization: Bearer TOKEN`."}
	UnsupportedAuthType = Fault{"PIKO-E2003", http.StatusUnauthorized, "unsupported auth type",
		"Unsupported authorization scheme",
		"The scheme of the authorization header is not Bearer.",
		"Send `Authorization: Bearer TOKEN`. If the service needs Authorization for itself, send ours as " +
			"x-piko-authorization."}
	InvalidToken = Fault{"PIKO-E2004", http.StatusUnauthorized, "invalid token", "Invalid token",
		"The token is malformed, signed by an unknown key, not yet valid, revoked, or for another audience " +
			"or issuer.",
		"Compare the keys, audience and issuer of the auth section in pikod.toml with the token. The node's " +
			"log has the reason."}
	ExpiredToken = Fault{"PIKO-E2005", http.StatusUnauthorized, "expired token", "Expired token",
		"The token's lifetime is over.",
		"Get a new token, and check the clocks of both machines."}
	UnknownTenant = Fault{"PIKO-E2006", http.StatusUnauthorized, "unknown tenant", "Unknown tenant",
		"The tenant that the request names is not configured here.",
		"Check x-piko-tenant-id, and upstream.tenants in pikod.toml."}
	EndpointNotPermitted = Fault{"PIKO-E2007", http.StatusUnauthorized, "endpoint not permitted",
		"Token is not valid for this endpoint",
		"The token is good, but its list of endpoints does not hold this one.",
		"Issue a token whose piko.endpoints claim names the endpoint."}
	AuthUnavailable = Fault{"PIKO-E2008", http.StatusServiceUnavailable, "authorization unavailable",
		"Tokens cannot be checked now",
		"The keys that tokens are checked with could not be fetched, so neither yes nor no can be said.",
		"Check that the node reaches auth.jwks.url, and try again."}
	TooManyFailures = Fault{"PIKO-E2010", http.StatusTooManyRequests, "too many failed attempts",
		"Too many bad tokens",
		"The client's address sent more bad tokens than proxy.rates.failed_auth_per_address. Good ones are still taken.",
		"Correct the token, and try again after the time in Retry-After."}
)

// Why a request found no way.
var (
	NoUpstreams = Fault{"PIKO-E3001", http.StatusBadGateway, "no available upstreams",
		"Nobody listens on this endpoint",
		"No agent offers the endpoint, or every one that did is draining or unhealthy.",
		"Start an agent for the endpoint, and look at `pikod status endpoints`."}
	Overloaded = Fault{"PIKO-E3002", http.StatusServiceUnavailable, "overloaded", "Every upstream is at its limit",
		"All agents of the endpoint refused for now, because they hold as many requests as they may.",
		"Try again, add agents, or raise max_in_flight."}
)

// What went wrong behind an upstream.
var (
	UpstreamUnreachable = Fault{"PIKO-E4001", http.StatusBadGateway, "upstream unreachable",
		"The upstream cannot be reached",
		"The agent's session broke, or would not open a stream, on every upstream that was tried.",
		"Look at the agent's log and at `pikod status sessions`."}
	ServiceUnreachable = Fault{"PIKO-E4002", http.StatusBadGateway, "upstream unreachable",
		"The service does not accept connections",
		"The agent is there, but the service behind it refused the connection.",
		"Start the service, or correct the listener's addr in piko-agent.toml."}
	UpstreamBroke = Fault{"PIKO-E4003", http.StatusBadGateway, "upstream unreachable",
		"The upstream broke before it answered",
		"The request was sent, but the service or its agent went away before the first byte of an answer. It " +
			"was not safe to send the request again.",
		"Look at the service's log: crash, restart, or a connection closed without an answer."}
	UpstreamTimeout = Fault{"PIKO-E4004", http.StatusGatewayTimeout, "upstream timeout", "The upstream is too slow",
		"No answer began within proxy.response_header_timeout, or no stream could be opened in time.",
		"Find out why the service is slow, or raise the timeout."}
	InvalidResponse = Fault{"PIKO-E4005", http.StatusBadGateway, "upstream unreachable",
		"The service's answer is not valid HTTP",
		"The answer breaks HTTP/1.1 in a way that leaves in doubt where it ends or what it says, or its " +
			"header is larger than 64 KiB.",
		"The node's log has the reason. Correct the service; is it speaking HTTP at all, and not TLS?"}
	UnexpectedUpgrade = Fault{"PIKO-E4006", http.StatusBadGateway, "upstream unreachable",
		"Unasked protocol switch",
		"The service switched to a protocol that the client did not ask for.",
		"Correct the service."}
)

// What this node cannot do now.
var (
	Draining = Fault{"PIKO-E5001", http.StatusServiceUnavailable, "draining", "This node is shutting down",
		"The node takes nothing new and finishes what runs.",
		"Try again: the balancer should choose another node."}
	Internal = Fault{"PIKO-E5002", http.StatusInternalServerError, "internal error", "Internal error",
		"A bug in Piko.",
		"Please report it with the lines of the log around this code."}
	AtLimit = Fault{"PIKO-E5003", http.StatusServiceUnavailable, "limit reached",
		"This node is at one of its limits",
		"The node holds as many connections, streams or bytes of memory as it may.",
		"Add nodes, or raise the limit that the log names."}
	TooMuchUnread = Fault{"PIKO-E5004", http.StatusServiceUnavailable, "limit reached",
		"Too much waits to be read",
		"What has come from agents faster than clients read it, or from clients faster than agents do, fills as much memory " +
			"as upstream.limits.max_unread_bytes allows.",
		"Try again. Find the clients that read slowly, add nodes or memory, or raise the limit."}
)

// Why an agent's session or registration is refused.
var (
	TooManySessions = Fault{"PIKO-E6001", http.StatusServiceUnavailable, "too many sessions",
		"This node holds enough sessions",
		"upstream.max_sessions is reached; agents try another node by themselves.",
		"Add nodes, or raise the limit."}
	TooManyRegistrations = Fault{"PIKO-E6002", http.StatusTooManyRequests, "too many registrations",
		"Too many registrations",
		"The agent's address, token or tenant offers endpoints faster, or more of them, than it may.",
		"Wait and try again, or raise the limit that the log names."}
	UnsupportedVersion = Fault{"PIKO-E6003", http.StatusBadRequest, "unsupported protocol version",
		"Unsupported tunnel protocol",
		"The agent asked for a tunnel protocol that this node does not speak.",
		"Send Sec-WebSocket-Protocol: piko.v2, or upgrade the older side."}
)

package config

// Log holds the settings of the log, written to standard error.
type Log struct {
	// Least important lines that are written.
	Level string `toml:"level" reload:"live" one_of:"debug|info|warn|error"`
	// Form of a line. Under systemd each line also carries its priority for the journal.
	Format string `toml:"format" reload:"live" one_of:"text|json"`
}

// Admin holds the settings of the listener for operators.
type Admin struct {
	// Address for operators: `host:port`, `:port` for every address of the host, or `unix:/path`. Empty: no such
	// listener. An address that others can reach needs `[admin.auth]`, `admin.tls.client_ca` or
	// `allow_unauthenticated`.
	Listen Address `toml:"listen" reload:"live"`
	// Let everybody who reaches the listener read metrics and status and reload the settings.
	AllowUnauthenticated bool `toml:"allow_unauthenticated" reload:"live"`
	// Serve Go profiles under /debug/pprof/. They show the inside of the process: use them to find a fault, then turn
	// them off.
	Pprof bool `toml:"pprof" reload:"live"`
	// Most open connections. More are closed at once. 0: no limit.
	MaxConnections int `toml:"max_connections" reload:"live" min:"0"`
	// Networks in CIDR notation, or single addresses, that operators, probes and scrapers may come from. Connections of
	// others are closed. Empty: everybody may come.
	Allow CIDRs `toml:"allow" reload:"live"`
	// Networks or addresses that they may not come from, also if `allow` holds them.
	Deny CIDRs `toml:"deny" reload:"live"`
	// TLS for operators. Without a certificate the listener speaks plain HTTP.
	TLS TLS `toml:"tls"`
	// Who may read and do what is served here. /health and /ready stay open for probes.
	Auth Auth `toml:"auth"`
}

// Auth says whose tokens (JWT) a listener accepts. With no key and no key set, tokens are not asked for.
type Auth struct {
	// Shared secret that HS256, HS384 and HS512 tokens are signed with.
	HMACSecretKey Secret `toml:"hmac_secret_key" reload:"live"`
	// File that holds `hmac_secret_key`.
	HMACSecretKeyFile File `toml:"hmac_secret_key_file" reload:"live" into:"HMACSecretKey"`
	// Public key in PEM form that RS256 to RS512 and PS256 to PS512 tokens are verified with.
	RSAPublicKey string `toml:"rsa_public_key" reload:"live"`
	// File that holds `rsa_public_key`.
	RSAPublicKeyFile File `toml:"rsa_public_key_file" reload:"live" into:"RSAPublicKey"`
	// Public key in PEM form that ES256, ES384 and ES512 tokens are verified with.
	ECDSAPublicKey string `toml:"ecdsa_public_key" reload:"live"`
	// File that holds `ecdsa_public_key`.
	ECDSAPublicKeyFile File `toml:"ecdsa_public_key_file" reload:"live" into:"ECDSAPublicKey"`
	// Public key in PEM form that EdDSA tokens are verified with.
	Ed25519PublicKey string `toml:"ed25519_public_key" reload:"live"`
	// File that holds `ed25519_public_key`.
	Ed25519PublicKeyFile File `toml:"ed25519_public_key_file" reload:"live" into:"Ed25519PublicKey"`
	// Key set (JWKS) that tokens are verified with.
	JWKS JWKS `toml:"jwks"`
	// What a token's `aud` claim must contain. Empty: not checked.
	Audience string `toml:"audience" reload:"live"`
	// What a token's `iss` claim must be. Empty: not checked.
	Issuer string `toml:"issuer" reload:"live"`
	// Refuse tokens that have no `exp` claim, and so would be good for ever.
	RequireExp bool `toml:"require_exp" reload:"live"`
	// Tokens that have been revoked: values of the `jti` or `sub` claim. What such a token has begun, sessions, requests
	// and connections, ends within seconds.
	Denylist []string `toml:"denylist" reload:"live"`
	// File that holds `denylist`, one value in a line. Lines that begin with # do not count.
	DenylistFile File `toml:"denylist_file" reload:"live" into:"Denylist"`
	// Refuse tokens that name no endpoints. Otherwise such a token is good for every endpoint.
	RequireEndpoints bool `toml:"require_endpoints" reload:"live"`
	// End a session, a connection or a request that is still running when the token that it was begun with expires. A
	// session of an agent gets half a minute for what runs on it.
	DisconnectOnExpiry bool `toml:"disconnect_on_expiry" reload:"live"`
}

// Enabled reports whether tokens are asked for.
func (a Auth) Enabled() bool {
	return a.HMACSecretKey.IsSet() || a.RSAPublicKey != "" || a.ECDSAPublicKey != "" || a.Ed25519PublicKey != "" ||
		a.JWKS.URL != ""
}

// JWKS says where a key set is fetched from.
type JWKS struct {
	// Where the key set is: `https://...`, or `file:///path`. `http://` is taken for a loopback address only. A user with
	// a password, and a query, are not shown anywhere.
	URL PrivateURL `toml:"url" reload:"live"`
	// How long a fetched key set is used before it is fetched again.
	CacheTTL Duration `toml:"cache_ttl" reload:"live" min:"1s"`
	// How long one fetch may take.
	Timeout Duration `toml:"timeout" reload:"live" min:"1ms" max:"5m"`
}

// TLS holds the settings of a listener that serves TLS.
type TLS struct {
	// File with the certificate in PEM form, followed by its intermediates. It also answers clients whose name no other
	// certificate fits.
	Cert File `toml:"cert" reload:"live"`
	// File with the private key of `cert` in PEM form.
	Key File `toml:"key" reload:"live"`
	// File with the CA certificates in PEM form that must have signed a client's certificate. Empty: clients show none. A
	// client may send 8 certificates of 64 KiB in all.
	ClientCA File `toml:"client_ca" reload:"live"`
	// Oldest version of TLS that is spoken.
	MinVersion string `toml:"min_version" reload:"live" one_of:"1.2|1.3"`
	// More certificates, chosen by the name that the client asks for (SNI).
	Certificates []Certificate `toml:"certificates" key:"cert" reload:"live"`
}

// Enabled reports whether the listener speaks TLS.
func (t TLS) Enabled() bool { return t.Cert != "" || len(t.Certificates) > 0 }

// Certificate is one certificate of several.
type Certificate struct {
	// File with the certificate in PEM form, followed by its intermediates.
	Cert File `toml:"cert" reload:"live" required:"true"`
	// File with the private key of `cert` in PEM form.
	Key File `toml:"key" reload:"live" required:"true"`
}

// ClientTLS holds the settings of a connection that we open over TLS.
type ClientTLS struct {
	// File with our certificate in PEM form, for servers that ask for one.
	Cert File `toml:"cert" reload:"live"`
	// File with the private key of `cert` in PEM form.
	Key File `toml:"key" reload:"live"`
	// File with the CA certificates in PEM form that must have signed the server's certificate. Empty: those that the
	// system trusts.
	CA File `toml:"ca" reload:"live"`
	// Name that the server's certificate must carry. Empty: the host that is connected to.
	ServerName string `toml:"server_name" reload:"live"`
	// Accept any certificate. Whoever sits between can then read and change everything; for tests only.
	InsecureSkipVerify bool `toml:"insecure_skip_verify" reload:"live"`
}

// PeerTLS holds the settings of mutual TLS between nodes, which are servers and clients of each other.
type PeerTLS struct {
	// File with this node's certificate in PEM form, good for server and client authentication.
	Cert File `toml:"cert" reload:"live"`
	// File with the private key of `cert` in PEM form.
	Key File `toml:"key" reload:"live"`
	// File with the CA certificates in PEM form that must have signed every node's certificate. Whoever holds a
	// certificate of this CA is a node: use a CA for nothing else.
	CA File `toml:"ca" reload:"live"`
	// Name that every node's certificate must carry. Empty: the host of its advertised address.
	ServerName string `toml:"server_name" reload:"live"`
}

// Enabled reports whether nodes speak mutual TLS.
func (t PeerTLS) Enabled() bool { return t.Cert != "" }

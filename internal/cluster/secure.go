package cluster

import "crypto/tls"

// security is how both ends of a session authenticate each other.
type security struct{ server, client *tls.Config }

// Secure replaces what the nodes authenticate each other by. It holds for sessions to come: those that there are live on.
func (p *Peers) Secure(server, client *tls.Config) { p.secure.Store(&security{server, client}) }

// serverTLS takes what is in use for each session anew.
func (p *Peers) serverTLS() *tls.Config {
	first := p.secure.Load().server
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: first.NextProtos,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return p.secure.Load().server, nil },
	}
}

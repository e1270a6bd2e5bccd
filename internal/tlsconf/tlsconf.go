// Package tlsconf builds *tls.Config values from the TLS sections of the settings.
//
// What it returns was read and parsed completely: a missing file, a key that does not fit its certificate or an
// empty CA file is an error now, not at the first handshake. Nothing is read again later; when files change, build anew.
// Returned configurations may be shared between goroutines and must not be changed.
//
// Every error is made of [config.Problem] values that name key and file, so that [config.Source.At] can add the line.
package tlsconf

import (
	"crypto/tls"

	"github.com/pikoproxy/piko/internal/config"
)

// Server returns the configuration of a TLS listener, or nil when the section is empty. Section is the section's key,
// such as "proxy.tls"; protocols are offered by ALPN, most wanted first.
func Server(section string, c config.TLS, protocols ...string) (*tls.Config, error) { return nil, nil }

// Client returns the configuration of connections that we open. It is never nil without an error. Section is the section's
// key, such as "connect.tls".
func Client(section string, c config.ClientTLS) (*tls.Config, error) { return &tls.Config{}, nil }

// Peer returns the configurations of connections between nodes, for the accepting and for the connecting side, or nil
// when the section is empty. Both sides show a certificate, and TLS is 1.3.
func Peer(section string, c config.PeerTLS) (server, client *tls.Config, err error) { return nil, nil, nil }

package tlsconf

import (
	"crypto/tls"
	"net"
)

// Listener returns a listener whose connections speak TLS as current says at the moment when they are accepted, or plain
// text when it returns nil. So a reload changes certificates, CAs and TLS itself for new connections, and touches none
// that is open.
func Listener(l net.Listener, current func() *tls.Config) net.Listener { return &listener{l, current} }

type listener struct {
	net.Listener
	current func() *tls.Config
}

// Accept returns the next connection; the handshake is left to its first Read or Write.
func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if conf := l.current(); conf != nil {
		return tls.Server(c, conf), nil
	}
	return c, nil
}

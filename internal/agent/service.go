package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/pires/go-proxyproto"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/relay"
	"github.com/pikoproxy/piko/internal/tunnel"
)

// serviceTimeout bounds the connecting to a service, TLS handshake included. It is shorter than the time that a node
// waits for our answer, so that a silent service is a refusal and not a timeout.
const serviceTimeout = 5 * time.Second

// service is the local address that answers for an endpoint. Nothing that arrives in a stream changes where it leads.
type service struct {
	text    string // as configured, for logs
	network string // "tcp" or "unix"
	address string
	tls     *tls.Config // nil: plain
	version byte        // of the PROXY protocol; 0: none
	dialer  net.Dialer
}

func newService(c config.Listener, clientTLS *tls.Config) *service {
	scheme, network, address := c.Addr.Split()
	s := &service{text: string(c.Addr), network: network, address: address}
	s.dialer.Timeout = serviceTimeout
	if scheme == "https" {
		s.tls = clientTLS.Clone()
		if host, _, err := net.SplitHostPort(address); err == nil && s.tls.ServerName == "" {
			s.tls.ServerName = host
		}
	}
	switch c.ProxyProtocol {
	case "v1":
		s.version = 1
	case "v2":
		s.version = 2
	}
	return s
}

// scheme is that of the URLs that lead to the service.
func (s *service) scheme() string {
	if s.tls != nil {
		return "https"
	}
	return "http"
}

// dial connects for a stream of a protocol. The client's address is told to services that want the PROXY protocol.
func (s *service) dial(ctx context.Context, protocol string, client net.Addr) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, serviceTimeout)
	defer cancel()
	conn, err := s.dialer.DialContext(ctx, s.network, s.address)
	if err != nil {
		return nil, fmt.Errorf("connect to service %s: %w", s.text, err)
	}
	conn = relay.Watch(conn) // a service that breaks off has not ended its answer, or its side of an upgraded connection
	if s.version != 0 {
		if err := s.announce(ctx, conn, client); err != nil {
			_ = conn.Close()
			return nil, err
		}
	}
	if s.tls == nil {
		return conn, nil
	}
	secure, err := s.handshake(ctx, conn, protocol)
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return secure, nil
}

// announce sends the PROXY protocol header. It goes before TLS, as its specification wants.
func (s *service) announce(ctx context.Context, conn net.Conn, client net.Addr) error {
	header, err := proxyHeader(s.version, client, conn.RemoteAddr()).Format()
	if err != nil {
		return fmt.Errorf("proxy protocol header for client %s: %w", client, err)
	}
	deadline, _ := ctx.Deadline()
	if err := conn.SetWriteDeadline(deadline); err != nil {
		return fmt.Errorf("send proxy protocol header to service %s: %w", s.text, err)
	}
	if _, err := conn.Write(header); err != nil {
		return fmt.Errorf("send proxy protocol header to service %s: %w", s.text, err)
	}
	return conn.SetWriteDeadline(time.Time{})
}

// proxyHeader says who the client is. Without a usable address it says LOCAL (v2) or UNKNOWN (v1), which tells the
// service to go by the connection.
func proxyHeader(version byte, client, service net.Addr) *proxyproto.Header {
	from, ok := client.(*net.TCPAddr)
	if !ok || from == nil {
		return proxyproto.HeaderProxyFromAddrs(version, nil, nil)
	}
	to, ok := service.(*net.TCPAddr)
	if !ok {
		// A unix socket has no address of the client's family; the unspecified one says so and keeps the client's.
		to = &net.TCPAddr{IP: net.IPv6zero}
		if from.IP.To4() != nil {
			to.IP = net.IPv4zero
		}
	}
	return proxyproto.HeaderProxyFromAddrs(version, from, to)
}

// handshake speaks TLS with the service, and agrees by ALPN on what the stream carries.
func (s *service) handshake(ctx context.Context, conn net.Conn, protocol string) (net.Conn, error) {
	c := s.tls.Clone()
	switch protocol {
	case tunnel.ProtocolHTTP:
		c.NextProtos = []string{"http/1.1"}
	case tunnel.ProtocolH2:
		c.NextProtos = []string{"h2"}
	default:
		c.NextProtos = nil
	}
	secure := tls.Client(conn, c)
	if err := secure.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("tls handshake with service %s: %w", s.text, err)
	}
	if protocol == tunnel.ProtocolH2 && secure.ConnectionState().NegotiatedProtocol != "h2" {
		return nil, fmt.Errorf("tls handshake with service %s: %w", s.text, errNoH2)
	}
	return secure, nil
}

var errNoH2 = errors.New("it does not speak HTTP/2")

// metadataHosts are names and addresses under which clouds serve credentials to whoever asks.
var metadataHosts = map[string]bool{
	"metadata":                 true,
	"metadata.google.internal": true,
	"instance-data":            true,
	"100.100.100.200":          true,
	"fd00:ec2::254":            true,
}

// dangerous reports whether the service looks like the metadata service of a cloud, or another neighbour that was never
// meant to be offered: a link-local address, or a name known for it.
func (s *service) dangerous() bool {
	host, _, err := net.SplitHostPort(s.address)
	if s.network != "tcp" || err != nil {
		return false
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if addr, err := netip.ParseAddr(host); err == nil {
		addr = addr.Unmap()
		return addr.IsLinkLocalUnicast() || metadataHosts[addr.WithZone("").String()]
	}
	return metadataHosts[host]
}

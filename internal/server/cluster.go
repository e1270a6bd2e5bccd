package server

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/pikoproxy/piko/internal/cluster"
	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/consul"
	"github.com/pikoproxy/piko/internal/limit"
	"github.com/pikoproxy/piko/internal/router"
	"github.com/pikoproxy/piko/internal/tlsconf"
	"github.com/pikoproxy/piko/internal/tunnel"
)

const (
	leaveTimeout    = 5 * time.Second
	handOverTimeout = 5 * time.Second // for agents to appear at other nodes, before this one refuses streams of peers
	handOverLook    = 50 * time.Millisecond
	publishTimeout  = 5 * time.Second // for the directory to have what a peer has not acknowledged
)

// membership is what makes a node one of a cluster: what it holds, what the others hold, the sessions between them, and
// the directory that tells who is there.
type membership struct {
	server    *Server
	node      cluster.Node
	local     *cluster.Local
	table     *cluster.Table
	peers     *cluster.Peers
	directory *consul.Directory // after locate; nil for a node without Consul
	shed      prometheus.Counter
}

// newMembership checks the settings and adds to the options of the router what it needs in a cluster.
func newMembership(s *Server, routing *router.Options) (*membership, error) {
	c := &s.config
	m := &membership{server: s, local: cluster.NewLocal(), table: cluster.NewTable()}
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return nil, fmt.Errorf("name this life of the node: %w", err)
	}
	version, _, _ := strings.Cut(s.o.Version, " ") // without what it was built from
	m.node = cluster.Node{
		ID: s.id, Incarnation: hex.EncodeToString(b[:]), Zone: c.Cluster.Zone, Version: version, Started: s.started,
		State: cluster.Up,
	}
	server, client, err := peerTLS(&c.Cluster)
	if err != nil {
		return nil, err
	}
	m.peers, err = cluster.NewPeers(cluster.Options{
		Node: m.node, Cluster: c.Cluster.Name, Local: m.local, Table: m.table, Server: server, Client: client,
		Open: m.open, Unread: s.limits.unread, Turns: s.limits.turns,
		Rejected: func() { s.limits.report.Count(limit.Cluster, limit.Handshake) }, Sessions: s.sessions.len, Log: s.o.Log, ErrorLog: s.o.ErrorLog, Registerer: s.registry,
	})
	if err != nil {
		return nil, err
	}
	// What the directory does not like of the settings is told now, with an address to stand in for one not known yet.
	trial := m.node
	trial.Addr = "127.0.0.1:1"
	if _, err := consul.New(m.options(trial)); err != nil {
		return nil, err
	}
	m.shed = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "piko_server_sessions_shed_total", Help: "Sessions handed over to nodes that have fewer.",
	})
	s.registry.MustRegister(m.shed)
	routing.Local, routing.Remotes, routing.Zone = m.local, remotes{m}, c.Cluster.Zone
	return m, nil
}

// peerTLS reads what nodes authenticate each other by.
func peerTLS(c *config.Cluster) (server, client *tls.Config, err error) {
	server, client, err = tlsconf.Peer("cluster.tls", c.TLS, "http/1.1")
	if err == nil && server == nil {
		server, client, err = tlsconf.Secret(c.Secret.Reveal(), c.Name, "http/1.1")
	}
	return server, client, err
}

func (m *membership) options(n cluster.Node) consul.Options {
	c := &m.server.config
	return consul.Options{
		Settings: c.Consul, Cluster: c.Cluster.Name, Node: n, Local: m.local, Table: m.table, Probe: m.peers.Probe,
		Log: m.server.o.Log,
	}
}

// remotes are the other nodes as the router sees them.
type remotes struct{ *membership }

// Lookup returns the nodes that hold a key.
func (r remotes) Lookup(key router.Key) []cluster.Holder { return r.table.Lookup(key) }

// Session returns what opens streams on a node.
func (r remotes) Session(remote *cluster.Remote) router.Session { return peer{r.peers.Peer(remote)} }

// peer lets a router open streams on another node.
type peer struct{ *cluster.Peer }

// Open turns the concrete stream into a Conn without letting a nil pointer become a non-nil interface.
func (p peer) Open(ctx context.Context, h tunnel.Header) (router.Conn, error) {
	s, err := p.Peer.Open(ctx, h)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// open is all that a stream of a peer can reach: the agents of this node.
func (m *membership) open(ctx context.Context, peer string, h tunnel.Header) (cluster.Conn, error) {
	if m.server.limits.memory.Full() {
		return nil, &tunnel.RefusedError{Code: tunnel.CodeOverloaded, Reason: "the node is short of memory"}
	}
	s, err := m.server.router.OpenLocal(ctx, peer, h)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// follow has the router told of what changes at the others.
func (m *membership) follow(r *router.Router) {
	m.table.OnHeld(r.Held)
	m.table.OnLost(r.Lost)
	m.table.OnTouched(r.Touched)
	m.table.OnNodes(r.NodesChanged)
}

// locate makes the directory, now that the addresses of the listeners are known.
func (m *membership) locate() error {
	s := m.server
	addr, err := m.advertised()
	if err != nil {
		return err
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("cluster.advertise: %w", err)
	}
	m.node.Addr = addr
	m.node.ProxyAddr = reachable(s.addrText(proxyListener), host)
	m.node.AdminAddr = reachable(s.addrText(adminListener), host)
	o := m.options(m.node)
	o.Registerer = s.registry
	m.directory, err = consul.New(o)
	return err
}

// start enters the directory and connects to the peers.
func (m *membership) start(life context.Context, group *errgroup.Group) {
	group.Go(func() error { return m.peers.Run(life) })
	group.Go(func() error { return m.directory.Run(life) })
	group.Go(func() error { return m.rebalance(life) })
	group.Go(func() error { return m.server.serve(life, clusterListener, m.server.listeners.get(clusterListener)) })
}

// advertised returns where peers reach this node.
func (m *membership) advertised() (string, error) {
	c := &m.server.config
	host, port, err := net.SplitHostPort(m.server.addrText(clusterListener))
	if err != nil {
		return "", fmt.Errorf("address of the cluster listener: %w", err)
	}
	if a := c.Cluster.Advertise; a != "" {
		if _, _, err := net.SplitHostPort(a); err == nil {
			return a, nil
		}
		return net.JoinHostPort(strings.Trim(a, "[]"), port), nil
	}
	if ip := net.ParseIP(host); ip != nil && !ip.IsUnspecified() {
		return net.JoinHostPort(host, port), nil
	}
	ip, err := outward(c.Consul.Address)
	if err != nil {
		return "", fmt.Errorf("find the address that other nodes reach this one at: %w; set cluster.advertise", err)
	}
	return net.JoinHostPort(ip.String(), port), nil
}

// outward returns the address of the interface that leads to Consul, or, where Consul is on this host, to the rest of the
// world. Nothing is sent.
func outward(servers config.List) (net.IP, error) {
	var errs []error
	for _, server := range append(slices.Clone(servers), "192.0.2.1:9", "[2001:db8::1]:9") {
		if !strings.Contains(server, "://") {
			server = "http://" + server
		}
		u, err := url.Parse(server)
		if err != nil || u.Host == "" {
			continue // a unix socket
		}
		c, err := net.Dial("udp", net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "8500")))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		local, _ := c.LocalAddr().(*net.UDPAddr)
		_ = c.Close() // nothing was sent
		if local != nil && !local.IP.IsLoopback() {
			return local.IP, nil
		}
	}
	if len(errs) == 0 {
		errs = append(errs, errors.New("this host has no address but its own"))
	}
	return nil, errors.Join(errs...)
}

// reachable puts host in place of an address that stands for all.
func reachable(addr, host string) string {
	h, port, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	if ip := net.ParseIP(h); ip != nil && ip.IsUnspecified() {
		return net.JoinHostPort(host, port)
	}
	return addr
}

// draining tells the other nodes that this one takes nothing new.
func (m *membership) draining() {
	m.peers.SetState(cluster.Draining)
	if m.directory != nil {
		m.directory.SetState(cluster.Draining)
	}
}

// hasRefuge reports whether there is another node to go to.
func (m *membership) hasRefuge() bool {
	return slices.ContainsFunc(m.table.Nodes(), func(r *cluster.Remote) bool { return r.Standing() == cluster.Good })
}

// handOver waits until the agents that were asked to have gone to another node, while this node still opens streams on the
// sessions that they have here.
func (m *membership) handOver(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, handOverTimeout)
	defer cancel()
	tick := time.NewTicker(handOverLook)
	defer tick.Stop()
	for m.local.Len() > 0 {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// leave gives the node up, so that nobody takes it for one that has crashed.
func (m *membership) leave(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTimeout)
	defer cancel()
	if err := m.directory.Leave(ctx); err != nil {
		m.server.o.Log.WithError(err).Warn("left without telling the directory")
	}
}

// publish returns when the directory has a key of this node, or after a while: what else an agent could do than go on is nothing.
func (m *membership) publish(ctx context.Context, key router.Key) {
	if m.directory == nil {
		return // two processes of one node that is alone
	}
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	_ = m.directory.Published(ctx, key) // says only that the time is over
}

// nodes lists all nodes, sorted.
func (s *Server) nodes() []nodeStatus {
	all := []nodeStatus{s.node(false)}
	if others := s.others(); others != nil {
		for _, r := range others.table.Nodes() {
			all = append(all, others.status(r))
		}
	}
	slices.SortFunc(all, func(a, b nodeStatus) int { return cmp.Compare(a.ID, b.ID) })
	return all
}

// status describes another node.
func (m *membership) status(r *cluster.Remote) nodeStatus {
	n := r.Node()
	endpoints, upstreams := m.table.Size(n.ID)
	return nodeStatus{
		ID: n.ID, Status: r.Standing().String(), ProxyAddr: n.ProxyAddr, AdminAddr: n.AdminAddr, Endpoints: endpoints,
		Upstreams: upstreams,
	}
}

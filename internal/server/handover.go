package server

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pikoproxy/piko/internal/cluster"
	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/limit"
	"github.com/pikoproxy/piko/internal/router"
	"github.com/pikoproxy/piko/internal/tlsconf"
)

// When a node hands over to a new process of itself, the two are for a while what the nodes of a cluster are to each other:
// each reaches the agents of the other. So it does not matter on which of them a client still has its connection, and which
// the agents have reached already, and the old one drains as a node of a cluster does. Nodes without Consul learn of each
// other by what the processes say to each other, nodes with it by that too; both meet on loopback, because the address of the
// cluster listener is that of both.

const (
	pairName     = "handover"
	knownTimeout = 3 * time.Second // for the other nodes of the cluster to learn of the new process
	meetTimeout  = 2 * time.Second // for the new process to learn what the old one holds
	meetLook     = 2 * time.Millisecond
	partLook     = 200 * time.Millisecond

	meetConnections = 64 // there are two, and others of this host may try
)

// kin is what a process says of itself to the one before or after it.
type kin struct {
	ID          string `json:"id"`
	Incarnation string `json:"incarnation"`
	Addr        string `json:"addr"` // on loopback
	PID         int    `json:"pid"`
	Clustered   bool   `json:"clustered"`        // finds others through Consul
	Secret      string `json:"secret,omitempty"` // without Consul: what both prove to know
}

// before reads what the process before has offered; nil if there is none.
func before(offer json.RawMessage, clustered bool) (*kin, error) {
	if len(offer) == 0 {
		return nil, nil //nolint:nilnil // the usual case
	}
	k := &kin{}
	if err := json.Unmarshal(offer, k); err != nil {
		return nil, fmt.Errorf("offer of the process before: %w", err)
	}
	if k.Clustered != clustered {
		return nil, errors.New("consul.address has been added or removed, which a handover can't do: restart instead")
	}
	return k, nil
}

// succession returns the process before, if there is one, and the id of this node.
func succession(c *config.Pikod, offer json.RawMessage) (old *kin, id string, err error) {
	if old, err = before(offer, len(c.Consul.Address) > 0); err != nil {
		return nil, "", err
	}
	formerly := ""
	if old != nil {
		formerly = old.ID
	}
	id, err = idAfter(c.Cluster.NodeID, formerly)
	return old, id, err
}

// idAfter returns the node id of the process that comes after another. Both are alive for a while, so it is another one, and
// the configured one again the time after.
func idAfter(configured, old string) (string, error) {
	if configured == "" || configured != old {
		return nodeID(configured)
	}
	suffix, err := randomName(2)
	return configured + "-" + suffix, err
}

func randomName(bytes int) (string, error) {
	b := make([]byte, bytes)
	if _, err := rand.Read(b); err != nil {
		return "", fmt.Errorf("make a name: %w", err)
	}
	return hex.EncodeToString(b), nil
}

// newAlone is the membership of a node that knows no other but the process before or after it.
func newAlone(s *Server, routing *router.Options) *membership {
	m := &membership{server: s, local: cluster.NewLocal(), table: cluster.NewTable()}
	routing.Local, routing.Remotes = m.local, remotes{m}
	return m
}

// others returns what this node has to do with other nodes, or nil.
func (s *Server) others() *membership {
	if s.cluster != nil {
		return s.cluster
	}
	if s.paired.Load() {
		return s.alone
	}
	return nil
}

// meeting opens a place where the two processes meet, and starts what that needs. Secret is that of nodes without Consul.
func (s *Server) meeting(secret string) (kin, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.group == nil || s.ending {
		return kin{}, errors.New("the node is stopping")
	}
	return s.meetingLocked(s.life, s.group, secret)
}

func (s *Server) meetingLocked(life context.Context, group *errgroup.Group, secret string) (kin, error) {
	if s.cluster == nil && !s.paired.Load() {
		if err := s.alone.pair(secret); err != nil {
			return kin{}, err
		}
		s.pairSecret = secret
		s.paired.Store(true)
		group.Go(func() error { return s.alone.peers.Run(life) })
	}
	m := s.others()
	if s.meetingAddr == "" {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return kin{}, err
		}
		s.meetingAddr = l.Addr().String()
		// Not behind the gate of the cluster listener: which networks nodes come from says nothing about this host.
		gate := limit.NewGate(clusterListener, limit.GateSettings{Connections: meetConnections}, s.limits.report, nil)
		group.Go(func() error {
			if err := m.peers.Serve(gate.Listen(l)); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serve the place of the handover at %s: %w", s.meetingAddr, err)
			}
			return nil
		})
	}
	return kin{
		ID: m.node.ID, Incarnation: m.node.Incarnation, Addr: s.meetingAddr, PID: os.Getpid(),
		Clustered: s.cluster != nil, Secret: s.pairSecret,
	}, nil
}

// pair makes what two processes without a cluster need to reach each other.
func (m *membership) pair(secret string) error {
	incarnation, err := randomName(8)
	if err != nil {
		return err
	}
	server, client, err := tlsconf.Secret(secret, pairName, "http/1.1")
	if err != nil {
		return err
	}
	s := m.server
	m.node = cluster.Node{ID: s.id, Incarnation: incarnation, Started: s.started, State: cluster.Up}
	m.peers, err = cluster.NewPeers(cluster.Options{
		Node: m.node, Cluster: pairName, Local: m.local, Table: m.table, Server: server, Client: client,
		Open: m.open, Sessions: s.sessions.len, Log: s.o.Log, ErrorLog: s.o.ErrorLog,
	})
	return err
}

// meet makes the other process known, and forgets it when it has ended.
func (s *Server) meet(life context.Context, group *errgroup.Group, k *kin, ended func() bool) {
	m := s.others()
	m.peers.Reach(k.ID, k.Incarnation, k.Addr)
	if s.cluster != nil {
		return // who exists says the directory
	}
	remote := m.table.Meet(cluster.Node{ID: k.ID, Incarnation: k.Incarnation, Addr: k.Addr, State: cluster.Up})
	group.Go(func() error {
		tick := time.NewTicker(partLook)
		defer tick.Stop()
		for remote.Doubt() != cluster.Down || !ended() {
			select {
			case <-tick.C:
			case <-remote.Gone():
				return nil
			case <-life.Done():
				return nil
			}
		}
		m.table.Forget(k.ID, k.Incarnation)
		return nil
	})
}

// succeed takes over from the process before, and returns when this one is to serve.
func (s *Server) succeed(ctx, life context.Context, group *errgroup.Group) error {
	old := s.before
	if old == nil {
		return nil
	}
	me, err := s.meetingLocked(life, group, old.Secret)
	if err != nil {
		return err
	}
	me.Secret = "" // it knows
	s.meet(life, group, old, func() bool { return os.Getppid() != old.PID })
	until(ctx, knownTimeout, func() bool { return s.others().peers.Met(old.ID) })
	if err := s.o.Succeed(me); err != nil {
		return err
	}
	// What the old process holds is known in a moment. If it is not, requests are held, as for any endpoint that moves.
	until(ctx, meetTimeout, func() bool {
		_, known := s.others().table.Seq(old.ID, old.Incarnation)
		return known
	})
	return nil
}

// until waits for something, for some time.
func until(ctx context.Context, most time.Duration, done func() bool) {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	tick := time.NewTicker(meetLook)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// heir lets the shell hand a node over to a new process.
type heir struct{ s *Server }

// Offer implements daemon.Handover.
func (h heir) Offer(context.Context) (any, error) {
	secret := ""
	if h.s.cluster == nil {
		var err error
		if secret, err = randomName(32); err != nil {
			return nil, err
		}
	}
	return h.s.meeting(secret)
}

// Accepted implements daemon.Handover.
func (h heir) Accepted(_ context.Context, answer json.RawMessage) error {
	s := h.s
	k, err := before(answer, s.cluster != nil)
	if err != nil {
		return err
	}
	if k == nil {
		return errors.New("the new process says nothing of itself")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.group == nil || s.ending {
		return errors.New("the node is stopping")
	}
	s.meet(s.life, s.group, k, func() bool { return errors.Is(syscall.Kill(k.PID, 0), syscall.ESRCH) }) //nolint:contextcheck // as above
	return nil
}

// Yield implements daemon.Handover.
func (h heir) Yield() {
	s := h.s
	s.yielded.Store(true)
	for _, name := range s.listeners.names() {
		if l := s.listeners.set(name, nil); l != nil {
			_ = l.Close() // the other process has the socket, and what came through here is not touched
		}
	}
}

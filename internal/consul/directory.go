package consul

import (
	"context"
	"errors"
	"fmt"
	"net"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/sirupsen/logrus"
	"golang.org/x/time/rate"

	"github.com/pikoproxy/piko/internal/cluster"
	"github.com/pikoproxy/piko/internal/config"
)

// ErrDuplicate says that another living process has the name of this node.
var ErrDuplicate = errors.New("another node of the cluster has this name and is alive: give each its own cluster.node_id")

// Options are what a [Directory] is made of.
type Options struct {
	// Settings say where Consul is and how much may be asked of it.
	Settings config.Consul
	// Cluster is the name of the cluster.
	Cluster string
	// Node is who this node is. Its Incarnation is a random name for this life of the process; its State is taken as Up.
	Node cluster.Node
	// Local is what this node holds: it is published. Table takes what the others hold.
	Local *cluster.Local
	Table *cluster.Table
	// Probe reports nil if the node at addr answers and is of this incarnation. Without it no node is believed to be
	// alive that Consul does not know.
	Probe func(ctx context.Context, addr, incarnation string) error
	// Log must not be nil. Registerer may be.
	Log        logrus.FieldLogger
	Registerer prometheus.Registerer
}

// pace holds the times that tests make shorter.
type pace struct {
	collect, lazy, heartbeat, verify     time.Duration // writer
	renew, renewTimeout                  time.Duration // session
	wait, current                        time.Duration // watches
	probe, probeTimeout, orphan          time.Duration // orphans
	retryMin, retryMax, repair, overtake time.Duration
	sweep, sweepAge, sweepSpread         time.Duration // janitor
	tags                                 time.Duration
	ttl                                  time.Duration
}

func defaultPace() pace {
	return pace{
		collect: 3 * time.Millisecond, lazy: 5 * time.Second, heartbeat: 30 * time.Second, verify: 10 * time.Minute,
		renew: 3300 * time.Millisecond, renewTimeout: 3 * time.Second,
		wait: 55 * time.Second, current: 2 * time.Second,
		probe: time.Second, probeTimeout: 500 * time.Millisecond, orphan: 15 * time.Minute,
		retryMin: 250 * time.Millisecond, retryMax: 5 * time.Second, repair: 10 * time.Second, overtake: time.Second,
		sweep: 30 * time.Second, sweepAge: time.Minute, sweepSpread: 10 * time.Second,
		tags: 5 * time.Second, ttl: 10 * time.Second,
	}
}

// Directory keeps this node's part of the directory in Consul, and the table of the others after what Consul has of
// them. [Directory.Run] does the work. All methods are safe for concurrent use.
type Directory struct {
	settings config.Consul
	cluster  string
	node     cluster.Node
	local    *cluster.Local
	table    *cluster.Table
	probe    func(ctx context.Context, addr, incarnation string) error
	log      logrus.FieldLogger
	metrics  *metrics
	pace     pace

	base, catalog string // first part of our keys; name of our node in the catalog
	servers       *servers
	tokens        *tokens
	env           environment

	renewals, writes, reads *wire // each with a client of its own below
	renewClient             *api.Client
	writeClient             *api.Client
	readClient              *api.Client

	budget   *rate.Limiter // of transactions
	total    atomic.Int64  // settings.write_budget
	slowTill atomic.Int64  // Unix nanoseconds until which the budget is halved
	members  atomic.Int64  // nodes of the cluster, this one included

	state   atomic.Pointer[cluster.State]
	session atomic.Pointer[string] // "" while there is none
	renewed atomic.Int64           // Unix nanoseconds of the last renewal
	writer  *writer
	view    *view
	canary  canary
	epoch   atomic.Pointer[epoch] // of the blocking reads; set by Run

	listing   chan struct{} // holds one token for each list of a node that is being read; never closed
	leaving   chan struct{} // closed when Leave begins
	leaveOnce sync.Once
	ready     chan struct{} // closed by the view when it is complete for the first time

	mu         sync.Mutex
	stopped    chan struct{}        // closed by Run when session and writer have ended; nil before Run
	complained map[string]time.Time // by message
	claimed    map[string]bool      // locks that a goroutine of this node has or takes, by key
}

var clusterName = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9_.-]{0,62}[a-zA-Z0-9])?$`)

// New checks the options. It starts nothing and asks nothing of Consul. Settings without an address take that of
// CONSUL_HTTP_ADDR, and what they leave open otherwise comes from the other CONSUL_* variables.
func New(o Options) (*Directory, error) { return newDirectory(o, defaultPace()) }

func newDirectory(o Options, p pace) (*Directory, error) {
	if !clusterName.MatchString(o.Cluster) || strings.Contains(o.Cluster, "..") {
		return nil, fmt.Errorf("cluster.name %q: want letters, digits and inner '-', '_' or '.'", o.Cluster)
	}
	if !goodName(o.Node.ID) || !goodName(o.Node.Incarnation) {
		return nil, fmt.Errorf("cluster.node_id %q, incarnation %q: want letters, digits and inner '-', '_' or '.', at most %d bytes",
			o.Node.ID, o.Node.Incarnation, maxName)
	}
	if !goodAddress(o.Node.Addr) {
		return nil, fmt.Errorf("cluster.advertise %q: want an address that other nodes can reach, host:port", o.Node.Addr)
	}
	env := readEnvironment()
	list, err := newServers(o.Settings.Address, env)
	if err != nil {
		return nil, err
	}
	secure, err := secured(o.Settings.TLS, env)
	if err != nil {
		return nil, err
	}
	d := &Directory{
		settings: o.Settings, cluster: o.Cluster, node: o.Node, local: o.Local, table: o.Table, probe: o.Probe,
		log: o.Log, pace: p, base: o.Settings.Prefix + "/" + o.Cluster + "/v1/", catalog: catalogName(o.Cluster, o.Node.ID),
		servers: list, tokens: newTokens(o.Settings, env), env: env, budget: rate.NewLimiter(2, 10),
		listing: make(chan struct{}, maxLists), leaving: make(chan struct{}), ready: make(chan struct{}),
		complained: map[string]time.Time{}, claimed: map[string]bool{},
	}
	if d.node.Started.IsZero() {
		d.node.Started = time.Now()
	}
	up, none := cluster.Up, ""
	d.state.Store(&up)
	d.session.Store(&none)
	d.total.Store(int64(o.Settings.WriteBudget))
	d.members.Store(1)
	d.writer = newWriter(d)
	d.view = newView(d)
	if d.metrics, err = newMetrics(o.Registerer, d.renewAge, d.writer.age); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	d.renewals, d.writes, d.reads = newWire(d, secure, 1), newWire(d, secure, 4), newWire(d, secure, 64)
	for _, c := range []struct {
		wire   *wire
		client **api.Client
	}{{d.renewals, &d.renewClient}, {d.writes, &d.writeClient}, {d.reads, &d.readClient}} {
		if *c.client, err = c.wire.client(o.Settings, env); err != nil {
			return nil, fmt.Errorf("client of Consul: %w", err)
		}
	}
	d.rebudget()
	return d, nil
}

// Run publishes what the node holds and fills the table, until ctx ends; all it started is gone when it returns. It does
// not give the node up: for that there is [Directory.Leave], while Run runs or after. An error means that the node cannot
// take part, for example [ErrDuplicate]; that Consul does not answer is none.
func (d *Directory) Run(ctx context.Context) error {
	stopped := make(chan struct{})
	d.mu.Lock()
	d.stopped = stopped
	d.mu.Unlock()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	defer func() { cancel(nil); wg.Wait(); d.closeIdle() }()
	d.begin(ctx)
	wg.Go(func() { d.view.run(ctx) })
	wg.Go(func() { d.watchSelf(ctx) })
	wg.Go(func() { d.sweep(ctx) })
	err := d.live(ctx)
	close(stopped)
	if err != nil {
		cancel(err)
		return err
	}
	<-ctx.Done() // after Leave the node still reads
	return nil
}

// complain logs what keeps failing once in a while, and else for debugging only.
func (d *Directory) complain(err error, message string) {
	d.mu.Lock()
	loud := time.Since(d.complained[message]) > 30*time.Second
	if loud {
		d.complained[message] = time.Now()
	}
	d.mu.Unlock()
	log := d.log.WithError(err)
	if loud {
		log.Warn(message)
		return
	}
	log.Debug(message)
}

// closeIdle lets go of the connections. Leave, if it comes after, makes new ones.
func (d *Directory) closeIdle() {
	for _, w := range []*wire{d.renewals, d.writes, d.reads} {
		w.reset()
	}
}

// Ready returns a channel that is closed when every member that was there at the start has been read once.
func (d *Directory) Ready() <-chan struct{} { return d.ready }

// SetState publishes a new state of this node, for example cluster.Draining. It does not wait.
func (d *Directory) SetState(s cluster.State) {
	d.state.Store(&s)
	d.writer.touchMember()
}

// SetToken replaces the token that Consul is asked with.
func (d *Directory) SetToken(token string) { d.tokens.set(token) }

// SetWriteBudget replaces settings.consul.write_budget.
func (d *Directory) SetWriteBudget(perSecond int) {
	d.total.Store(int64(perSecond))
	d.rebudget()
}

// Apply takes over what may change in the settings while the node runs: token, write budget, and TLS, whose files are read
// again. With an error nothing has changed.
func (d *Directory) Apply(c config.Consul) error {
	secure, err := secured(c.TLS, d.env)
	if err != nil {
		return err
	}
	for _, w := range []*wire{d.renewals, d.writes, d.reads} {
		w.secure(secure)
	}
	d.tokens.set(c.Token.Reveal())
	d.SetWriteBudget(c.WriteBudget)
	d.restart("settings")
	return nil
}

// Published waits until Consul has acknowledged a write of this node with the key, or until ctx ends.
func (d *Directory) Published(ctx context.Context, key string) error {
	return d.writer.published(ctx, key)
}

// self returns the record of this node as of now.
func (d *Directory) self() cluster.Node {
	n := d.node
	n.State = *d.state.Load()
	return n
}

// rebudget sets this node's share of the write budget.
func (d *Directory) rebudget() {
	share := float64(d.total.Load()) / float64(max(d.members.Load(), 1))
	if time.Now().UnixNano() < d.slowTill.Load() {
		share /= 2
	}
	share = min(max(share, 2), 50)
	d.budget.SetLimit(rate.Limit(share))
	d.metrics.budget.Set(share)
}

// slow halves the budget for a while: Consul said that it is asked too much.
func (d *Directory) slow() {
	d.slowTill.Store(time.Now().Add(30 * time.Second).UnixNano())
	d.rebudget()
}

func (d *Directory) renewAge() time.Duration {
	if at := d.renewed.Load(); at != 0 && *d.session.Load() != "" {
		return time.Since(time.Unix(0, at))
	}
	return 0
}

// memberKey, headKey and nodePrefix are the names of what a node writes.
func (d *Directory) memberKey(node string) string  { return d.base + "m/" + node }
func (d *Directory) nodePrefix(node string) string { return d.base + "n/" + node + "/" }
func (d *Directory) headKey(node string) string    { return d.nodePrefix(node) + "head" }

// sleep waits for t or the end of ctx, which it reports as false.
func sleep(ctx context.Context, t time.Duration) bool {
	timer := time.NewTimer(t)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// split returns the parts of an address, with zero values for what is none.
func split(addr string) (host string, port int) {
	host, text, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0
	}
	port, err = net.LookupPort("tcp", text)
	if err != nil {
		return host, 0
	}
	return host, port
}

package consul

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/pikoproxy/piko/internal/backoff"
	"github.com/pikoproxy/piko/internal/cluster"
)

const (
	serviceName  = "pikod"
	checkID      = "pikod-session"
	writeTime    = 5 * time.Second // for one write of Consul
	farewellTime = 300 * time.Millisecond
	metaCluster  = "pikod-cluster"
	metaNode     = "pikod-node"
)

// errLost says that the session is gone and a new one is needed.
var errLost = errors.New("consul session is gone")

// catalogName returns the name of a node in Consul's catalog. It is a DNS label for the SRV records.
func catalogName(clusterName, node string) string {
	name := "pikod-" + clusterName + "-" + node
	if len(name) <= 63 {
		return name
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(name)) // never an error
	return fmt.Sprintf("%s-%08x", strings.TrimRight(name[:54], "-._"), h.Sum32())
}

// live holds a session as long as ctx lasts and nobody leaves, and writes within it.
//
//	register -> session -> publish -> write and renew -> lost -> (wait at random) -> register
func (d *Directory) live(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() {
		select {
		case <-d.leaving:
			cancel()
		case <-ctx.Done():
		}
	})
	defer d.writer.close()
	retry := backoff.Backoff{Min: d.pace.retryMin, Max: d.pace.retryMax}
	reason := "start"
	for ctx.Err() == nil {
		began := time.Now()
		err := d.liveOnce(ctx, reason)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, ErrDuplicate):
			d.abandon(ctx)
			return err
		case errors.Is(err, errLost):
			reason = "lost"
			d.log.WithError(err).Warn("consul session lost; publishing again")
			// All nodes may have lost theirs at the same moment.
			if !sleep(ctx, 1+rand.N(min(5*time.Second, time.Duration(d.members.Load())*100*time.Millisecond))) { //nolint:gosec // a delay
				return nil
			}
		default:
			d.complain(err, "consul does not let this node register; trying again")
		}
		if time.Since(began) > time.Minute {
			retry.Reset()
		}
		if retry.Wait(ctx) != nil {
			return nil
		}
	}
	return nil
}

// liveOnce makes a session and writes within it until it is lost.
func (d *Directory) liveOnce(ctx context.Context, reason string) error {
	// Before anything is written: what a duplicate registers would be what the living one had registered.
	if err := d.takeover(ctx, d.memberKey(d.node.ID)); err != nil {
		return err
	}
	if err := d.register(ctx, true, nil); err != nil {
		return fmt.Errorf("register node %s in the catalog: %w", d.catalog, err)
	}
	id, err := d.createSession(ctx)
	if err != nil {
		return fmt.Errorf("create a session for node %s: %w", d.catalog, err)
	}
	d.metrics.sessions.WithLabelValues(reason).Inc()
	d.renewed.Store(time.Now().UnixNano())
	d.session.Store(&id)
	d.log.WithField("consul_session", id).Info("consul session created")
	if err := d.passCheck(ctx); err != nil {
		d.log.WithError(err).Warn("the check of the service could not be set")
	}
	ctx, cancel := context.WithCancelCause(ctx)
	renewing := make(chan struct{})
	go func() { // ends with ctx; waited for below
		defer close(renewing)
		if err := d.renew(ctx, id); err != nil {
			cancel(err)
		}
	}()
	err = d.writer.run(ctx, id)
	if cause := context.Cause(ctx); errors.Is(cause, errLost) {
		err = cause
	}
	cancel(nil)
	<-renewing
	if errors.Is(err, errLost) {
		d.dropSession(id)
	}
	return err
}

// abandon ends the session of a node whose name belongs to another. That it fails does no harm: it expires.
func (d *Directory) abandon(ctx context.Context) {
	id := *d.session.Load()
	if id == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, writeTime)
	defer cancel()
	if _, err := d.writeClient.Session().Destroy(id, writeOptions(ctx)); err == nil {
		d.dropSession(id)
	}
}

// dropSession forgets a session that is gone. While the writer only stops, Leave still needs it.
func (d *Directory) dropSession(id string) {
	none := ""
	if current := d.session.Load(); *current == id {
		d.session.CompareAndSwap(current, &none)
	}
}

// register writes this node and its service into the catalog. The check is repeated only for a new session, since doing
// so resets it.
func (d *Directory) register(ctx context.Context, withCheck bool, tags []string) error {
	ctx, cancel := context.WithTimeout(ctx, writeTime)
	defer cancel()
	host, port := split(d.node.ProxyAddr)
	if host == "" {
		host, _ = split(d.node.Addr)
	}
	r := &api.CatalogRegistration{
		Node: d.catalog, Address: host,
		NodeMeta: map[string]string{
			"external-source": serviceName, metaCluster: d.cluster, metaNode: d.node.ID, "pikod-version": d.node.Version,
		},
		Service: &api.AgentService{
			ID: d.catalog, Service: serviceName, Address: host, Port: port,
			Tags: append(d.fixedTags(), tags...),
			Meta: map[string]string{"admin": d.node.AdminAddr, "cluster": d.cluster, "version": d.node.Version},
		},
		SkipNodeUpdate: !withCheck,
	}
	if withCheck {
		r.Checks = api.HealthChecks{{
			Node: d.catalog, CheckID: checkID, Name: "Consul session of the node", Status: api.HealthCritical,
			ServiceID: d.catalog, Type: "session", Definition: api.HealthCheckDefinition{SessionName: d.sessionName()},
		}}
	}
	_, err := d.writeClient.Catalog().Register(r, writeOptions(ctx))
	return err
}

// fixedTags are the tags that every node has, as far as they can be asked for by DNS.
func (d *Directory) fixedTags() []string {
	tags := []string{"v1"}
	for _, tag := range []string{d.cluster, d.node.Zone} {
		if tag != "" {
			tags = append(tags, tag)
		}
	}
	return tags
}

func (d *Directory) sessionName() string { return serviceName + "/" + d.cluster + "/" + d.node.ID }

func (d *Directory) createSession(ctx context.Context) (string, error) {
	entry := &api.SessionEntry{
		Name: d.sessionName(), Node: d.catalog, Behavior: api.SessionBehaviorDelete, TTL: d.pace.ttl.String(),
		LockDelay: time.Millisecond, // zero would not be sent, and the default is 15 s
	}
	create := func() (string, error) {
		ctx, cancel := context.WithTimeout(ctx, writeTime)
		defer cancel()
		id, _, err := d.writeClient.Session().CreateNoChecks(entry, writeOptions(ctx))
		return id, err
	}
	id, err := create()
	if least, ok := minimalTTL(err); ok {
		entry.TTL = least.String()
		id, err = create()
	}
	return id, err
}

// minimalTTL reads session_ttl_min from Consul's refusal: "Invalid Session TTL '5000000000', must be between [10s=24h0m0s]".
func minimalTTL(err error) (time.Duration, bool) {
	var refusal *StatusError
	if !errors.As(err, &refusal) {
		return 0, false
	}
	_, rest, found := strings.Cut(refusal.Text, "must be between [")
	text, _, bounded := strings.Cut(rest, "=")
	if !found || !bounded {
		return 0, false
	}
	least, err := time.ParseDuration(text)
	return least, err == nil && least > 0 && least <= time.Hour
}

// passCheck sets the check of the service to passing where Consul, before 1.21, does not do so by itself.
func (d *Directory) passCheck(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, writeTime)
	defer cancel()
	checks, _, err := d.writeClient.Health().Node(d.catalog, readOptions(ctx))
	if err != nil {
		return err
	}
	for _, c := range checks {
		if c.CheckID == checkID && c.Status == api.HealthPassing {
			return nil
		}
	}
	op := &api.TxnOp{Check: &api.CheckTxnOp{Verb: api.CheckSet, Check: api.HealthCheck{
		Node: d.catalog, CheckID: checkID, Name: "Consul session of the node", Status: api.HealthPassing,
		ServiceID: d.catalog, Type: "ttl",
	}}}
	_, _, _, err = d.writeClient.Txn().Txn(api.TxnOps{op}, readOptions(ctx))
	return err
}

// renew keeps the session alive until ctx ends. It returns errLost when Consul does not know the session any more.
// That Consul does not answer is no loss: an election or an outage re-arms the session.
func (d *Directory) renew(ctx context.Context, id string) error {
	wait := d.jitter(d.pace.renew)
	for sleep(ctx, wait) {
		wait = d.jitter(d.pace.renew)
		began := time.Now()
		call, cancel := context.WithTimeout(ctx, d.pace.renewTimeout)
		entry, _, err := d.renewClient.Session().Renew(id, writeOptions(call))
		cancel()
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			d.metrics.renewFailures.Inc()
			d.renewals.reset()
			wait = min(wait, d.jitter(d.pace.retryMin*4))
		case entry == nil:
			if d.ended(ctx, id) {
				return fmt.Errorf("renew session %s: %w", id, errLost)
			}
			d.metrics.renewFailures.Inc()
			wait = min(wait, d.jitter(d.pace.retryMin))
		default:
			d.renewed.Store(time.Now().UnixNano())
			d.metrics.renewTime.Observe(time.Since(began).Seconds())
		}
	}
	return nil
}

// ended asks whether a session is really gone. A leader that has just been elected renews before it knows all sessions, and
// says of those that it doesn't know yet that there are none. It takes no consistent read before it does.
func (d *Directory) ended(ctx context.Context, id string) bool {
	ctx, cancel := context.WithTimeout(ctx, d.pace.renewTimeout)
	defer cancel()
	q := readOptions(ctx)
	q.RequireConsistent = true
	entry, _, err := d.renewClient.Session().Info(id, q)
	return err == nil && entry == nil
}

// jitter returns t with up to a tenth added or taken.
func (d *Directory) jitter(t time.Duration) time.Duration {
	return t - t/10 + rand.N(t/5+1) //nolint:gosec // a delay
}

// takeover decides about the session that holds a key of ours. It is ended if it is that of a former life of this node,
// at the same address or at one where nobody answers for it; else two nodes have one name.
func (d *Directory) takeover(ctx context.Context, key string) error {
	ctx, cancel := context.WithTimeout(ctx, writeTime)
	defer cancel()
	options := readOptions(ctx)
	options.RequireConsistent = true
	pair, _, err := d.writeClient.KV().Get(key, options)
	if err != nil {
		return fmt.Errorf("read who holds %s: %w", key, err)
	}
	if pair == nil || pair.Session == "" || pair.Session == *d.session.Load() {
		return nil // let go meanwhile
	}
	record, _, err := d.writeClient.KV().Get(d.memberKey(d.node.ID), options)
	if err != nil {
		return fmt.Errorf("read the record of node %s: %w", d.node.ID, err)
	}
	if record == nil || record.Session != pair.Session {
		record = pair // no record tells who that is: it cannot be asked
	}
	if n, err := decodeMember(d.node.ID, record.Value); err == nil && n.Incarnation != d.node.Incarnation &&
		n.Addr != d.node.Addr && n.State != cluster.Left && d.alive(ctx, n) {
		return fmt.Errorf("node %s at %s: %w", n.ID, n.Addr, ErrDuplicate)
	}
	d.log.WithField("consul_session", pair.Session).Warn("ending the session of a former life of this node")
	if _, err := d.writeClient.Session().Destroy(pair.Session, writeOptions(ctx)); err != nil {
		return fmt.Errorf("end the session of a former life of node %s: %w", d.node.ID, err)
	}
	return nil
}

// alive asks a node itself whether it lives, three times at most.
func (d *Directory) alive(ctx context.Context, n cluster.Node) bool {
	if d.probe == nil {
		return false
	}
	for i := range 3 {
		if i > 0 && !sleep(ctx, d.pace.probeTimeout) {
			return false
		}
		call, cancel := context.WithTimeout(ctx, d.pace.probeTimeout)
		err := d.probe(call, n.Addr, n.Incarnation)
		cancel()
		if err == nil {
			return true
		}
	}
	return false
}

// Leave gives the node up: its record says so, its session ends and it vanishes from the catalog, all before ctx ends.
// Peers drop its routes at once. It publishes nothing afterwards.
func (d *Directory) Leave(ctx context.Context) error {
	d.leaveOnce.Do(func() { close(d.leaving) })
	d.mu.Lock()
	stopped := d.stopped
	d.mu.Unlock()
	if stopped != nil {
		select {
		case <-stopped:
		case <-ctx.Done():
			return fmt.Errorf("leave the directory: %w", ctx.Err())
		}
	}
	d.SetState(cluster.Left)
	d.canary.begin() // from here on our keys are not as the writer left them, and rightly so
	var problems []error
	if id := *d.session.Load(); id != "" {
		if err := d.writer.farewell(ctx, id); err != nil {
			problems = append(problems, fmt.Errorf("publish that node %s has left: %w", d.node.ID, err))
		} else {
			// A record that vanished before its state was read would make an orphan of a node that is gone for good.
			sleep(ctx, farewellTime)
		}
		if _, err := d.writeClient.Session().Destroy(id, writeOptions(ctx)); err != nil {
			problems = append(problems, fmt.Errorf("end session %s: %w", id, err))
		} else {
			d.dropSession(id)
		}
	}
	// A successor that has taken the name over by now keeps it.
	if err := d.removeNode(ctx, d.catalog, d.node.ID); err != nil {
		problems = append(problems, fmt.Errorf("remove node %s from the catalog: %w", d.catalog, err))
	}
	return errors.Join(problems...)
}

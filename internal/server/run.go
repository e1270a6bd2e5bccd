package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sync/errgroup"

	"github.com/pikoproxy/piko/internal/auth"
)

const (
	adminGrace  = 2 * time.Second // for the last answers of the admin listener
	statusEvery = 5 * time.Second
)

// Run serves until ctx ends, then drains the node and returns. It returns an error if a listener could not be opened or
// failed. It may be called once.
func (s *Server) Run(ctx context.Context) error {
	if err := s.Listen(); err != nil {
		return err
	}
	if s.cluster != nil {
		if err := s.cluster.locate(); err != nil {
			return err
		}
	}
	// What runs in the node outlives ctx: the drain needs all of it, and ends it by stop.
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	group, life := errgroup.WithContext(life)
	group.Go(func() error { return s.router.Run(life) })
	group.Go(func() error { return s.keeper.Run(life) })
	s.limits.bound(&s.now().config)
	group.Go(func() error { return s.limits.watch(life, s.proxy) })
	group.Go(func() error { return s.limits.gates[proxyListener].Watch(life) })
	group.Go(func() error { return s.sessions.expire(life, s) })
	group.Go(func() error { return s.leases.Run(life) })
	for _, guests := range s.guests {
		group.Go(func() error { return guests.Run(life) })
	}
	group.Go(func() error { return s.vigil.run(life) })
	group.Go(func() error { return s.summarize(life) })
	group.Go(func() error { return s.acme.Run(life) })
	if s.cluster != nil {
		s.cluster.start(life, group)
	}
	if err := s.enter(ctx, life, group); err != nil {
		stop()
		return errors.Join(err, group.Wait())
	}
	select {
	case <-ctx.Done():
	case <-life.Done(): // a part failed; what still runs is drained all the same
	}
	s.setEnding()
	s.drain(context.WithoutCancel(ctx))
	s.end()
	stop()
	return group.Wait()
}

// enter begins to serve. A node that takes over from another process does so only when it could be ready at once.
func (s *Server) enter(ctx, life context.Context, group *errgroup.Group) error {
	known := false
	if s.before != nil {
		if known = s.await(ctx, life); !known {
			return errors.New("told to stop before it could take over")
		}
		if err := s.succeed(ctx, life, group); err != nil {
			return err
		}
	}
	s.begin(life, group)
	if s.o.Begun != nil {
		s.o.Begun()
	}
	if known || s.await(ctx, life) {
		s.state.Store(int32(up))
		s.announce()
	}
	return nil
}

// await waits until the node knows what the others hold, and reports false when it has to stop before that.
func (s *Server) await(ctx, life context.Context) bool {
	if s.cluster == nil {
		return true
	}
	s.tell("waiting for the directory in Consul")
	select {
	case <-s.cluster.directory.Ready():
		return true
	case <-ctx.Done():
	case <-life.Done():
	}
	return false
}

// serve runs one listener until it is shut down, or closed because another has taken its place.
func (s *Server) serve(life context.Context, name string, l net.Listener) error {
	raw, serve := l, s.admin.Serve
	switch name {
	case upstreamListener:
		serve = s.upstream.Serve
	case clusterListener:
		serve = s.others().peers.Serve
	case acmeListener:
		serve = s.plain.Serve
	case proxyListener:
		serve = func(l net.Listener) error { return s.proxy.Serve(life, l) }
	}
	if gate := s.limits.gates[name]; gate != nil {
		l = gate.Listen(l)
	}
	l = s.watched(name, l)
	switch name { // the others put TLS and a guard on themselves
	case upstreamListener:
		l = s.guarded(name, l, s.upstream)
	case adminListener:
		l = s.guarded(name, l, s.admin)
	}
	err := serve(l)
	if err == nil || errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) && s.listeners.get(name) != raw {
		return nil
	}
	return fmt.Errorf("serve the %s listener at %s: %w", name, l.Addr(), err)
}

// announce says that the node takes traffic.
func (s *Server) announce() {
	fields := logrus.Fields{"node": s.id}
	for _, name := range s.listeners.names() {
		fields[name] = s.addrText(name)
	}
	s.o.Log.WithFields(fields).Info("ready")
	if s.o.Ready != nil {
		s.o.Ready()
	}
}

// drain ends the node so that a planned stop fails nothing that is done within the drain timeout.
func (s *Server) drain(ctx context.Context) {
	log := s.o.Log.WithField("node", s.id)
	// 1. Readiness goes off, other nodes are told, and nothing else changes for the time that balancers need to look
	// elsewhere.
	s.state.Store(int32(leaving))
	s.tell("draining")
	log.Info("draining")
	if others := s.others(); others != nil {
		others.draining()
	}
	if !s.yielded.Load() { // else there is no elsewhere: the same sockets lead to another process already
		pause(ctx, time.Duration(s.now().config.DrainNotice))
	}

	// From here on everything has one deadline, cut loose from whatever made the node stop.
	deadline := time.Now().Add(time.Duration(s.now().config.DrainTimeout))
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()

	// 2. Agents are told: they connect elsewhere first and leave then. New ones are sent away with 503 from now on.
	// Streams are still opened on the sessions they have here, since requests still arrive.
	s.state.Store(int32(draining))
	s.sessions.drain("the node is stopping", deadline)
	var classics sync.WaitGroup
	others := s.others()
	if others != nil && others.hasRefuge() {
		classics.Go(newClassicDrain(ctx, others).run)
		others.handOver(ctx)
	}

	// 3. The proxy parts with its clients, and then takes nothing new. Running requests and upgraded connections finish.
	if err := s.proxy.Shutdown(ctx); err != nil {
		log.WithError(err).Warn("requests were cut off")
	}

	// 4. Peers get no new streams, once no classic agent serves them any more. Those that are there finish.
	classics.Wait()
	if others != nil {
		s.router.CloseIdle()
		if n := others.peers.Shutdown(ctx); n > 0 {
			log.WithField("sessions", n).Warn("streams of peers were cut off")
		}
	}

	// 5. Sessions end: nothing runs on them any more, or the time is over. Classic agents must see a
	// reset and no clean end, which Shutdown of the session sees to.
	if n := s.sessions.shutdown(ctx); n > 0 {
		log.WithField("sessions", n).Warn("sessions ended with open streams")
	}
	_ = s.upstream.Close() // handshakes that came too late
	_ = s.plain.Close()    // redirects, and questions of an authority that will ask again
	if s.cluster != nil {
		s.cluster.leave(ctx)
	}

	// 6. Admin goes last, so that operators and probes see the drain to its end.
	grace, cancelGrace := context.WithTimeout(context.WithoutCancel(ctx), adminGrace)
	defer cancelGrace()
	if s.admin.Shutdown(grace) != nil {
		_ = s.admin.Close() // a scrape or profile that would not end
	}
	log.Info("drained")
}

// summarize keeps the one-line status up to date.
func (s *Server) summarize(ctx context.Context) error {
	tick := time.NewTicker(statusEvery)
	defer tick.Stop()
	for {
		if state(s.state.Load()) == up {
			endpoints, _ := s.router.Size()
			s.tell(fmt.Sprintf("%d endpoints, %d sessions", endpoints, s.sessions.len()))
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func runVerifier(ctx context.Context, v *auth.Verifier) error {
	if err := v.Run(ctx); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

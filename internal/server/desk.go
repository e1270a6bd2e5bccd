package server

import (
	"context"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/pikoproxy/piko/internal/endpoint"
	"github.com/pikoproxy/piko/internal/limit"
	"github.com/pikoproxy/piko/internal/router"
	"github.com/pikoproxy/piko/internal/tunnel"
)

const (
	renewTimeout = 30 * time.Second // for a key set that has to be fetched first
	weightMax    = 1000             // that of the agent's settings: no session may claim all the traffic
)

// desk answers the messages of one native agent. They come one after another, and may come before the session is in the
// set: what they need is in the session from the start.
type desk struct {
	server  *Server
	session *session
	ctx     context.Context
}

// lasting is the context of what sessions ask for. It is not that of their handshake, which would keep the request and all
// below it for as long as the session lives, and it does not end with the drain, since sessions go on then.
func (s *Server) lasting() context.Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	return context.WithoutCancel(s.life)
}

var _ tunnel.Handler = (*desk)(nil)

// Listen makes the session an upstream of an endpoint, or tells the agent why not. The session lives on in any case.
func (d *desk) Listen(t *tunnel.Session, l tunnel.Listen) {
	x := d.session
	x.adopt(t)
	name, err := endpoint.Parse(l.Endpoint)
	if err != nil {
		d.refuse(l.Endpoint, tunnel.CodeInvalid, err.Error())
		return
	}
	if l.Protocol == "" {
		l.Protocol = tunnel.ProtocolHTTP
	}
	if l.Protocol != tunnel.ProtocolHTTP && l.Protocol != tunnel.ProtocolTCP {
		d.refuse(l.Endpoint, tunnel.CodeInvalid, "the protocol of a listener is http or tcp")
		return
	}
	if !x.identity.Load().Permits(name) {
		d.refuse(l.Endpoint, tunnel.CodeNotPermitted, "the token does not cover this endpoint")
		return
	}
	if d.server.draining() {
		d.refuse(l.Endpoint, tunnel.CodeDraining, "the node is stopping")
		return
	}
	key := router.KeyOf(x.tenant, name)
	if why, text := d.server.take(x, name, key, d.server.now().config.Upstream.MaxEndpointsPerSession); why != "" {
		d.server.limits.report.Count(limit.Upstream, why)
		d.refuse(l.Endpoint, tunnel.CodeOverloaded, text)
		return
	}
	d.server.router.Add(key, x.route, router.UpstreamOptions{
		Weight: min(l.Weight, weightMax), Protocol: l.Protocol,
		Anew: true, // an agent that listens again has changed something
	})
	// The answer uses the agent's own spelling, by which it knows the listener. If it does not arrive the session has
	// ended.
	d.confirm(t, l.Endpoint, key)
	x.announce(d.server.o.Log)
	if d.server.o.Log.IsLevelEnabled(logrus.DebugLevel) {
		d.server.o.Log.WithFields(x.fields()).WithField("endpoint", name).Debug("endpoint offered")
	}
}

// confirm tells the agent that an endpoint is routable: at once for a node that is alone, else when the others know. They are
// told by this node, and where one of them does not answer in time, by the directory.
func (d *desk) confirm(t *tunnel.Session, name string, key router.Key) {
	s := d.server
	others := s.others()
	if others == nil {
		_ = t.Listening(name)
		return
	}
	others.peers.WhenKnown(func(known bool) {
		s.sessions.spawn(func() {
			if !known {
				others.publish(d.ctx, key)
			}
			_ = t.Listening(name)
		})
	})
}

// Unlisten takes an endpoint back. Streams in use go on.
func (d *desk) Unlisten(t *tunnel.Session, given string) {
	d.session.adopt(t)
	name, err := endpoint.Parse(given)
	if err != nil {
		return // can't have been offered
	}
	d.withdraw(name)
}

// Token takes a new token in place of the one that the session was opened with. Verifying it may have to fetch a key,
// which the control goroutine must not wait for. Of those that come meanwhile the last one is verified next.
func (d *desk) Token(t *tunnel.Session, bearer string) {
	x := d.session
	x.adopt(t)
	if x.await(bearer) {
		return
	}
	d.server.sessions.spawn(func() {
		for bearer, ok := x.newest(); ok; bearer, ok = x.newest() {
			d.renew(bearer)
		}
	})
}

// renew checks the new token and withdraws the endpoints that it does not cover. A bad one changes nothing: the old one
// is good until it expires.
func (d *desk) renew(bearer string) {
	ctx, cancel := context.WithTimeout(d.ctx, renewTimeout)
	defer cancel()
	x, s := d.session, d.server
	id, err := s.now().agents.Renew(ctx, x.identity.Load(), bearer)
	if err != nil {
		s.limits.report.Warn("token not renewed", faultOf(err).Code, logrus.Fields{"session": x.tunnel.ID(), "err": err})
		return
	}
	x.identity.Store(id)
	for _, name := range x.names() {
		if !id.Permits(name) {
			d.withdraw(name)
			d.refuse(name, tunnel.CodeNotPermitted, "the new token does not cover this endpoint")
		}
	}
	s.o.Log.WithFields(x.fields()).Info("token renewed")
}

// Drain hears that the agent is leaving: it gets nothing new.
func (d *desk) Drain(t *tunnel.Session, _ tunnel.Drain) {
	d.session.adopt(t)
	d.server.router.RemoveSession(d.session.route)
}

func (d *desk) withdraw(name string) {
	if key, ok := d.session.withdraw(name); ok {
		d.server.tally.withdraw(key, d.session.tenant)
		d.server.router.RemoveKey(key, d.session.route)
	}
}

func (d *desk) refuse(name, code, reason string) {
	d.server.metrics.endpointRefused(code)
	d.server.limits.report.Warn("endpoint refused", code, logrus.Fields{"session": d.session.tunnel.ID(), "endpoint": name})
	_ = d.session.tunnel.Refuse(name, code, reason) // an agent that can't be told has gone
}

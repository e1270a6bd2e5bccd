package server

import (
	"crypto/tls"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/pikoproxy/piko/internal/auth"
	"github.com/pikoproxy/piko/internal/router"
	"github.com/pikoproxy/piko/internal/tlsconf"
	"github.com/pikoproxy/piko/internal/tunnel"
)

// session is one agent's connection with what the node knows about it.
type session struct {
	once     sync.Once // guards the setting of tunnel and route, see adopt
	tunnel   *tunnel.Session
	route    router.Session
	classic  string // the endpoint of a classic session
	since    time.Time
	identity atomic.Pointer[auth.Identity]
	tenant   string // of the identity; a renewal can't change it
	holder   holder // whose account it is on
	vouched  *tlsconf.Vouched
	expired  atomic.Bool
	useful   atomic.Bool // has offered something
	ended    bool        // guarded by the lock of the set

	mu        sync.Mutex // guards the following; held by the control goroutine, its renewal and status requests only
	endpoints map[string]router.Key
	over      bool   // nothing is offered any more
	bearer    string // the newest token that nobody has verified yet; "": none
	renewing  bool   // somebody verifies tokens until there is none
}

func newSession(id *auth.Identity, s *tls.ConnectionState) *session {
	x := &session{since: time.Now(), vouched: tlsconf.VouchedFor(s)}
	x.identity.Store(id)
	if id != nil {
		x.tenant = id.Tenant
		x.holder = holderOf(id)
	}
	return x
}

// await keeps a token until it is verified, and reports whether somebody is about to do that.
func (x *session) await(bearer string) (renewing bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	renewing, x.renewing = x.renewing, true
	x.bearer = bearer
	return renewing
}

// newest takes the token that is to be verified next. Without one the renewal is over.
func (x *session) newest() (bearer string, ok bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	bearer, x.bearer = x.bearer, ""
	x.renewing = bearer != ""
	return bearer, x.renewing
}

// adopt sets the connection. The handler of the handshake and the control goroutine both know it first, so both call
// this before anything else.
func (x *session) adopt(t *tunnel.Session) {
	x.once.Do(func() { x.tunnel, x.route = t, router.Tunnel(t) })
}

// announce logs the session once it offers something. Agents that look for a second node open sessions only to find
// that they have reached the first one again; those are not worth a line.
func (x *session) announce(log logrus.FieldLogger) {
	if !x.useful.Swap(true) {
		log.WithFields(x.fields()).WithField("kind", kindOf(x.tunnel).String()).Info("session opened")
	}
}

// offer notes that the session offers an endpoint, unless it offers as many as it may. limit below 1 means none. It also
// reports whether the endpoint is a new one. To a session that has ended nothing is new: messages that had come before its
// end may still be read.
func (x *session) offer(name string, key router.Key, limit int) (fresh, ok bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	_, again := x.endpoints[name]
	if x.over {
		return false, true
	}
	if !again && limit > 0 && len(x.endpoints) >= limit {
		return false, false
	}
	if x.endpoints == nil {
		x.endpoints = make(map[string]router.Key)
	}
	x.endpoints[name] = key
	return !again, true
}

// end forgets all endpoints, for good, and returns their keys.
func (x *session) end() []router.Key {
	x.mu.Lock()
	defer x.mu.Unlock()
	keys := slices.Collect(maps.Values(x.endpoints))
	x.endpoints, x.over = nil, true
	return keys
}

// withdraw forgets an endpoint and returns its key, if the session offered it.
func (x *session) withdraw(name string) (router.Key, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	key, ok := x.endpoints[name]
	delete(x.endpoints, name)
	return key, ok
}

// names returns the endpoints, sorted.
func (x *session) names() []string {
	x.mu.Lock()
	defer x.mu.Unlock()
	all := make([]string, 0, len(x.endpoints))
	for name := range x.endpoints {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}

// count is the number of endpoints.
func (x *session) count() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.endpoints)
}

// fields name a session in the log.
func (x *session) fields() logrus.Fields {
	f := logrus.Fields{"session": x.tunnel.ID(), "remote": x.tunnel.RemoteAddr().String()}
	if x.classic != "" {
		f["endpoint"] = x.classic
	}
	if x.tenant != "" {
		f["tenant"] = x.tenant
	}
	if hello := x.tunnel.Agent(); hello.AgentID != "" {
		f["agent"] = hello.AgentID
	}
	return f
}

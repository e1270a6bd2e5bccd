package server

import (
	"sync"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/limit"
	"github.com/pikoproxy/piko/internal/router"
)

// tally counts the sessions and endpoints of this node by whose they are. It holds nothing about who has none.
type tally struct {
	mu        sync.Mutex // guards the following
	tenants   map[string]int
	subjects  map[holder]int
	endpoints map[router.Key]int // sessions that offer one
	names     map[string]int     // endpoints of a tenant
}

func newTally() *tally {
	return &tally{
		tenants: map[string]int{}, subjects: map[holder]int{}, endpoints: map[router.Key]int{}, names: map[string]int{},
	}
}

func over(n, limit int) bool { return limit > 0 && n >= limit }

// enter counts a session, or says which limit it is over.
func (t *tally) enter(h holder, c *config.UpstreamLimits) limit.Reason {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case h.tenant != "" && over(t.tenants[h.tenant], c.MaxSessionsPerTenant):
		return limit.TenantSessions
	case h.subject != "" && over(t.subjects[h], c.MaxSessionsPerSubject):
		return limit.SubjectSessions
	}
	if h.tenant != "" {
		t.tenants[h.tenant]++
	}
	if h.subject != "" {
		t.subjects[h]++
	}
	return ""
}

// leave takes a session out again.
func (t *tally) leave(h holder) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if h.tenant != "" {
		less(t.tenants, h.tenant)
	}
	if h.subject != "" {
		less(t.subjects, h)
	}
}

// offer counts a session that offers an endpoint, or says which limit it is over.
func (t *tally) offer(key router.Key, tenant string, c *config.UpstreamLimits) limit.Reason {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.endpoints[key]
	switch {
	case over(n, c.MaxSessionsPerEndpoint):
		return limit.EndpointSessions
	case n == 0 && tenant != "" && over(t.names[tenant], c.MaxEndpointsPerTenant):
		return limit.TenantEndpoints
	}
	t.endpoints[key] = n + 1
	if n == 0 && tenant != "" {
		t.names[tenant]++
	}
	return ""
}

// withdraw takes one such session out again.
func (t *tally) withdraw(key router.Key, tenant string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if less(t.endpoints, key); t.endpoints[key] == 0 && tenant != "" {
		less(t.names, tenant)
	}
}

func less[K comparable](m map[K]int, k K) {
	if n := m[k]; n > 1 {
		m[k] = n - 1
	} else {
		delete(m, k)
	}
}

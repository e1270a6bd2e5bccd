package auth

import (
	"strings"
	"sync/atomic"
	"time"
)

// Identity is who a valid token speaks for. It does not change. A nil identity stands for a listener that asks for no
// tokens and permits everything.
type Identity struct {
	// Subject, TokenID and Issuer are the claims sub, jti and iss; each may be empty.
	Subject, TokenID, Issuer string
	// Tenant is whose keys the token was verified with; empty for the listener's own.
	Tenant string
	// Expires is when the token ends; zero for one that does not.
	Expires time.Time

	everything bool
	endpoints  []string       // canonical names; a trailing '*' makes a name a prefix
	key        fingerprint    // what verified the token
	spread     *atomic.Uint32 // over the shards of leases
}

// Permits reports whether the bearer may offer or reach an endpoint, given by its canonical name.
func (i *Identity) Permits(endpoint string) bool {
	if i == nil || i.everything {
		return true
	}
	for _, e := range i.endpoints {
		if prefix, wild := strings.CutSuffix(e, "*"); e == endpoint || wild && strings.HasPrefix(endpoint, prefix) {
			return true
		}
	}
	return false
}

// expired reports whether the token has ended for clocks that differ by no more than the leeway.
func (i *Identity) expired(now time.Time) bool {
	return !i.Expires.IsZero() && !now.Before(i.Expires.Add(leeway))
}

// lower is strings.ToLower for the ASCII of endpoint names; other letters can't be part of one.
func lower(s string) string { return strings.ToLower(s) }

package auth

import (
	"crypto/sha256"
	"sync"
)

// maxCached bounds the verdicts that are remembered: about 4 MiB.
const maxCached = 10_000

// cache remembers whose a token is, so that a client pays for its signature once and not with each request. It is keyed
// by the whole token's digest; two tokens can't share a verdict. The zero value is ready.
type cache struct {
	mu         sync.RWMutex
	generation uint64
	verdicts   map[[sha256.Size]byte]*Identity
}

func (c *cache) get(token string, generation uint64) *Identity {
	if len(token) > MaxToken {
		return nil
	}
	digest := sha256.Sum256([]byte(token))
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.generation != generation {
		return nil
	}
	return c.verdicts[digest]
}

func (c *cache) put(token string, generation uint64, id *Identity) {
	digest := sha256.Sum256([]byte(token))
	c.mu.Lock()
	defer c.mu.Unlock()
	// Starting over when full costs each live token one more check, and needs no order to be kept.
	if c.generation != generation || c.verdicts == nil || len(c.verdicts) >= maxCached {
		c.generation, c.verdicts = generation, map[[sha256.Size]byte]*Identity{}
	}
	c.verdicts[digest] = id
}

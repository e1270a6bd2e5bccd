package limit

import (
	"hash/maphash"
	"math"
	"net/netip"
	"sync"
	"time"
)

const (
	bucketSets = 8 << 10 // 1 MiB in all
	bucketWays = 8
)

// Rate bounds how often something may happen.
type Rate struct {
	PerSecond float64 // 0: as often as it likes
	Burst     int     // at once after a time of rest; below 1: as many as in one second, and at least one
}

func (r Rate) burst() float64 {
	if r.Burst >= 1 {
		return float64(r.Burst)
	}
	return max(math.Ceil(r.PerSecond), 1)
}

// Buckets counts events by key, each against a rate of its own. Its memory does not grow with the number of keys: it is
// a cache of fixed size, in which a key that finds no room takes the place of the one that is nearest to having all its
// tokens. The place of a key is a secret, so that nobody can aim at another's.
type Buckets struct {
	seed maphash.Seed
	now  func() time.Duration

	once sync.Once
	sets []bucketSet // made at first use: most rates are off
}

type bucketSet struct {
	mu   sync.Mutex
	ways [bucketWays]bucket
}

// bucket is a full one when it is zero. full is when it will have all its tokens again; that one number is all that is
// to know of a bucket (GCRA).
type bucket struct {
	key  uint64
	full time.Duration
}

// NewBuckets returns an empty table.
func NewBuckets() *Buckets {
	start := time.Now()
	return &Buckets{seed: maphash.MakeSeed(), now: func() time.Duration { return time.Since(start) }}
}

// AllowAddress takes a token of a client, if there is one. An invalid address has no bucket.
func (b *Buckets) AllowAddress(addr netip.Addr, r Rate) bool {
	if r.PerSecond <= 0 || !addr.IsValid() {
		return true
	}
	raw := account(addr).As16()
	return b.allow(maphash.Bytes(b.seed, raw[:]), r)
}

// Allow takes a token of a name, if there is one.
func (b *Buckets) Allow(name string, r Rate) bool {
	if r.PerSecond <= 0 {
		return true
	}
	return b.allow(maphash.String(b.seed, name), r)
}

func (b *Buckets) allow(key uint64, r Rate) bool {
	b.once.Do(func() { b.sets = make([]bucketSet, bucketSets) })
	one := time.Duration(float64(time.Second) / r.PerSecond)
	depth := time.Duration(r.burst() * float64(time.Second) / r.PerSecond)
	set := &b.sets[key%bucketSets]
	now := b.now()
	set.mu.Lock()
	defer set.mu.Unlock()
	way := &set.ways[0]
	for i := range set.ways {
		w := &set.ways[i]
		if w.key == key {
			way = w
			break
		}
		if w.full < way.full {
			way = w
		}
	}
	if way.key != key {
		*way = bucket{key: key}
	}
	full := max(way.full, now) + one
	if full-now > depth {
		return false
	}
	way.full = full
	return true
}

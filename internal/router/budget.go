package router

import (
	"math"
	"sync/atomic"
)

// budget is a token bucket that ties the number of retries to the number of requests, so that retries can't multiply
// the load of a system that is failing already. Counted in thousandths.
type budget struct {
	tokens atomic.Int64
	gain   atomic.Int64 // per request
}

const (
	budgetUnit  = 1000
	budgetStart = 10 * budgetUnit  // a quiet system may retry at once
	budgetMax   = 100 * budgetUnit // hours of success do not pay for a storm
)

func (b *budget) setRatio(ratio float64) {
	gain := int64(math.Round(min(max(ratio, 0), 10) * budgetUnit))
	if b.gain.Swap(gain) == 0 && gain > 0 {
		b.tokens.Store(budgetStart)
	}
}

// earn is called once per request.
func (b *budget) earn() {
	gain := b.gain.Load()
	if gain == 0 || b.tokens.Load() >= budgetMax {
		return
	}
	b.tokens.Add(gain)
}

// spend takes the price of one retry, if it is there.
func (b *budget) spend() bool {
	for {
		have := b.tokens.Load()
		if have < budgetUnit || b.gain.Load() == 0 {
			return false
		}
		if b.tokens.CompareAndSwap(have, have-budgetUnit) {
			return true
		}
	}
}

// Retry reports whether a request of which something may have been delivered can be tried once more: it takes one token
// from the retry budget. Asking a second upstream after a refusal is no retry and needs no token.
func (r *Router) Retry() bool {
	if r.budget.spend() {
		r.metrics.retries[retryAllowed].Inc()
		return true
	}
	r.metrics.retries[retryDenied].Inc()
	return false
}

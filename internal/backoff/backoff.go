// Package backoff spaces out attempts to do again what has failed.
//
// The delays are drawn with full jitter: uniformly between nothing and a ceiling that doubles with each attempt. Many
// processes that lost the same server at the same moment then come back spread over the whole interval instead of in
// waves. The package knows nothing of what is retried, and does not count attempts for anybody.
package backoff

import (
	"context"
	"math/rand/v2"
	"time"
)

// Defaults for the zero values of [Backoff].
const (
	DefaultMin = 100 * time.Millisecond
	DefaultMax = 15 * time.Second
)

// Backoff hands out the delays of one series of attempts. The zero value is ready for use. It is not safe for
// concurrent use: one series belongs to one goroutine.
type Backoff struct {
	// Min is the ceiling of the first delay; zero or less means [DefaultMin].
	Min time.Duration
	// Max is the ceiling that no delay exceeds; zero or less means [DefaultMax]. A Max below Min lowers Min.
	Max time.Duration

	ceiling time.Duration // of the delay handed out last; zero before the first and after Reset
}

// Next returns how long to wait before the next attempt: above zero and at most min(Max, Min*2^n), where n is the
// number of delays handed out since the start or the last [Backoff.Reset].
func (b *Backoff) Next() time.Duration {
	limit := b.Max
	if limit <= 0 {
		limit = DefaultMax
	}
	switch {
	case b.ceiling <= 0:
		b.ceiling = b.Min
		if b.ceiling <= 0 {
			b.ceiling = DefaultMin
		}
	case b.ceiling > limit/2: // doubling it would exceed the limit, or even overflow
		b.ceiling = limit
	default:
		b.ceiling *= 2
	}
	b.ceiling = min(b.ceiling, limit)
	return 1 + rand.N(b.ceiling) //nolint:gosec // nobody gains from guessing a delay
}

// Reset starts a new series. Call it when an attempt has succeeded for long enough to count as success: a server that
// accepts and fails at once is not a healthy one.
func (b *Backoff) Reset() { b.ceiling = 0 }

// Wait sleeps for [Backoff.Next]. It returns early, with ctx.Err(), when ctx ends.
func (b *Backoff) Wait(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	timer := time.NewTimer(b.Next())
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

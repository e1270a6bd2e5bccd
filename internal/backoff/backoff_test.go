package backoff

import (
	"context"
	"errors"
	"math"
	"testing"
	"testing/synctest"
	"time"
)

// draws returns the smallest and the largest of many first delays after skip earlier ones.
func draws(b Backoff, skip int) (lowest, highest time.Duration) {
	lowest = math.MaxInt64
	for range 2000 {
		b.Reset()
		for range skip {
			b.Next()
		}
		d := b.Next()
		lowest, highest = min(lowest, d), max(highest, d)
	}
	return lowest, highest
}

func TestDelaysFillTheIntervalBelowADoublingCeiling(t *testing.T) {
	tests := []struct {
		name    string
		backoff Backoff
		skip    int
		ceiling time.Duration
	}{
		{"first of the defaults", Backoff{}, 0, DefaultMin},
		{"fourth of the defaults", Backoff{}, 3, 8 * DefaultMin},
		{"defaults stop growing", Backoff{}, 100, DefaultMax},
		{"own minimum", Backoff{Min: time.Second}, 0, time.Second},
		{"own maximum", Backoff{Min: time.Second, Max: 3 * time.Second}, 2, 3 * time.Second},
		{"maximum below minimum", Backoff{Min: time.Minute, Max: time.Second}, 0, time.Second},
		{"negative means default", Backoff{Min: -1, Max: -1}, 0, DefaultMin},
		{"no overflow", Backoff{Min: math.MaxInt64 / 3, Max: math.MaxInt64 - 1}, 10, math.MaxInt64 - 1},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			lowest, highest := draws(test.backoff, test.skip)
			if lowest <= 0 || highest > test.ceiling {
				t.Fatalf("delays from %v to %v, want them above 0 and up to %v", lowest, highest, test.ceiling)
			}
			// 2,000 uniform draws miss a given tenth of the interval with a chance of 10^-91.
			if lowest > test.ceiling/10 || highest < test.ceiling/10*9 {
				t.Fatalf("delays from %v to %v do not fill the interval up to %v", lowest, highest, test.ceiling)
			}
		})
	}
}

func TestTheSmallestBackoffStillWaits(t *testing.T) {
	b := Backoff{Min: 1, Max: 1}
	for range 10 {
		if d := b.Next(); d != 1 {
			t.Fatalf("delay %d, want 1 ns", d)
		}
	}
}

func TestWaitSleepsAtMostTheCeiling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := Backoff{Min: time.Second, Max: time.Second}
		start := time.Now()
		if err := b.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d <= 0 || d > time.Second {
			t.Fatalf("waited %v, want up to 1s", d)
		}
	})
}

func TestWaitEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		b := Backoff{Min: 1 << 62, Max: 1 << 62}
		done := make(chan error, 1)
		go func() { done <- b.Wait(ctx) }()
		synctest.Wait()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Fatalf("error %v, want context.Canceled", err)
		}
		if err := b.Wait(ctx); !errors.Is(err, context.Canceled) {
			t.Fatalf("error %v on a context that has ended, want context.Canceled", err)
		}
	})
}

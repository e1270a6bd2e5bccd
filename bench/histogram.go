package main

import (
	"math/bits"
	"time"
)

// steps is the number of steps in each doubling: what is read from a histogram is at most 1/64 too low.
const steps = 64

// histogram counts durations in steps that grow with the duration. It is not for concurrent use.
type histogram struct {
	counts [steps * 36]uint32
	total  uint64
}

func (h *histogram) add(d time.Duration) {
	h.counts[min(slot(uint64(max(d, 0))), len(h.counts)-1)]++
	h.total++
}

func (h *histogram) merge(o *histogram) {
	for i, n := range o.counts {
		h.counts[i] += n
	}
	h.total += o.total
}

// quantile returns the duration that the share q of all counted did not exceed, or 0 if none was counted.
func (h *histogram) quantile(q float64) time.Duration {
	want := max(uint64(q*float64(h.total)+0.5), 1)
	var seen uint64
	for i, n := range h.counts {
		if seen += uint64(n); seen >= want {
			return floor(i)
		}
	}
	return 0
}

// slot is the place of a number of nanoseconds: exact below 128, and one of 64 steps between two powers of two above.
func slot(v uint64) int {
	shift := max(bits.Len64(v)-7, 0)
	return steps*shift + int(v>>shift) //nolint:gosec // G115: v>>shift is below 128
}

// floor is the least duration that slot puts at i.
func floor(i int) time.Duration {
	if i < 2*steps {
		return time.Duration(i)
	}
	return time.Duration(i%steps+steps) << (i/steps - 1)
}

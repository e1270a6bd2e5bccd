package h2

import "time"

const (
	floodMost = 1000 // frames
	floodSpan = 10 * time.Second
)

// flood counts frames that bring nothing forward.
type flood struct {
	spent int
	since time.Time
}

// progress is told of bytes that were sent or received: a few frames may come for each piece of them.
func (f *flood) progress(bytes int) { f.spent = max(f.spent-4-bytes>>9, -1<<16) }

// another counts a frame, and reports whether there are too many.
func (f *flood) another() bool {
	if f.spent++; f.spent < floodMost {
		return false
	}
	now := time.Now()
	if now.Sub(f.since) < floodSpan {
		return true
	}
	f.since, f.spent = now, 0
	return false
}

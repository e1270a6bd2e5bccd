package daemon

import "time"

const (
	settleFirst = 100 * time.Millisecond // from the first sign of a change to the first look
	settleAgain = 150 * time.Millisecond // between two looks that must find the same
	settleMost  = 3 * time.Second        // for files that never stop changing

	// patience is how long content that makes no sense must have been the same before it is called an error.
	patience = 1500 * time.Millisecond
)

// settler decides when files that are being changed have been changed.
//
//	quiet ── sign of a change ──► looking ── same content twice ──► reload, if it makes sense
//	  ▲                             │  ▲                               │ else, until patience ends
//	  └── content as before ────────┘  └───────────────────────────────┘
type settler struct {
	timer  *time.Timer // fires when it is time to look
	active bool
	start  time.Time   // of looking
	since  time.Time   // of the content in seen
	seen   fingerprint // by the last look

	patience, most time.Duration // as the constants of these names, unless a test has more time
}

func newSettler(patience, most time.Duration) *settler {
	s := &settler{timer: time.NewTimer(time.Hour), patience: patience, most: most}
	s.timer.Stop()
	return s
}

// begin notes a sign of a change.
func (s *settler) begin() {
	if s.active {
		return
	}
	s.active, s.start, s.seen = true, time.Now(), fingerprint{}
	s.timer.Reset(settleFirst)
}

// end goes back to waiting for signs.
func (s *settler) end() {
	s.active = false
	s.timer.Stop()
}

func (s *settler) stop() { s.timer.Stop() }

// quiet reports whether the last look found the same, or there has been enough of looking. If not, it arranges the next.
func (s *settler) quiet(now fingerprint) bool {
	if now.sum == s.seen.sum {
		return true
	}
	s.seen, s.since = now, time.Now()
	if s.since.Sub(s.start) >= s.most {
		return true
	}
	s.timer.Reset(settleAgain)
	return false
}

// patient reports whether content that makes no sense has had its time. If not, it arranges the next look.
func (s *settler) patient() bool {
	if time.Since(s.since) >= s.patience || time.Since(s.start) >= s.most {
		return true
	}
	s.timer.Reset(settleAgain)
	return false
}

package limit

import (
	"container/list"
	"runtime"
	"sync"
	"time"
)

// turnsPerCore is how many are worked on at once when the settings do not say. More would only take turns on the cores.
const turnsPerCore = 4

// Turns bounds how many are at work at once: TLS handshakes, whose price is the cores' and which anybody can ask for. Who
// comes when all turns are taken waits in line.
type Turns struct {
	mu    sync.Mutex // guards the following
	most  int
	taken int
	lines [2]list.List // of chan struct{}, which is closed when its turn has come: those that go on, those that begin
}

// NewTurns returns so many turns; 0: four for each core that the process uses.
func NewTurns(most int) *Turns {
	t := &Turns{}
	t.Apply(most)
	return t
}

// Apply sets how many turns there are. Those that are too many are not taken back.
func (t *Turns) Apply(most int) {
	if most <= 0 {
		most = turnsPerCore * runtime.GOMAXPROCS(0)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.most = most
	t.callLocked()
}

// Take waits for a turn, until a time or until stop is closed, and reports whether it has come. Who goes on comes before
// who begins.
func (t *Turns) Take(until time.Time, stop <-chan struct{}, goesOn bool) bool {
	t.mu.Lock()
	if t.taken < t.most { // so nobody waits
		t.taken++
		t.mu.Unlock()
		return true
	}
	line := &t.lines[1]
	if goesOn {
		line = &t.lines[0]
	}
	called := make(chan struct{})
	place := line.PushBack(called)
	t.mu.Unlock()
	patience := time.NewTimer(time.Until(until))
	defer patience.Stop()
	select {
	case <-called:
		return true
	case <-patience.C:
	case <-stop:
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	select {
	case <-called: // in the same moment
		return true
	default:
	}
	line.Remove(place)
	return false
}

// Give gives a turn back.
func (t *Turns) Give() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.taken--
	t.callLocked()
}

// Waiting is how many wait for a turn.
func (t *Turns) Waiting() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.lines[0].Len() + t.lines[1].Len()
}

// callLocked gives turns to those who have waited longest. The caller holds mu.
func (t *Turns) callLocked() {
	for i := range t.lines {
		for line := &t.lines[i]; t.taken < t.most && line.Len() > 0; t.taken++ {
			if called, ok := line.Remove(line.Front()).(chan struct{}); ok {
				close(called)
			}
		}
	}
}

package proxy

import (
	"context"
	"fmt"
	"sync"
)

// tracker counts what runs, and lets one goroutine wait until nothing does. Unlike a sync.WaitGroup it allows to add
// while somebody waits, as requests on open connections do.
type tracker struct {
	mu   sync.Mutex // guards the following
	idle *sync.Cond
	n    int
}

func (t *tracker) init() { t.idle = sync.NewCond(&t.mu) }

func (t *tracker) add() {
	t.mu.Lock()
	t.n++
	t.mu.Unlock()
}

func (t *tracker) done() {
	t.mu.Lock()
	t.n--
	if t.n == 0 {
		t.idle.Broadcast()
	}
	t.mu.Unlock()
}

// wait returns nil when nothing runs, or an error when ctx ends before.
func (t *tracker) wait(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.idle.Broadcast()
	})
	defer stop()
	t.mu.Lock()
	defer t.mu.Unlock()
	for t.n > 0 {
		if ctx.Err() != nil {
			return fmt.Errorf("%d requests and connections cut off: %w", t.n, context.Cause(ctx))
		}
		t.idle.Wait()
	}
	return nil
}

// waitAll waits for everything, however long it takes.
func (t *tracker) waitAll() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for t.n > 0 {
		t.idle.Wait()
	}
}

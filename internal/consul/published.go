package consul

import "context"

// waiter is told when a key has been acknowledged.
type waiter struct {
	done  chan struct{} // closed by acknowledge
	count int
}

// published waits until Consul has a key, or ctx ends.
func (w *writer) published(ctx context.Context, key string) error {
	w.mu.Lock()
	if w.live && w.acked[key] > 0 {
		w.mu.Unlock()
		return nil
	}
	waiting, ok := w.waiters[key]
	if !ok {
		waiting = &waiter{done: make(chan struct{})}
		w.waiters[key] = waiting
	}
	waiting.count++
	w.mu.Unlock()
	select {
	case <-waiting.done:
		return nil
	case <-ctx.Done():
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if waiting.count--; waiting.count == 0 && w.waiters[key] == waiting {
		delete(w.waiters, key)
	}
	return ctx.Err()
}

// tellLocked wakes those who wait for a key.
func (w *writer) tellLocked(key string) {
	if waiting, ok := w.waiters[key]; ok {
		close(waiting.done)
		delete(w.waiters, key)
	}
}

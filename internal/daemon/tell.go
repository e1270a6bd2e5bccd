package daemon

import (
	"context"
	"time"
)

// tellEvery is how often a status is told. [Process.Status] passes on what has changed.
const tellEvery = 2 * time.Second

// Tell passes a status on now, and then again and again until ctx ends. Without anybody to tell it returns at once.
func Tell(ctx context.Context, to func(string), status func() string) {
	if to == nil {
		return
	}
	tick := time.NewTicker(tellEvery)
	defer tick.Stop()
	for {
		to(status())
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

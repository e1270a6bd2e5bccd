package daemon

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/pikoproxy/piko/internal/config"
)

func TestAStoppingProcessTakesBackWhatSettingsDoNotAllow(t *testing.T) {
	for name, lastly := range map[string]bool{"one that can": true, "one that can't": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "pikotestd.toml")
			write(t, file, "")
			l := &life{file: file, stderr: &buffer{}, process: make(chan *Process, 1)}
			log, err := newLog(l.stderr, config.Log{Level: "debug", Format: "text"}, false)
			do(t, err)
			p := l.program()
			load := func(file string) (Settings, error) { return p.Load(file, nil) }
			first, err := load(file)
			do(t, err)
			l.p = NewProcess("pikotestd", "1", log)
			l.p.reload = newReloads(l.p, first, origin{file: file, load: load})
			taken, last := make(chan Settings, 10), make(chan Settings, 10)
			if lastly {
				l.p.ReloadsLastly(func(next Settings) (Change, error) {
					return Change{Commit: func() { last <- next }}, nil
				})
			}
			l.p.Reloads(func(next Settings) (Change, error) { return Change{Commit: func() { taken <- next }}, nil })
			ctx, stop := context.WithCancel(t.Context())
			process, end := context.WithCancel(t.Context())
			var running sync.WaitGroup
			running.Go(func() { l.p.reload.run(ctx, process) })
			defer running.Wait()
			defer end()
			write(t, file, "drain_timeout = \"2m\"\n")
			do(t, l.p.Reload(t.Context()))
			stop()
			if !lastly {
				running.Wait()
				if err := l.p.Reload(t.Context()); !errors.Is(err, errNoReload) {
					t.Errorf("a reload while it stops: %v", err)
				}
				return
			}
			write(t, file, "drain_timeout = \"3m\"\n[cluster]\nnode_id = \"another\"\n") // which would want a restart
			select {
			case <-last: // by itself
			case <-time.After(30 * time.Second):
				t.Fatal("the change was not seen")
			}
			if err := l.p.Reload(t.Context()); !errors.Is(err, errStopping) {
				t.Errorf("a reload while it stops: %v", err)
			}
			if len(taken) != 1 {
				t.Errorf("it has taken all settings %d times, want once", len(taken))
			}
			write(t, file, "no settings")
			if err := l.p.Reload(t.Context()); err == nil || errors.Is(err, errStopping) {
				t.Errorf("broken settings: %v", err)
			}
			end()
			running.Wait()
			if err := l.p.Reload(t.Context()); !errors.Is(err, errNoReload) {
				t.Errorf("a reload when it has stopped: %v", err)
			}
		})
	}
}

package daemon

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/pikoproxy/piko/internal/config"
)

// Loaded are settings of one of our daemons and what runs with them. All daemons show themselves to the shell by it.
type Loaded[C config.Settings] struct {
	Values C
	// Assemble builds everything that the settings describe. It touches no network and starts nothing: run does, as
	// Run of [Settings] says. Without a run what it built is dropped.
	Assemble func(c C, p *Process) (run func(ctx context.Context) error, err error)
}

// Log implements [Settings].
func (l Loaded[C]) Log() config.Log { return l.Values.Process().Log }

// Dump implements [Settings].
func (l Loaded[C]) Dump() string { return l.Values.Dump() }

// Digest implements [Settings].
func (l Loaded[C]) Digest() string { return l.Values.Digest() }

// Source implements [Settings].
func (l Loaded[C]) Source() config.Source { return l.Values.Process().Source }

// DrainLimit implements [Settings].
func (l Loaded[C]) DrainLimit() time.Duration { return l.Values.Process().DrainLimit }

// Changes implements [Settings].
func (l Loaded[C]) Changes(next Settings) []config.Change {
	if n, ok := next.(Loaded[C]); ok {
		return config.Diff(l.Values, n.Values)
	}
	return nil
}

// Check implements [Settings].
func (l Loaded[C]) Check() error {
	quiet := logrus.New() // what there is to say is in the error
	quiet.SetOutput(io.Discard)
	_, err := l.Assemble(l.Values, NewProcess("", "", quiet))
	return l.Source().Locate(err)
}

// Run implements [Settings].
func (l Loaded[C]) Run(ctx context.Context, p *Process) error {
	run, err := l.Assemble(l.Values, p)
	if err != nil {
		return &SettingsError{Err: l.Source().Locate(err)}
	}
	return run(ctx)
}

// Takes says that an assembly takes new settings from now on, as [Process.Reloads] does, in the type that they have.
func Takes[C config.Settings](p *Process, prepare func(next C) (Change, error)) {
	p.Reloads(typed(prepare))
}

// TakesLastly says how it takes them while it stops, as [Process.ReloadsLastly] does.
func TakesLastly[C config.Settings](p *Process, prepare func(next C) (Change, error)) {
	p.ReloadsLastly(typed(prepare))
}

func typed[C config.Settings](prepare func(next C) (Change, error)) Prepare {
	return func(next Settings) (Change, error) {
		l, ok := next.(Loaded[C])
		if !ok {
			return Change{}, fmt.Errorf("these are settings of another program: %T", next)
		}
		return prepare(l.Values)
	}
}

package server

import (
	"context"
	"io"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/daemon"
)

// Program describes pikod to the shell.
func Program() daemon.Program {
	return daemon.Program{
		Name:    "pikod",
		Summary: "Lets clients reach services behind agents that connect to it",
		Load: func(file string, args []string) (daemon.Settings, error) {
			if len(args) > 0 {
				return nil, daemon.Usagef("unexpected argument %q", args[0])
			}
			c, err := config.LoadPikod(file)
			return &settings{c}, err // with an error, only to tell which files to watch
		},
		Commands: []daemon.Command{statusCommand(), explainCommand(), healthCommand()},
	}
}

// settings are pikod's settings as the shell sees them.
type settings struct{ c config.Pikod }

// Log says how to log.
func (s *settings) Log() config.Log { return s.c.Log }

// Dump returns the settings in effect.
func (s *settings) Dump() string { return s.c.Dump() }

// Digest tells settings apart.
func (s *settings) Digest() string { return s.c.Digest() }

// Source tells where the settings came from.
func (s *settings) Source() config.Source { return s.c.Source }

// Changes returns what differs in other settings of pikod.
func (s *settings) Changes(next daemon.Settings) []config.Change {
	if n, ok := next.(*settings); ok {
		return config.Diff(s.c, n.c)
	}
	return nil
}

// DrainLimit is how long a drain may take.
func (s *settings) DrainLimit() time.Duration {
	return time.Duration(s.c.DrainNotice) + time.Duration(s.c.DrainTimeout)
}

// Check builds everything that the settings describe, and throws it away.
func (s *settings) Check() error {
	quiet := logrus.New()
	quiet.SetOutput(io.Discard)
	_, err := New(s.c, Options{Log: quiet})
	return s.c.Locate(err)
}

// Run is one life of a node.
func (s *settings) Run(ctx context.Context, p *daemon.Process) error {
	offer, _ := p.Predecessor()
	srv, err := New(s.c, Options{
		Log: p.Log, ErrorLog: p.ErrorLog(), Version: p.Version, Listen: p.Listen, Status: p.Status,
		Collector: p.Collector(), Reload: p.Reload, Reloaded: func() any { return p.LastReload() },
		Predecessor: offer, Succeed: p.Succeed,
	})
	if err != nil {
		return &daemon.SettingsError{Err: s.c.Locate(err)}
	}
	p.HandsOver(heir{srv})
	p.Alive(srv.alive)
	// Not only when it is ready: what keeps it from that may be a setting, such as the token for Consul.
	srv.o.Begun = func() { p.Reloads(reloader{srv}) }
	srv.o.Ready = p.Ready
	return srv.Run(ctx)
}

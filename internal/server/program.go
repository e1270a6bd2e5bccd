package server

import (
	"context"

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
			// With an error they only tell which files to watch.
			return daemon.Loaded[config.Pikod]{Values: c, Assemble: assemble}, err
		},
		Commands: []daemon.Command{statusCommand(), explainCommand(), healthCommand()},
	}
}

// assemble builds a node as the shell runs it.
func assemble(c config.Pikod, p *daemon.Process) (run func(context.Context) error, err error) {
	p.BatchThreads()
	offer, _ := p.Predecessor()
	srv, err := New(c, Options{
		Log: p.Log, ErrorLog: p.ErrorLog(), Version: p.Version, Listen: p.Listen, Status: p.Status,
		Collector: p.Collector(), Reload: p.Reload, Reloaded: func() any { return p.LastReload() },
		Predecessor: offer, Succeed: p.Succeed,
	})
	if err != nil {
		return nil, err
	}
	p.HandsOver(heir{srv})
	p.Alive(srv.alive)
	// Not only when it is ready: what keeps it from that may be a setting, such as the token for Consul.
	srv.o.Begun = func() {
		daemon.TakesLastly(p, srv.PrepareLastly)
		daemon.Takes(p, srv.Prepare)
	}
	srv.o.Ready = p.Ready
	return srv.Run, nil
}

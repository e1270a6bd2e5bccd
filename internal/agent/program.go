package agent

import (
	"context"
	"flag"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/daemon"
)

// Program describes piko-agent to the shell.
func Program() daemon.Program {
	var url, tokenFile string
	return daemon.Program{
		Name:    "piko-agent",
		Summary: "Offers local services as endpoints of a Piko cluster",
		Synopsis: []string{
			"http ENDPOINT ADDR [--url URL] [--token-file FILE]",
			"tcp ENDPOINT ADDR [--url URL] [--token-file FILE]",
		},
		Commands: []daemon.Command{diagnoseCommand()},
		Flags: func(fs *flag.FlagSet) {
			fs.StringVar(&url, "url", "", "`URL` of the upstream listener of a node, or of a balancer")
			fs.StringVar(&tokenFile, "token-file", "", "`FILE` with the token to present")
		},
		Load: func(file string, args []string) (daemon.Settings, error) {
			over, err := overrides(args)
			if err != nil {
				return nil, err
			}
			over = append(over, config.Connect(url, tokenFile)...)
			c, err := config.LoadAgent(file, over...)
			// With an error they only tell which files to watch.
			return daemon.Loaded[config.Agent]{Values: c, Assemble: assemble}, err
		},
	}
}

// overrides reads the short form: protocol, endpoint and service.
func overrides(args []string) ([]config.Override, error) {
	if len(args) == 0 {
		return nil, nil
	}
	if args[0] != "http" && args[0] != "tcp" {
		return nil, daemon.Usagef("%q: want http or tcp, then ENDPOINT and ADDR", args[0])
	}
	if len(args) != 3 {
		return nil, daemon.Usagef("%s: want ENDPOINT and ADDR, have %q", args[0], args[1:])
	}
	return []config.Override{config.Offer(args[0], args[1], args[2])}, nil
}

// assemble builds an agent as the shell runs it.
func assemble(c config.Agent, p *daemon.Process) (run func(context.Context) error, err error) {
	a, err := New(c, Options{
		Log: p.Log, ErrorLog: p.ErrorLog(), Version: p.Version, Status: p.Status, Listen: p.Listen,
		Collector: p.Collector(), Reload: p.Reload, Reloaded: func() any { return p.LastReload() },
	})
	if err != nil {
		return nil, err
	}
	_, a.options.Succeeds = p.Predecessor()
	a.options.Ready = func() {
		p.Ready()
		daemon.Takes(p, a.Prepare)
	}
	p.Alive(func(context.Context) error {
		a.status()
		return nil
	})
	return a.Run, nil
}

package forward

import (
	"context"
	"flag"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/daemon"
)

// Program describes piko-forward to the shell.
func Program() daemon.Program {
	var url, tokenFile string
	return daemon.Program{
		Name:     "piko-forward",
		Summary:  "Brings connections to local addresses to endpoints of a Piko cluster",
		Synopsis: []string{"ADDR ENDPOINT [--url URL] [--token-file FILE]"},
		Flags: func(fs *flag.FlagSet) {
			fs.StringVar(&url, "url", "", "`URL` of the proxy listener of a node, or of a balancer")
			fs.StringVar(&tokenFile, "token-file", "", "`FILE` with the token to present")
		},
		Load: func(file string, args []string) (daemon.Settings, error) {
			var over []config.Override
			switch len(args) {
			case 0:
			case 2:
				over = append(over, config.Reach(args[0], args[1]))
			default:
				return nil, daemon.Usagef("want ADDR and ENDPOINT, have %q", args)
			}
			over = append(over, config.Connect(url, tokenFile)...)
			c, err := config.LoadForward(file, over...)
			// With an error they only tell which files to watch.
			return daemon.Loaded[config.Forward]{Values: c, Assemble: assemble}, err
		},
	}
}

// assemble builds a forwarder as the shell runs it.
func assemble(c config.Forward, p *daemon.Process) (run func(context.Context) error, err error) {
	f, err := New(c, Options{
		Log: p.Log, ErrorLog: p.ErrorLog(), Version: p.Version, Status: p.Status, Listen: p.Listen,
		Collector: p.Collector(), Reload: p.Reload, Reloaded: func() any { return p.LastReload() },
	})
	if err != nil {
		return nil, err
	}
	f.options.Ready = func() {
		p.Ready()
		daemon.Takes(p, f.Prepare)
	}
	p.Alive(func(context.Context) error {
		f.status()
		return nil
	})
	return f.Run, nil
}

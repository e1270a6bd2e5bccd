package agent

import (
	"context"
	"flag"
	"io"
	"time"

	"github.com/sirupsen/logrus"

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
			fs.StringVar(&url, "url", "", "`URL` of the upstream port of a node or balancer")
			fs.StringVar(&tokenFile, "token-file", "", "`FILE` with the token to present")
		},
		Load: func(file string, args []string) (daemon.Settings, error) {
			over, err := overrides(args)
			if err != nil {
				return nil, err
			}
			if url != "" {
				over = append(over, config.Override{From: "--url", Key: "connect.url", Value: url})
			}
			if tokenFile != "" {
				over = append(over, config.Override{From: "--token-file", Key: "connect.token_file", Value: tokenFile})
			}
			c, err := config.LoadAgent(file, over...)
			return &settings{c}, err // with an error, only to tell which files to watch
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
		return nil, daemon.Usagef("%s: want ENDPOINT and ADDR, have %d arguments", args[0], len(args)-1)
	}
	return []config.Override{config.Offer(args[0], args[1], args[2])}, nil
}

// settings are the agent's settings as the shell sees them.
type settings struct{ c config.Agent }

func (s *settings) Log() config.Log { return s.c.Log }
func (s *settings) Dump() string    { return s.c.Dump() }
func (s *settings) Digest() string  { return s.c.Digest() }

// Source tells where the settings came from.
func (s *settings) Source() config.Source { return s.c.Source }

// Changes returns what differs in other settings of the same program.
func (s *settings) Changes(next daemon.Settings) []config.Change {
	if n, ok := next.(*settings); ok {
		return config.Diff(s.c, n.c)
	}
	return nil
}

// DrainLimit is how long a drain may take.
func (s *settings) DrainLimit() time.Duration {
	return time.Duration(s.c.DrainTimeout)
}

// Check builds everything that the settings describe, and throws it away.
func (s *settings) Check() error {
	quiet := logrus.New() // what there is to say is in the error
	quiet.SetOutput(io.Discard)
	_, err := New(s.c, Options{Log: quiet})
	return s.c.Locate(err)
}

// Run implements daemon.Settings.
func (s *settings) Run(ctx context.Context, p *daemon.Process) error {
	a, err := New(s.c, Options{
		Log: p.Log, ErrorLog: p.ErrorLog(), Version: p.Version, Status: p.Status, Listen: p.Listen,
		Collector: p.Collector(), Reload: p.Reload, Reloaded: func() any { return p.LastReload() },
	})
	if err != nil {
		return &daemon.SettingsError{Err: s.c.Locate(err)}
	}
	_, a.options.Succeeds = p.Predecessor()
	p.Alive(func(context.Context) error {
		a.status()
		return nil
	})
	a.options.Ready = func() {
		p.Ready()
		p.Reloads(reloader{a})
	}
	return a.Run(ctx)
}

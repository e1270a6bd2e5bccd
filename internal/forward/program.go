package forward

import (
	"context"
	"flag"
	"io"
	"time"

	"github.com/sirupsen/logrus"

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
			fs.StringVar(&url, "url", "", "`URL` of the proxy port of a node or balancer")
			fs.StringVar(&tokenFile, "token-file", "", "`FILE` with the token to present")
		},
		Load: func(file string, args []string) (daemon.Settings, error) {
			var over []config.Override
			switch len(args) {
			case 0:
			case 2:
				over = append(over, config.Reach(args[0], args[1]))
			default:
				return nil, daemon.Usagef("want ADDR and ENDPOINT, have %d arguments", len(args))
			}
			if url != "" {
				over = append(over, config.Override{From: "--url", Key: "connect.url", Value: url})
			}
			if tokenFile != "" {
				over = append(over, config.Override{From: "--token-file", Key: "connect.token_file", Value: tokenFile})
			}
			c, err := config.LoadForward(file, over...)
			return &settings{c}, err // with an error, only to tell which files to watch
		},
	}
}

// settings are the forwarder's settings as the shell sees them.
type settings struct{ c config.Forward }

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
	f, err := New(s.c, Options{
		Log: p.Log, ErrorLog: p.ErrorLog(), Version: p.Version, Status: p.Status, Listen: p.Listen,
		Collector: p.Collector(), Reload: p.Reload, Reloaded: func() any { return p.LastReload() },
	})
	if err != nil {
		return &daemon.SettingsError{Err: s.c.Locate(err)}
	}
	p.Alive(func(context.Context) error {
		f.status()
		return nil
	})
	f.options.Ready = func() {
		p.Ready()
		p.Reloads(reloader{f})
	}
	return f.Run(ctx)
}

package agent

import (
	"context"
	"flag"
	"io"

	"github.com/pikoproxy/piko/internal/config"
	"github.com/pikoproxy/piko/internal/daemon"
	"github.com/pikoproxy/piko/internal/diagnose"
)

// diagnoseCommand tries the way from here to the cluster and says what is wrong with it.
func diagnoseCommand() daemon.Command {
	var file string
	var asJSON bool
	return daemon.Command{
		Name:    "diagnose",
		Usage:   "[--config FILE] [--json]",
		Summary: "try names, proxy, TLS, token, clock and handshake, and say what to do about what fails",
		Flags: func(fs *flag.FlagSet) {
			fs.StringVar(&file, "config", "", "read the settings from `FILE`")
			fs.BoolVar(&asJSON, "json", false, "print JSON")
		},
		Run: func(ctx context.Context, env daemon.Env, args []string) int {
			if len(args) > 0 {
				return env.Usagef("diagnose: want no arguments, have %q", args[0])
			}
			c, err := config.LoadAgent(env.ConfigFile(file))
			if err == nil {
				err = daemon.Loaded[config.Agent]{Values: c, Assemble: assemble}.Check()
			}
			if err != nil {
				return env.Refuse(err)
			}
			report := diagnose.Run(ctx, c, diagnose.Options{})
			write := report.Text
			if asJSON {
				write = report.JSON
			}
			return finish(env, report.OK, write)
		},
	}
}

func finish(env daemon.Env, ok bool, write func(io.Writer) error) int {
	if err := write(env.Stdout); err != nil {
		return env.Failf("diagnose: %v", err)
	}
	if !ok {
		return daemon.ExitFailure
	}
	return daemon.ExitOK
}

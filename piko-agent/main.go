// Command piko-agent offers local services as endpoints of a Piko cluster.
package main

import (
	"os"

	"github.com/pikoproxy/piko/internal/agent"
	"github.com/pikoproxy/piko/internal/daemon"
)

func main() { os.Exit(daemon.Main(agent.Program(), os.Args[1:])) }

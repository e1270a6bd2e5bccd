// Command piko-forward brings connections to local addresses to endpoints of a Piko cluster.
package main

import (
	"os"

	"github.com/pikoproxy/piko/internal/daemon"
	"github.com/pikoproxy/piko/internal/forward"
)

func main() { os.Exit(daemon.Main(forward.Program(), os.Args[1:])) }

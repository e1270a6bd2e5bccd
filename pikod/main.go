// Command pikod is a node of Piko: it lets clients reach services behind agents that connect to it.
package main

import (
	"os"

	"github.com/pikoproxy/piko/internal/daemon"
	"github.com/pikoproxy/piko/internal/server"
)

func main() { os.Exit(daemon.Main(server.Program(), os.Args[1:])) }

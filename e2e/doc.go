// Package e2e proves Piko from the outside: real binaries, real sockets, real third parties.
//
// Every test starts pikod, piko-agent and piko-forward as processes on 127.0.0.1, sends traffic of programs that
// know nothing of each other (curl, grpc-go, redis, a WebSocket library that Piko does not use, a classic Piko
// agent written from the protocol's description) and looks at what arrives.
//
// The binaries are taken from the folder $PIKO_BIN; without it they are built from the source beside this module.
// curl with HTTP/2 and redis must be installed. Every address is a port of 127.0.0.1; nothing leaves the machine.
//
// With E2E_QUIET set, bounds of time are those that are promised; a machine that does something else meanwhile can't hold
// them, so without it a minute is as good. E2E_LOGS is a folder in which the logs of all processes are left.
//
// The module is apart from the one it tests, so that its dependencies never become those of the project.
package e2e

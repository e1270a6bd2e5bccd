// Package ports keeps ports for tests that close a listener and then count on its port: that nobody answers there, or that
// it can be listened on again. Without that the system may give it to the next who asks for any port, in whatever process.
//
// Its functions may be called from any goroutine.
package ports

// Port is a port of 127.0.0.1 that nobody gets who asks for any. Whoever asks for it by number may listen on it.
type Port struct {
	// Addr is the address, as host:port.
	Addr string

	release func()
}

// Release gives the port back to the system.
func (p *Port) Release() { p.release() }

package server

import (
	"os"
	"runtime/debug"
)

// How much may be allocated until garbage is collected again, in percent of what is in use.
const (
	usualGarbage = 100 // as the runtime begins with
	crowdGarbage = 50
)

// collectSooner collects garbage twice as often while a crowd of sessions comes. What a TLS handshake leaves behind lies
// between what its session keeps, so that it can be used again, but not be given back: sessions with TLS take a
// fifteenth less. Whoever has set GOGC has decided already.
func collectSooner(crowd bool) {
	if os.Getenv("GOGC") != "" {
		return
	}
	percent := usualGarbage
	if crowd {
		percent = crowdGarbage
	}
	debug.SetGCPercent(percent)
}

package tlsconf

import (
	"crypto/x509"
	"fmt"
)

// What a client may send of certificates. Real chains have two or three of some KiB in all; each one more costs us the
// verification of a signature.
const (
	maxChain      = 8
	maxChainBytes = 64 << 10
)

// modest refuses a chain of certificates that is longer than any that is in use.
func modest(chain [][]byte, _ [][]*x509.Certificate) error {
	size := 0
	for _, c := range chain {
		size += len(c)
	}
	if len(chain) > maxChain || size > maxChainBytes {
		return fmt.Errorf("the client sent %d certificates of %d bytes, may send %d of %d", len(chain), size, maxChain, maxChainBytes)
	}
	return nil
}

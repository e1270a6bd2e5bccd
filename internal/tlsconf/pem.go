package tlsconf

import (
	"encoding/pem"
	"fmt"

	"github.com/pikoproxy/piko/internal/config"
)

// read returns the content of a file that a setting names.
func (b *builder) read(key string, name config.File) ([]byte, bool) {
	data, err := name.Read()
	if err != nil {
		b.bad(key, "a readable file", fmt.Sprintf("%q: %v", name, err))
		return nil, false
	}
	return data, true
}

// certificates returns the content of all certificates in a PEM text, in their order.
func certificates(text []byte) [][]byte {
	var out [][]byte
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			return out
		}
		if block.Type == "CERTIFICATE" {
			out = append(out, block.Bytes)
		}
	}
}

package websocket

import (
	"encoding/binary"
	"errors"
	"testing"
)

// A length that overflows ends the connection before anything is made of it, or waited for.
func TestCVE_2020_27813_LengthOfAFrameThatOverflows(t *testing.T) {
	address, accepted := serve(t, AcceptOptions{})
	for _, length := range []uint64{1 << 62, 1<<63 - 1, 1 << 63, 1<<64 - 1} {
		client, server := rawClient(t, address, accepted)
		frame := append(binary.BigEndian.AppendUint64([]byte{0x82, 0x80 | 127}, length), 1, 2, 3, 4) // masked, binary
		if _, err := client.Write(frame); err != nil {
			t.Fatal(err)
		}
		data, err := readAll(server, 4096)
		if _, broken := errors.AsType[*ProtocolError](err); !broken || len(data) > 0 {
			t.Errorf("length %d: read %d bytes and %v, want the peer called to order", length, len(data), err)
		}
	}
}

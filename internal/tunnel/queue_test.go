package tunnel

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/pikoproxy/piko/internal/socket"
)

// What waits for a slow reader goes to it in blocks, and takes no more memory than a few times its size, however it has come.
func TestQueue(t *testing.T) {
	for _, size := range []int{1, 100, smallChunk + 1, maxFrame, socket.Block} {
		var q queue
		data := make([]byte, 300_000)
		_, _ = rand.NewChaCha8([32]byte{1}).Read(data)
		for rest := data; len(rest) > 0; {
			n := min(size, len(rest))
			q.add(rest[:n])
			rest = rest[n:]
			held := 0
			for c := q.head; c != nil; c = c.next {
				held += len(c.b)
			}
			if have := len(data) - len(rest); q.size != have || held > max(8*have, smallChunk) {
				t.Fatalf("in pieces of %d: %d bytes in the queue count as %d and take %d", size, have, q.size, held)
			}
		}
		var got bytes.Buffer
		chunks := 0
		for ; q.head != nil; chunks++ {
			c := q.pop()
			got.Write(c.b[c.r:c.w])
			c.recycle()
		}
		if !bytes.Equal(got.Bytes(), data) || q.size != 0 {
			t.Errorf("in pieces of %d: other bytes came out, or %d are left", size, q.size)
		}
		if most := len(data)/socket.Block + 2; chunks > most {
			t.Errorf("in pieces of %d: %d chunks for %d bytes, want at most %d", size, chunks, len(data), most)
		}
	}
}

package proxy

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
)

// What a connection keeps of names from one request to the next is no more than the names.
func TestKeptNamesKeepNoHeads(t *testing.T) {
	c := &plainConn{}
	before := heap()
	for i := range 3 * maxKeptNames { // one more name in each head
		name := fmt.Sprintf("X-Name-%d", i)
		head := name + strings.Repeat(" ", 1<<20)
		for j := range i {
			c.canonical(j, fmt.Sprintf("X-Name-%d", j))
		}
		if have := c.canonical(i, head[:len(name)]); have != name {
			t.Fatal(have)
		}
	}
	c.canonical(0, strings.Repeat("x", 1<<20))
	if grown := heap() - before; grown > 1<<20 {
		t.Errorf("%d bytes are kept", grown)
	}
	runtime.KeepAlive(c)
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

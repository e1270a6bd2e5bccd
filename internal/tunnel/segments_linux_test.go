package tunnel

import (
	"io"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pikoproxy/piko/internal/socket"
)

// A block and all that goes with it are sent in one piece: a tiny one behind it would cost almost as much again.
func TestABlockFillsOneSegment(t *testing.T) {
	noLeaks(t)
	s, a := pair(t)
	near, far := connect(t, s, a)
	for name, way := range map[string]struct{ from, to *Stream }{"to the agent": {near, far}, "to the node": {far, near}} {
		t.Run(name, func(t *testing.T) {
			// TCP sends no more at once than half of what the receiver can hold.
			if err := way.to.l.ws.TCPConn().SetReadBuffer(1 << 20); err != nil {
				t.Fatal(err)
			}
			block := make([]byte, socket.Block)
			pass := func(blocks int) (segments int) {
				before := dataSegments(t, way.from)
				for range blocks {
					if _, err := way.from.Write(block); err != nil {
						t.Fatal(err)
					}
					if _, err := io.ReadFull(way.to, block); err != nil {
						t.Fatal(err)
					}
				}
				return dataSegments(t, way.from) - before
			}
			pass(32) // until the windows are wide
			const blocks = 64
			if have := pass(blocks); have > blocks*5/4 {
				t.Errorf("%d blocks took %d segments", blocks, have)
			}
		})
	}
}

// dataSegments is how many segments with data the connection below a stream has sent.
func dataSegments(t *testing.T, s *Stream) int {
	t.Helper()
	raw, err := s.l.ws.TCPConn().SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var info *unix.TCPInfo
	if e := raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }); e != nil {
		t.Fatal(e)
	}
	if err != nil {
		t.Fatal(err)
	}
	return int(info.Data_segs_out)
}

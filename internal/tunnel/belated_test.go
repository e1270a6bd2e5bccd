package tunnel

import "testing"

// However many streams are reset, what the peer sends before it hears of that is no fault of it.
func TestManyResetsLeaveRoomForLateFrames(t *testing.T) {
	const many = 5000
	l := offline(role{client: true, native: true, accepts: true})
	var own, peers []*Stream
	for i := range uint32(many) {
		own = append(own, opened(t, l))
		<-l.syn // as if it were acknowledged
		own[i].placed = false
		drained(t, l)
		if abuse := l.give(frames(makeFrame(kindWindow, flagSYN, 2*i+2, 0))); abuse != nil {
			t.Fatal(abuse)
		}
		peers = append(peers, l.streams[2*i+2])
	}
	for i := range own {
		own[i].Reset()
		peers[i].Reset()
		drained(t, l)
	}
	for i := range own {
		late := frames(makeFrame(kindWindow, flagACK, own[i].id, 100), makeFrame(kindData, 0, own[i].id, 700),
			makeFrame(kindData, 0, peers[i].id, 300), makeFrame(kindData, flagFIN, peers[i].id, 10))
		if abuse := l.give(late); abuse != nil {
			t.Fatalf("after %d streams: %v", i, abuse)
		}
	}
}

// A peer that goes on after it must have heard of a reset is not indulged for ever.
func TestLateFramesAreBounded(t *testing.T) {
	for name, h := range map[string][frameSize]byte{
		"data":  makeFrame(kindData, 0, 2, 64<<10),
		"empty": makeFrame(kindData, 0, 2, 0),
		"FIN":   makeFrame(kindWindow, flagFIN, 2, 0),
		"ACK":   makeFrame(kindWindow, flagACK, 2, 0),
	} {
		t.Run(name, func(t *testing.T) {
			l := offline(role{})
			opened(t, l).Reset()
			late, n := frames(h), 0
			for l.give(late) == nil {
				if n++; n > glitchBurst+100 {
					t.Fatalf("%d late frames were taken", n)
				}
			}
		})
	}
}

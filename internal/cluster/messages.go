package cluster

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
)

// The kinds of control messages between nodes, beside those of package tunnel. Whoever dialed speaks of itself, and the
// other end answers how much of it has arrived.
//
//	dialing node                                       accepting node
//	  | holds {seq, state, sessions}    first, at changes, each second
//	  |------------------------------------------------->|
//	  |                            ack {seq} or want {}  |
//	  |<-------------------------------------------------|
//	  | delta {from, to, weights, more}                  |   a message that is not the last of its delta says so
//	  |------------------------------------------------->|
//	  |                                        ack {seq} |   at least one for many deltas
//	  |<-------------------------------------------------|
//	  | snapshot {to, weights, more}     the answer to want
//	  |------------------------------------------------->|
const (
	kindHolds    = "holds"
	kindDelta    = "delta"
	kindSnapshot = "snapshot"
	kindAck      = "ack"
	kindWant     = "want"
)

const (
	maxKeys   = 250_000  // that one node may hold
	maxKey    = 512      // bytes of one
	maxWeight = 1 << 30  // of one key
	chunkSize = 10 << 10 // bytes of keys in a message: in JSON they grow to six times that at worst
)

// holds tells how far the sender is and how it does.
type holds struct {
	Seq      uint64 `json:"seq"`
	State    State  `json:"state"`
	Sessions int    `json:"sessions"`
}

// part is a delta or a snapshot, or a piece of one. All pieces but the last say that there are more.
type part struct {
	From    uint64         `json:"from,omitempty"`
	To      uint64         `json:"to"`
	Weights map[string]int `json:"weights,omitempty"`
	More    bool           `json:"more,omitempty"`
}

// ack tells up to where the changes of the dialing node have been taken in.
type ack struct {
	Seq uint64 `json:"seq"`
}

// want asks for a snapshot.
type want struct{}

// pieces cuts a delta or snapshot into messages, at least one.
func pieces(whole part) []part {
	var all []part
	p, size := whole, 0
	p.Weights = map[string]int{}
	for _, key := range slices.Sorted(maps.Keys(whole.Weights)) {
		if size > 0 && size+len(key) > chunkSize {
			p.More = true
			all = append(all, p)
			p, size = whole, 0
			p.Weights = map[string]int{}
		}
		p.Weights[key] = whole.Weights[key]
		size += len(key) + 16
	}
	return append(all, p)
}

// assembly puts pieces together again.
type assembly struct {
	whole part
	begun bool
}

// add takes a piece and returns the whole after the last one.
func (a *assembly) add(object []byte) (whole part, complete bool, err error) {
	var p part
	if err := json.Unmarshal(object, &p); err != nil {
		return part{}, false, fmt.Errorf("read a piece of the routes: %w", err)
	}
	if p.From > p.To || a.begun && (p.From != a.whole.From || p.To != a.whole.To) {
		return part{}, false, fmt.Errorf("routes from %d to %d do not go together", p.From, p.To)
	}
	for key, weight := range p.Weights {
		if key == "" || len(key) > maxKey || weight < 0 || weight > maxWeight {
			return part{}, false, fmt.Errorf("route of %d bytes with weight %d is out of bounds", len(key), weight)
		}
	}
	if !a.begun {
		a.whole, a.begun = p, true
		if a.whole.Weights == nil {
			a.whole.Weights = map[string]int{}
		}
	} else {
		if len(a.whole.Weights)+len(p.Weights) > maxKeys {
			return part{}, false, fmt.Errorf("more than %d routes", maxKeys)
		}
		maps.Copy(a.whole.Weights, p.Weights)
	}
	if p.More {
		return part{}, false, nil
	}
	whole = a.whole
	*a = assembly{}
	return whole, true, nil
}

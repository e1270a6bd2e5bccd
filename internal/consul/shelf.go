package consul

import (
	"encoding/json"
	"strconv"
	"time"

	"github.com/pikoproxy/piko/internal/cluster"
)

// shelf is what the node holds, as it is laid out in buckets.
type shelf struct {
	parts      []map[string]int
	n          int
	generation uint64
	dirty      map[int]struct{}    // buckets that Consul does not have like this
	stale      map[uint64]struct{} // generations to remove with the next head
}

func newShelf(weights map[string]int) shelf {
	s := shelf{generation: 1, dirty: map[int]struct{}{}, stale: map[uint64]struct{}{}}
	s.layOut(weights, bucketsFor(len(weights), 0))
	return s
}

// layOut distributes weights over b buckets, all of which are dirty then if they hold anything.
func (s *shelf) layOut(weights map[string]int, b int) {
	s.parts, s.n = make([]map[string]int, b), 0
	clear(s.dirty)
	for key, weight := range weights {
		s.set(key, weight)
	}
}

func (s *shelf) weight(key string) int { return s.parts[bucketOf(key, len(s.parts))][key] }

func (s *shelf) isDirty(key string) bool {
	_, dirty := s.dirty[bucketOf(key, len(s.parts))]
	return dirty
}

// set notes the weight of a key; 0 removes it.
func (s *shelf) set(key string, weight int) {
	i := bucketOf(key, len(s.parts))
	before, held := s.parts[i][key]
	if before == weight {
		return
	}
	s.dirty[i] = struct{}{}
	switch {
	case weight < 1:
		delete(s.parts[i], key)
		s.n--
		return
	case s.parts[i] == nil:
		s.parts[i] = map[string]int{}
	}
	s.parts[i][key] = weight
	if !held {
		s.n++
	}
}

// keys returns all that the node holds.
func (s *shelf) keys() map[string]int {
	all := make(map[string]int, s.n)
	for _, part := range s.parts {
		for key, weight := range part {
			all[key] = weight
		}
	}
	return all
}

// fit makes more buckets, under a new generation, when they are too full. Readers go by the generation in the head, so
// they see the old buckets until all new ones are there.
func (s *shelf) fit() {
	b := bucketsFor(s.n, len(s.parts))
	if b == len(s.parts) {
		return
	}
	s.stale[s.generation] = struct{}{}
	s.generation++
	s.layOut(s.keys(), b)
}

// nextGeneration prepares for a new session. Should something of the old one have been left, it is not mixed up.
func (s *shelf) nextGeneration() {
	s.generation++
	clear(s.stale)
	s.layOut(s.keys(), bucketsFor(s.n, 0))
}

// allDirty has every bucket written again.
func (s *shelf) allDirty() {
	for i, part := range s.parts {
		if len(part) > 0 {
			s.dirty[i] = struct{}{}
		}
	}
}

// bucket returns the name of a bucket below the prefix of the node.
func (s *shelf) bucket(i int) string { return generationName(s.generation) + bucketName(i) }

func generationName(g uint64) string { return "b/" + strconv.FormatUint(g, 10) + "/" }

const (
	recentBytes = 4 << 10  // of the earlier changes that a head repeats
	newestBytes = 16 << 10 // of the newest; what is more is faster to list
	recentTime  = 30 * time.Second
)

// history is what the heads of this incarnation said, as far as the next one repeats it: a reader that missed a few
// heads needs no list. It outlives the Consul session.
type history struct {
	write  uint64 // counts heads
	recent []told
	next   *told // of the head that is being sent
}

type told struct {
	at    time.Time
	value json.RawMessage // a change
}

// headOut is a head with its changes encoded already.
type headOut struct {
	head
	Recent []json.RawMessage `json:"r,omitempty"`
}

// head returns the value of a head that adds d to what was said before.
func (h *history) head(incarnation string, d cluster.Delta, s *shelf) []byte {
	h.write++
	out := headOut{head: head{
		Version: version, Incarnation: incarnation, Write: h.write, Generation: s.generation, Buckets: len(s.parts),
		Keys: s.n, Seq: d.To,
	}}
	h.next = nil
	if d.To > d.From {
		h.next = &told{time.Now(), encode(newChange(d))}
	}
	switch {
	case h.next == nil:
		h.trim(recentBytes)
	case len(h.next.value) > newestBytes:
		h.recent, h.next = nil, nil // a gap: readers list
		return encode(out)
	default:
		h.trim(recentBytes)
	}
	for _, t := range h.recent {
		out.Recent = append(out.Recent, t.value)
	}
	if h.next != nil {
		out.Recent = append(out.Recent, h.next.value)
	}
	return encode(out)
}

// acknowledged makes the newest change one of the earlier ones.
func (h *history) acknowledged() {
	if h.next != nil {
		h.recent = append(h.recent, *h.next)
		h.next = nil
	}
}

// trim drops earlier changes, oldest first, that are old or too long together.
func (h *history) trim(limit int) {
	left := limit
	keep := len(h.recent)
	for keep > 0 && len(h.recent[keep-1].value) <= left && time.Since(h.recent[keep-1].at) < recentTime {
		keep--
		left -= len(h.recent[keep].value)
	}
	h.recent = append([]told(nil), h.recent[keep:]...)
}

func (s *shelf) isBucketDirty(i int) bool {
	_, dirty := s.dirty[i]
	return dirty
}

package consul

import (
	"bytes"
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxStale is how many generations of buckets are removed at once.
const maxStale = maxOps / 2

// verify compares all that Consul has of this node with what it should have, and marks what differs to be written
// again. It runs between two flushes.
func (w *writer) verify(ctx context.Context, session string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*writeTime)
	defer cancel()
	prefix := w.d.nodePrefix(w.d.node.ID)
	pairs, _, err := w.d.writeClient.KV().List(prefix, readOptions(ctx))
	if err != nil {
		return fmt.Errorf("list the own keys: %w", err)
	}
	there := map[int]bool{}
	wrong := 0
	for _, pair := range pairs {
		generation, name, bucket := strings.Cut(strings.TrimPrefix(pair.Key, prefix+"b/"), "/")
		if !bucket || pair.Key == prefix+"head" {
			continue // the canary looks after the head
		}
		g, err := strconv.ParseUint(generation, 10, 64)
		i, err2 := strconv.ParseUint(name, 16, 16)
		if err != nil || err2 != nil {
			continue
		}
		if g != w.store.generation || int(i) >= len(w.store.parts) {
			if len(w.store.stale) >= maxStale {
				continue // a transaction has to hold them all; the others are found the next time
			}
			w.store.stale[g], w.headDirty = struct{}{}, true
			wrong++
			continue
		}
		there[int(i)] = true
		if pair.Session != session || !bytes.Equal(pair.Value, encode(w.store.parts[i])) && !w.store.isBucketDirty(int(i)) {
			w.store.dirty[int(i)], w.headDirty = struct{}{}, true
			wrong++
		}
	}
	for i, part := range w.store.parts {
		if len(part) > 0 && !there[i] && !w.store.isBucketDirty(i) {
			w.store.dirty[i], w.headDirty = struct{}{}, true
			wrong++
		}
	}
	delete(w.store.stale, w.store.generation)
	if wrong > 0 {
		w.d.metrics.repairs.Inc()
		w.d.log.WithField("buckets", wrong).Warn("buckets of this node were changed by somebody else; writing them again")
	}
	return nil
}

const maxTags = 1000

// dnsLabel is what Consul's DNS can be asked for as a tag.
var dnsLabel = regexp.MustCompile(`^[a-z0-9-]{1,63}$`)

// tagger publishes endpoints as tags of the service, when the settings ask for it, for Consul's DNS. Nothing in Piko
// reads them.
type tagger struct {
	d      *Directory
	ticker *time.Ticker // nil when tags are not asked for
	last   []string
}

func newTagger(d *Directory) *tagger {
	t := &tagger{d: d}
	if d.settings.DNSTags {
		t.ticker = time.NewTicker(d.jitter(d.pace.tags))
	}
	return t
}

func (t *tagger) stop() {
	if t.ticker != nil {
		t.ticker.Stop()
	}
}

func (t *tagger) due() <-chan time.Time {
	if t.ticker == nil {
		return nil
	}
	return t.ticker.C
}

// publish writes the tags if they have changed. Endpoints of tenants are left out: in DNS they would be everybody's.
func (t *tagger) publish(ctx context.Context, s *shelf) {
	var tags []string
	for _, part := range s.parts {
		for key := range part {
			if dnsLabel.MatchString(key) {
				tags = append(tags, key)
			}
		}
	}
	slices.Sort(tags)
	tags = tags[:min(len(tags), maxTags)]
	if slices.Equal(tags, t.last) {
		return
	}
	if err := t.d.register(ctx, false, tags); err != nil {
		t.d.log.WithError(err).Warn("the tags of the service could not be written")
		return
	}
	t.last = tags
}

package cluster_test

import (
	"testing"
	"time"
)

// A peer to which the directory has not told of a node takes nothing from it. That holds nobody up for ever, and nobody is
// told that it knows.
func TestPeerThatDoesNotAcknowledgeIsNotTakenForOneThatKnows(t *testing.T) {
	k := newKeys(t)
	a, b := newMember(t, "a", "1", "piko", k), newMember(t, "b", "1", "piko", k)
	a.meet(b)
	a.local.Add("e", 1)
	answer := make(chan bool, 1)
	a.WhenKnown(func(known bool) { answer <- known })
	select {
	case known := <-answer:
		if known {
			t.Error("it is said to know")
		}
	case <-time.After(patience):
		t.Fatal("nobody called back")
	}
	b.meet(a)
	b.sees(a, map[string]int{"e": 1})
	a.WhenKnown(func(known bool) { answer <- known })
	if !<-answer {
		t.Error("it knows, and is said not to")
	}
}

package cluster_test

import "testing"

// A peer to which the directory has not told of a node takes nothing from it. That holds nobody up for ever, and nobody is
// told that it knows.
func TestPeerThatDoesNotAcknowledgeIsNotTakenForOneThatKnows(t *testing.T) {
	k := newKeys(t)
	a, b := newMember(t, "a", "1", "piko", k), newMember(t, "b", "1", "piko", k)
	a.meet(b)
	a.local.Add("e", 1)
	if a.known() {
		t.Error("it is said to know")
	}
	b.meet(a)
	b.sees(a, map[string]int{"e": 1})
	eventually(t, "it is said to know", a.known)
}

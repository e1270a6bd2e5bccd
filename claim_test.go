package piko

import (
	"errors"
	"log/slog"
	"testing"
)

// As long as there seems to be one node only, a place for another session does not open and close several at once.
func TestPlacesInsistOnlyIfThereAreOtherNodes(t *testing.T) {
	p := newPool(t.Context(), settings{log: slog.New(slog.DiscardHandler)})
	at := &place{settings: p.settings}
	meet := func(node string, want error) {
		t.Helper()
		if err := p.claim(&link{settings: p.settings, nodeID: node}, at); !errors.Is(err, want) {
			t.Fatalf("session to node %s: %v, want %v", node, err, want)
		}
	}
	meet("a", nil)
	meet("a", errSameNode)
	meet("b", nil)
	for range patience {
		meet("a", errElsewhere)
	}
	meet("b", errSameNode)
}

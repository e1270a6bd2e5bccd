package daemon

import (
	"errors"
	"testing"
)

// In a container without an init of its own the daemon is process 1, and its end is that of the container.
func TestTheFirstProcessOfAContainerHandsNothingOver(t *testing.T) {
	if err := survivable(1); !errors.Is(err, errFirst) {
		t.Errorf("process 1 may hand over: %v", err)
	}
	if err := survivable(2); err != nil {
		t.Errorf("process 2: %v", err)
	}
}

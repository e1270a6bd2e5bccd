package daemon

import (
	"errors"
	"syscall"
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

// systemd tells all processes of a service to stop, and again those that are left when the main one has ended. None that drains
// is to take the second time for impatience, and one that was told by somebody else still is.
func TestWhoWasReplacedTakesNoNoticeOfSystemd(t *testing.T) {
	for name, c := range map[string]course{
		"handed over":     {stopping: true, replaced: true},
		"is handing over": {handing: make(chan error)},
	} {
		if !c.ignores(syscall.SIGTERM) {
			c.stop()
		}
		if !c.stopping || !c.ignores(syscall.SIGTERM) {
			t.Errorf("%s: stopping %v, and a second SIGTERM ends it at once", name, c.stopping)
		}
		if c.ignores(syscall.SIGINT) {
			t.Errorf("%s: SIGINT is ignored", name)
		}
	}
	alone := course{}
	if !alone.stop() || alone.ignores(syscall.SIGTERM) || !alone.told {
		t.Error("a second SIGTERM is ignored by who has handed nothing over")
	}
}

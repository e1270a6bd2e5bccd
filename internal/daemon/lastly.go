package daemon

import (
	"errors"

	"github.com/sirupsen/logrus"
)

// errStopping is the answer to somebody who asks for a reload while the process stops.
var errStopping = errors.New("the process is stopping: it has taken back what the settings do not allow any more, and changed nothing else")

// ReloadsLastly says how the assembly takes settings while it stops, which may take long: it is to take back what they do not
// allow any more, and to leave everything else as it is. Without it no settings are taken then. It is called before
// [Process.Reloads].
func (p *Process) ReloadsLastly(prepare Prepare) {
	if p.reload != nil {
		p.reload.lastly.Store(&prepare)
	}
}

// takeBack is conclude for a process that stops. Keys that want a restart are not minded: it may be why the process stops.
func (r *reloads) takeBack(trigger string, next Settings, err error) error {
	var change Change
	if err == nil && len(r.current.Changes(next)) > 0 {
		if change, err = (*r.lastly.Load())(next); err != nil {
			err = next.Source().Locate(err)
		}
	}
	if err != nil {
		r.refused(trigger, err)
		return err
	}
	if change.Commit != nil {
		change.Commit()
	}
	if change.Retire != nil {
		change.Retire()
	}
	r.p.Log.WithFields(logrus.Fields{"trigger": trigger, "settings": next.Digest()}).
		Info("settings reloaded as far as they take something back: the process is stopping")
	return errStopping
}

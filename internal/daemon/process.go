package daemon

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/sirupsen/logrus"

	"github.com/pikoproxy/piko/internal/config"
)

// Process is the running process as its assembly sees it. Methods may be called by several goroutines at once.
type Process struct {
	// Name is the program's name, Version its version without the program's name.
	Name, Version string
	// Log is where everything is logged. Its level and format may change while it is used.
	Log *logrus.Logger

	sockets *sockets
	notify  func(state string) // tells systemd; nil: there is none to tell
	dropped func() uint64      // lines of the log; nil: none are
	mute    atomic.Bool        // it is another process that systemd listens to
	reload  *reloads           // nil: settings can't be reloaded
	legacy  *legacy            // nil: there is no process to take over from
	end     func()             // ends the context of Run; set when there is a legacy

	mu       sync.Mutex // guards the following
	ready    bool
	status   string
	note     string // what became of the last reload, shown behind the status
	handover Handover
	alive    func(context.Context) error
}

// NewProcess returns a process without systemd, for programs that run inside another one, such as a test.
func NewProcess(name, version string, log *logrus.Logger) *Process {
	return &Process{Name: name, Version: version, Log: log, sockets: &sockets{}}
}

// Ready tells systemd that the program takes traffic, and warns of sockets handed over that no listener has asked for. If
// there is a process to take over from, that one stops now. To call it again does no harm.
func (p *Process) Ready() {
	if p.legacy != nil {
		if err := p.legacy.serving(); err != nil {
			p.Log.WithError(err).Error("the process before has not handed over")
			p.end()
			return
		}
		p.mute.Store(false)
	}
	p.mu.Lock()
	p.ready = true
	line := p.statusLocked()
	p.mu.Unlock()
	p.tell(daemon.SdNotifyReady)
	if p.legacy != nil {
		p.tell(line) // nothing could be told before
	}
	for _, name := range p.sockets.left() {
		p.Log.WithField("listener", name).Warn("socket from systemd not used: there is no listener of that name")
	}
}

// Status tells systemd in one line what the program is doing; `systemctl status` shows it. The same text twice is sent
// once.
func (p *Process) Status(text string) {
	p.mu.Lock()
	same := p.status == text
	p.status = text
	line := p.statusLocked()
	p.mu.Unlock()
	if !same {
		p.tell(line)
	}
}

func (p *Process) statusLocked() string {
	text := p.status
	if p.note != "" {
		text = strings.TrimPrefix(text+"; "+p.note, "; ")
	}
	return "STATUS=" + clean(text)
}

// reloading tells systemd that a reload has begun; systemd wants the time by the monotonic clock with it (sd_notify(3)).
func (p *Process) reloading() {
	p.tell(daemon.SdNotifyReloading + "\n" + daemon.SdNotifyMonotonicUsec())
}

// reloaded tells systemd that a reload is over, and from now on with each status what became of it. A program that is not
// ready yet does not become so by that.
func (p *Process) reloaded(note string) {
	p.mu.Lock()
	p.note = note
	state := p.statusLocked()
	if p.ready {
		state = daemon.SdNotifyReady + "\n" + state
	}
	p.mu.Unlock()
	p.tell(state)
}

// SetLog changes level and format of the log.
func (p *Process) SetLog(c config.Log) error { return setLog(p.Log, c) }

func (p *Process) tell(state string) {
	if p.notify != nil && !p.mute.Load() {
		p.notify(state)
	}
}

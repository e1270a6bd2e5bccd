package daemon

import (
	"sync"

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

	mu     sync.Mutex
	status string
}

// NewProcess returns a process without systemd, for programs that run inside another one, such as a test.
func NewProcess(name, version string, log *logrus.Logger) *Process {
	return &Process{Name: name, Version: version, Log: log, sockets: &sockets{}}
}

// Ready tells systemd that the program takes traffic, and warns of sockets handed over that no listener has asked for. To
// call it again does no harm.
func (p *Process) Ready() {
	p.tell(daemon.SdNotifyReady)
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
	p.mu.Unlock()
	if !same {
		p.tell("STATUS=" + clean(text))
	}
}

// SetLog changes level and format of the log.
func (p *Process) SetLog(c config.Log) error { return setLog(p.Log, c) }

func (p *Process) tell(state string) {
	if p.notify != nil {
		p.notify(state)
	}
}

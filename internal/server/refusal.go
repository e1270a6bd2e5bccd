package server

import (
	"sync"

	"github.com/sirupsen/logrus"
	"golang.org/x/time/rate"
)

const refusalLines = 10 // a second, of one kind

// refusalLog logs what strangers can provoke at will: each kind of event at most so often, with the number of lines
// left out on the next one.
type refusalLog struct {
	log logrus.FieldLogger

	mu    sync.Mutex
	kinds map[refusalKind]*refusals
}

// refusalKind is made of constants, so there are few.
type refusalKind struct{ event, reason string }

type refusals struct {
	limit      *rate.Limiter
	suppressed int
}

func newRefusalLog(log logrus.FieldLogger) *refusalLog {
	return &refusalLog{log: log, kinds: make(map[refusalKind]*refusals)}
}

// warn logs the event with its reason. Empty facts are left out.
func (l *refusalLog) warn(event, reason string, facts map[string]any) {
	l.mu.Lock()
	k := l.kinds[refusalKind{event, reason}]
	if k == nil {
		k = &refusals{limit: rate.NewLimiter(refusalLines, refusalLines)}
		l.kinds[refusalKind{event, reason}] = k
	}
	if !k.limit.Allow() {
		k.suppressed++
		l.mu.Unlock()
		return
	}
	suppressed := k.suppressed
	k.suppressed = 0
	l.mu.Unlock()

	fields := logrus.Fields{"reason": reason}
	for name, v := range facts {
		if v != nil {
			fields[name] = v
		}
	}
	if suppressed > 0 {
		fields["suppressed"] = suppressed
	}
	l.log.WithFields(fields).Warn(event)
}

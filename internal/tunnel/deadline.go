package tunnel

import "time"

// deadline is that of reading or writing.
type deadline struct {
	at    time.Time
	timer *time.Timer
}

func (d *deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

func (d *deadline) stop() {
	if d.timer != nil {
		d.timer.Stop()
	}
}

// SetDeadline sets both deadlines.
func (s *Stream) SetDeadline(t time.Time) error {
	if err := s.SetReadDeadline(t); err != nil {
		return err
	}
	return s.SetWriteDeadline(t)
}

// SetReadDeadline sets the deadline of Read, that of a blocked one too. A passed deadline does not keep Read from returning
// what has already arrived.
func (s *Stream) SetReadDeadline(t time.Time) error { return s.setDeadline(&s.rlimit, s.rwake, t) }

// SetWriteDeadline sets the deadline of Write, that of a blocked one too. A passed deadline does not keep Write from filling
// the far end's window.
func (s *Stream) SetWriteDeadline(t time.Time) error { return s.setDeadline(&s.wlimit, s.wwake, t) }

func (s *Stream) setDeadline(d *deadline, wake chan struct{}, t time.Time) error {
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	if err := s.usableLocked(); err != nil {
		return err
	}
	wait := time.Until(t)
	if d.at = t; !t.IsZero() {
		d.at = time.Now().Add(wait) // by the clock of timers: no step of the wall clock parts the two
	}
	switch {
	case t.IsZero():
		d.stop()
	case wait <= 0:
		d.stop()
		signal(wake)
	case d.timer == nil:
		d.timer = time.AfterFunc(wait, func() { signal(wake) })
	default:
		d.timer.Reset(wait)
	}
	return nil
}

package tunnel

import "sync/atomic"

// unreadStep is how much more or less a session must hold before the account of all hears of it. What small requests leave
// lying for a moment costs nothing so.
const unreadStep = 16 << 10

// Unread is an account of what the streams of many sessions hold together that nobody has read yet. Each session has a bound
// of its own, but many of them could hold all memory. The nil Unread counts nothing.
type Unread struct{ held, most atomic.Int64 }

// Limit sets how many bytes there may be; 0: any number. What is held already stays.
func (u *Unread) Limit(most int64) { u.most.Store(max(most, 0)) }

// Held is how many bytes there are, give or take a few KiB for each session.
func (u *Unread) Held() int64 { return u.held.Load() }

// Full reports whether no more streams are to be opened.
func (u *Unread) Full() bool { return u.above(1) }

// above reports whether there are as many bytes as a part of the limit.
func (u *Unread) above(part int64) bool {
	if u == nil {
		return false
	}
	most := u.most.Load()
	return most > 0 && u.held.Load() >= most/part
}

// settleLocked tells the account what the session holds, if that has changed enough. The caller holds mu.
func (l *link) settleLocked() {
	d := l.held - l.told
	if l.account == nil || d == 0 || l.held > 0 && d < unreadStep && d > -unreadStep {
		return
	}
	l.account.held.Add(d)
	l.told = l.held
}

// dischargeLocked takes the session out of the account: it has ended, and what came before is soon read or given up. The
// caller holds mu.
func (l *link) dischargeLocked() {
	if l.account != nil {
		l.account.held.Add(-l.told)
		l.account, l.told = nil, 0
	}
}

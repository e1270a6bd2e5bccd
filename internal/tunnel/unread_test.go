package tunnel

import (
	"io"
	"testing"
)

// onAccount returns an offline link whose streams are on an account.
func onAccount(t *testing.T, u *Unread) *Stream {
	t.Helper()
	l := offline(role{})
	l.account = u
	st := acknowledged(t, l)
	drained(t, l)
	return st
}

func TestWhatNobodyReadsIsOnOneAccountOfAllSessions(t *testing.T) {
	u := new(Unread)
	u.Limit(300_000)
	one, other := onAccount(t, u), onAccount(t, u)
	fill(t, one, 200_000)
	if u.Full() || u.Held() != 200_000 {
		t.Errorf("%d of 200000 bytes are on the account, full: %v", u.Held(), u.Full())
	}
	fill(t, other, 100_000)
	if !u.Full() {
		t.Errorf("%d of 300000 bytes are on the account, and it is not full", u.Held())
	}
	for _, st := range []*Stream{one, other} {
		_, err := st.l.admit(100)
		wantRefused(t, err, CodeOverloaded)
	}
	if _, err := io.ReadFull(one, make([]byte, 150_000)); err != nil {
		t.Fatal(err)
	}
	if _, err := other.l.admit(100); err != nil {
		t.Errorf("a stream is refused when somebody has read: %v", err)
	}
	_ = one.Close()
	_ = other.Reset()
	if n := u.Held(); n != 0 {
		t.Errorf("%d bytes are on the account of streams that have ended", n)
	}
	fill(t, acknowledged(t, one.l), 100_000)
	one.l.endStreams()
	if n := u.Held(); n != 0 {
		t.Errorf("%d bytes are on the account of a session that has ended", n)
	}
	u.Limit(0)
	u.held.Store(1 << 40)
	if u.Full() {
		t.Error("without a limit it is full")
	}
}

func TestWindowsDoNotGrowWhenTheAccountIsHalfFull(t *testing.T) {
	u := new(Unread)
	st := onAccount(t, u)
	st.l.window = largestWindow
	for _, c := range []struct{ held, most, want int64 }{{100, 202, largestWindow}, {100, 200, initialWindow}, {100, 0, largestWindow}} {
		u.held.Store(c.held)
		u.Limit(c.most)
		st.l.mu.Lock()
		got := st.limitLocked()
		st.l.mu.Unlock()
		if got != c.want {
			t.Errorf("with %d of %d bytes on the account a window may be %d, want %d", c.held, c.most, got, c.want)
		}
	}
}

func TestTheAccountHearsNothingOfWhatIsReadAtOnce(t *testing.T) {
	u := new(Unread)
	st := onAccount(t, u)
	for range 100 {
		fill(t, st, unreadStep-1)
		if n := u.Held(); n != 0 {
			t.Fatalf("%d bytes are on the account", n)
		}
		if _, err := io.ReadFull(st, make([]byte, unreadStep-1)); err != nil {
			t.Fatal(err)
		}
	}
}

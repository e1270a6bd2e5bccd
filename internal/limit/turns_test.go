package limit

import (
	"runtime"
	"testing"
	"time"
)

func inAnHour() time.Time { return time.Now().Add(time.Hour) }

// waits waits until so many wait for a turn.
func waits(t *testing.T, turns *Turns, want int) {
	t.Helper()
	for limit := time.Now().Add(time.Minute); turns.Waiting() != want; runtime.Gosched() {
		if time.Now().After(limit) {
			t.Fatalf("%d wait for a turn, want %d", turns.Waiting(), want)
		}
	}
}

func TestTurnsAreTakenInOrderAndThoseWhoGoOnComeFirst(t *testing.T) {
	turns := NewTurns(1)
	if !turns.Take(inAnHour(), nil, false) {
		t.Fatal("a free turn is not had")
	}
	order := make(chan string, 3)
	for i, who := range []string{"first", "second", "going on"} {
		go func() {
			if turns.Take(inAnHour(), nil, who == "going on") {
				order <- who
			}
		}()
		waits(t, turns, i+1)
	}
	for _, want := range []string{"going on", "first", "second"} {
		turns.Give()
		if got := <-order; got != want {
			t.Errorf("the turn of %q comes before that of %q", got, want)
		}
	}
	turns.Give()
	if turns.taken != 0 {
		t.Errorf("%d turns are taken when all were given back", turns.taken)
	}
}

func TestWhoGivesUpWaitingTakesNoTurn(t *testing.T) {
	turns := NewTurns(1)
	turns.Take(inAnHour(), nil, false)
	stop := make(chan struct{})
	close(stop)
	if turns.Take(time.Now(), nil, false) || turns.Take(inAnHour(), stop, true) {
		t.Error("a turn is had that another has")
	}
	if n := turns.Waiting(); n != 0 {
		t.Errorf("%d wait that have gone", n)
	}
	turns.Give()
	if !turns.Take(time.Now(), nil, false) {
		t.Error("a turn that was given back is not had")
	}
}

func TestTheNumberOfTurnsChangesLive(t *testing.T) {
	turns := NewTurns(1)
	turns.Take(inAnHour(), nil, false)
	had := make(chan bool, 1)
	go func() { had <- turns.Take(inAnHour(), nil, false) }()
	waits(t, turns, 1)
	turns.Apply(2)
	if !<-had {
		t.Error("one more turn is not had by who waits")
	}
	turns.Apply(1)
	turns.Give()
	if turns.Take(time.Now(), nil, false) {
		t.Error("a turn is had that was taken away")
	}
	turns.Apply(0)
	if want := turnsPerCore * runtime.GOMAXPROCS(0); turns.most != want {
		t.Errorf("there are %d turns, want %d", turns.most, want)
	}
}

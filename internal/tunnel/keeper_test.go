package tunnel

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestSessionsSettleOnceAfterMuchHasHappened(t *testing.T) {
	var tide tide
	settled := 0
	step := func(count, moved int) {
		tide.moved = moved
		if tide.settled(count) {
			settled++
		}
	}
	for n := range 10 { // they come
		step(n*100, 0)
	}
	if settled != 0 {
		t.Fatal("settled while sessions come")
	}
	for range 10 {
		step(900, 3)
	}
	if settled != 1 {
		t.Fatalf("settled %d times after many came, want once", settled)
	}
	for range 10 { // few change
		step(905, 0)
	}
	if settled != 1 {
		t.Fatal("settled without a reason")
	}
	step(905, 800) // many carry something
	for range 10 {
		step(905, 0)
	}
	if settled != 2 {
		t.Fatalf("settled %d times after traffic, want twice in all", settled)
	}
	step(5, 0) // they go
	for range 10 {
		step(5, 0)
	}
	if settled != 3 {
		t.Fatalf("settled %d times after many went, want three times in all", settled)
	}
}

func TestACrowdIsToldOfAtItsBeginningAndEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var told []bool
		k := NewKeeper(KeeperOptions{Crowded: func(c bool) {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, c)
		}})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- k.Run(ctx) }()
		ghost := &Session{mux: mux{l: &link{done: make(chan struct{})}}}
		close(ghost.l.done)
		come := func(n int) {
			for range n {
				k.Add(ghost)
			}
			synctest.Wait()
		}
		want := func(wanted ...bool) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if !slices.Equal(told, wanted) {
				t.Fatalf("told %t, want %t", told, wanted)
			}
		}
		<-time.After(heartbeatTick / 2) // between two ticks
		for range 10 {
			come(crowdFrom - 1)
			<-time.After(heartbeatTick)
		}
		want() // they come one by one
		come(crowdFrom)
		want(true) // at once
		for range 10 {
			<-time.After(heartbeatTick)
			come(crowdFrom + 1)
		}
		want(true)
		<-time.After(restAfter * heartbeatTick)
		come(crowdFrom/5 - 1)
		want(true)
		<-time.After(heartbeatTick)
		want(true, false)
		come(crowdFrom)
		want(true, false, true)
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		want(true, false, true, false)
	})
}

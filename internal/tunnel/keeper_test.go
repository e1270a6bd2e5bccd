package tunnel

import "testing"

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

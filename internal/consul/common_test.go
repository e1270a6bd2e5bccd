package consul

import (
	"bytes"
	"slices"
	"testing"
	"time"
)

func shareValues(t *testing.T, w *town) {
	a, b := w.join("a"), w.join("b")
	a.isReady()
	b.isReady()
	ctx := t.Context()
	if _, found, err := a.Common().Get(ctx, "x/y"); found || err != nil {
		t.Fatalf("before it is written: %v, %v", found, err)
	}
	for _, key := range []string{"x/y", "x/z/1", "xx"} {
		if err := a.Common().Put(ctx, key, []byte(key)); err != nil {
			t.Fatal(err)
		}
	}
	if value, found, err := b.Common().Get(ctx, "x/y"); !found || err != nil || string(value) != "x/y" {
		t.Fatalf("the other node reads %q, %v, %v", value, found, err)
	}
	if keys, err := b.Common().List(ctx, "x"); err != nil || !slices.Equal(keys, []string{"x/y", "x/z/1"}) {
		t.Fatalf("keys %q, %v", keys, err)
	}
	if err := b.Common().Delete(ctx, "x"); err != nil {
		t.Fatal(err)
	}
	if keys, err := a.Common().List(ctx, "x"); err != nil || len(keys) > 0 {
		t.Fatalf("after they were deleted: %q, %v", keys, err)
	}
	if _, found, _ := a.Common().Get(ctx, "xx"); !found {
		t.Fatal("a key whose name begins alike was deleted too")
	}
	if a.Common().Put(ctx, "big", bytes.Repeat([]byte{0}, maxCommonValue+1)) == nil {
		t.Fatal("a value of any size was written")
	}
	if a.Common().Put(ctx, "../../m/b", nil) == nil {
		t.Fatal("a key of the directory was written")
	}
}

func holdLock(t *testing.T, w *town) {
	a, b := w.join("a"), w.join("b")
	a.isReady()
	b.isReady()
	ctx := t.Context()
	if err := a.Common().Lock(ctx, "order of x"); err != nil {
		t.Fatal(err)
	}
	for _, other := range []*house{a, b} { // not even the same node gets it twice
		taken, err := other.Common().acquire(ctx, other.base+"lock/order%20of%20x")
		if taken || err != nil {
			t.Fatalf("a lock that is held: taken %v, %v", taken, err)
		}
	}
	if err := b.Common().Unlock(ctx, "order of x"); err == nil {
		if taken, _ := b.Common().acquire(ctx, b.base+"lock/order%20of%20x"); taken {
			t.Fatal("a lock was given back by one who did not hold it")
		}
	}
	got := make(chan error, 1)
	go func() { got <- b.Common().Lock(ctx, "order of x") }()
	if err := a.Common().Unlock(ctx, "order of x"); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-got:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(patience):
		t.Fatal("a lock that was given back can't be taken")
	}
}

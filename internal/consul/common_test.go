package consul

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/pikoproxy/piko/internal/config"
)

func shareValues(t *testing.T, w *town) {
	a, b := w.join("a"), w.join("b")
	a.isReady()
	b.isReady()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
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
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
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

// A lock of which Consul did not say whether it was taken or given back is not lost to the cluster for as long as its node lives.
func giveLocksBack(t *testing.T, w *town) {
	w.pace.sweep, w.pace.sweepAge, w.pace.sweepSpread = 100*time.Millisecond, 300*time.Millisecond, time.Millisecond
	l := newLiar(t, w.consul, false)
	w.change = func(o *Options) { o.Settings.Address = config.List{l.address()} }
	a := w.join("a")
	w.change = nil
	b := w.join("b")
	a.isReady()
	b.isReady()
	isLock := func(r *http.Request, verb string) bool {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return false
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		return r.URL.Path == "/v1/txn" && bytes.Contains(body, []byte("/lock/")) && bytes.Contains(body, []byte(`"`+verb+`"`))
	}
	takes := func(h *house, what string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if err := h.Common().Lock(ctx, "x"); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}

	var once atomic.Bool
	l.tell(func(rw http.ResponseWriter, r *http.Request) bool {
		if !isLock(r, "lock") || once.Swap(true) {
			return false
		}
		l.through(httptest.NewRecorder(), r) // it is done, and the answer is lost
		rw.WriteHeader(http.StatusBadGateway)
		return true
	})
	if err := a.Common().Lock(t.Context(), "x"); err == nil {
		t.Fatal("a lock was taken without an answer")
	}
	takes(a, "the node that did not hear that it has the lock")
	if err := a.Common().Unlock(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	once.Store(false)
	if err := a.Common().Lock(t.Context(), "x"); err == nil {
		t.Fatal("a lock was taken without an answer")
	}
	takes(b, "another node, when the one that has the lock does not know it")
	if err := b.Common().Unlock(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}

	takes(a, "a lock that is free")
	l.tell(func(rw http.ResponseWriter, r *http.Request) bool {
		if !isLock(r, "delete") {
			return false
		}
		l.honest()
		rw.WriteHeader(http.StatusBadGateway)
		return true
	})
	if err := a.Common().Unlock(t.Context(), "x"); err == nil {
		t.Fatal("a lock was given back without an answer")
	}
	takes(b, "another node, when Consul did not hear of the end of a lock")

	_, _ = w.client.KV().Put(&api.KVPair{Key: a.base + "lock/left", Value: []byte("nobody")}, nil)
	until(t, "a lock of nobody is gone", func() bool {
		pair, _, err := w.client.KV().Get(a.base+"lock/left", nil)
		return err == nil && pair == nil
	})
	if taken, err := a.Common().acquire(t.Context(), a.base+"lock/x"); taken || err != nil {
		t.Errorf("the lock of another node: taken %v, %v", taken, err)
	}
}

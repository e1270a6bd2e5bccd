package e2e

import (
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
)

func TestManyRequestsAllSucceed(t *testing.T) {
	parallel(t)
	n := startNode(t, nodeOptions{})
	agent := startAgent(t, n, agentOptions{}, offer{Endpoint: "e", Addr: serve(t, say("small"))})
	const requests, workers = 10_000, 32
	for _, keepAlive := range []bool{true, false} {
		t.Run(fmt.Sprintf("keep-alive %t", keepAlive), func(t *testing.T) {
			c := n.client(t)
			c.Transport.(*http.Transport).DisableKeepAlives = !keepAlive
			failures := load(t, workers, requests, func() error {
				a, err := try(c, request(t, http.MethodGet, at("e", "/"), nil))
				if err == nil && (a.StatusCode != 200 || a.body != "small") {
					err = fmt.Errorf("status %d: %s", a.StatusCode, a.body)
				}
				return err
			})
			if len(failures) > 0 {
				t.Errorf("%d of %d requests failed, the first with: %v", len(failures), requests, failures[0])
			}
			c.CloseIdleConnections()
			await(t, "the connections of clients are gone from pikod", settle, func() error {
				if k := n.files(t); k > 100 {
					return fmt.Errorf("%d open files", k)
				}
				return nil
			})
			if k := agent.files(t); k > 300 {
				t.Errorf("agent holds %d open files: want few kept connections to the service", k)
			}
		})
	}
}

// load calls f count times from several goroutines and gives the errors.
func load(t testing.TB, workers, count int, f func() error) []error {
	t.Helper()
	var left atomic.Int64
	left.Store(int64(count))
	errs := make(chan error, count)
	done := make(chan struct{})
	for range workers {
		go func() {
			defer func() { done <- struct{}{} }()
			for left.Add(-1) >= 0 {
				if err := f(); err != nil {
					errs <- err
				}
			}
		}()
	}
	for range workers {
		wait(t, "the requests are done", patience, done)
	}
	close(errs)
	var all []error
	for err := range errs {
		all = append(all, err)
	}
	return all
}

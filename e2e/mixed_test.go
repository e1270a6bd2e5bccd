package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// pattern is a body that belongs to one request and to no other.
func pattern(id string, size int) []byte {
	return bytes.Repeat([]byte(id+"/"), size/(len(id)+1)+1)[:size]
}

// mixed is a service that behaves in every way a service may. The path says how: /KIND/SIZE.
func mixed(endpoint string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		words := strings.Split(r.URL.Path, "/")
		size, _ := strconv.Atoi(words[2])
		id := r.Header.Get("X-Id")
		w.Header().Set("X-Id", id)
		w.Header().Set("X-Endpoint", endpoint)
		switch words[1] {
		case "echo":
			b, err := io.ReadAll(r.Body)
			if err != nil {
				return
			}
			_, _ = w.Write(b)
			return
		case "ignore": // answers without having read what was sent
		case "close":
			w.Header().Set("Connection", "close")
		case "chunked":
			_ = http.NewResponseController(w).Flush()
		case "empty":
			w.WriteHeader(http.StatusNoContent)
			return
		case "cached":
			w.WriteHeader(http.StatusNotModified)
			return
		case "slow":
			select {
			case <-time.After(5 * time.Millisecond):
			case <-r.Context().Done():
			}
		case "break":
			// The answer to HEAD is whole before the end. A service that then closes without a word may meet the next
			// request, which nobody can tell from one that was taken.
			if r.Method != http.MethodHead {
				_, _ = w.Write(pattern(id, size))
				panic(http.ErrAbortHandler)
			}
		}
		_, _ = w.Write(pattern(id, size))
	}
}

// check compares an answer with what was asked for.
func (q question) check(a answer, err error) error {
	want := pattern(q.id, q.size)
	bodyless := q.kind == "empty" || q.kind == "cached" || q.method == http.MethodHead
	switch {
	case q.kind == "break" && q.method != http.MethodHead:
		if err == nil && a.StatusCode == 200 {
			return fmt.Errorf("a clean end after %d bytes of an answer that broke off", len(a.body))
		}
		return nil
	case err != nil:
		return err
	case a.Header.Get("X-Id") != q.id || a.Header.Get("X-Endpoint") != q.endpoint:
		return fmt.Errorf("status %d: the answer of %s to %s: %.200s", a.StatusCode, a.Header.Get("X-Endpoint"),
			a.Header.Get("X-Id"), a.body)
	case bodyless && a.body != "":
		return fmt.Errorf("a body of %d bytes: want none", len(a.body))
	case !bodyless && a.body != string(want):
		return fmt.Errorf("a body of %d bytes: want %d of its own", len(a.body), len(want))
	}
	return nil
}

// question is one request of the mix.
type question struct {
	id, endpoint, method, kind string
	size                       int
	chunked                    bool
	patience                   time.Duration // 0: for ever
}

func (q question) String() string {
	return fmt.Sprintf("%s %s of %d bytes at %s", q.method, q.kind, q.size, q.endpoint)
}

func invent(r *rand.Rand, id string, endpoints []string) question {
	kinds := []string{"echo", "echo", "ignore", "close", "chunked", "empty", "cached", "slow", "break"}
	methods := []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodHead}
	q := question{id: id, endpoint: endpoints[r.IntN(len(endpoints))], method: methods[r.IntN(len(methods))],
		kind: kinds[r.IntN(len(kinds))], size: 1 + r.IntN(1<<r.IntN(18)), chunked: r.IntN(2) == 0}
	if q.kind == "echo" && (q.method == http.MethodGet || q.method == http.MethodHead) {
		q.method = http.MethodPost
	}
	if r.IntN(8) == 0 {
		q.patience = time.Duration(r.IntN(8000)) * time.Microsecond
	}
	return q
}

func (q question) request(ctx context.Context) (*http.Request, error) {
	var body io.Reader
	if q.method == http.MethodPost || q.method == http.MethodPut {
		body = bytes.NewReader(pattern(q.id, q.size))
	}
	r, err := http.NewRequestWithContext(ctx, q.method, at(q.endpoint, fmt.Sprintf("/%s/%d", q.kind, q.size)), body)
	if err != nil {
		return nil, err
	}
	if q.chunked && body != nil {
		r.ContentLength = -1
	}
	r.Header.Set("X-Id", q.id)
	return r, nil
}

func TestNoAnswerIsEverMixedUp(t *testing.T) {
	parallel(t)
	n := startNode(t, nodeOptions{})
	endpoints := []string{"one", "two", "read"}
	var offers []offer
	for _, e := range endpoints {
		o := offer{Endpoint: e, Addr: serve(t, mixed(e))}
		if e == "read" {
			o.More = "access_log = true"
		}
		offers = append(offers, o)
	}
	startAgent(t, n, agentOptions{}, offers...)
	startAgent(t, n, agentOptions{}, offers...)
	for _, e := range endpoints {
		n.awaitEndpoint(t, e, 2)
	}
	for version, c := range n.versions(t) {
		t.Run(version, func(t *testing.T) {
			var number atomic.Int64
			errs := load(t, 12, 2000, func() error {
				i := number.Add(1)
				q := invent(rand.New(rand.NewPCG(1, uint64(i))), fmt.Sprintf("%s-%d", version, i), endpoints)
				ctx, cancel := t.Context(), context.CancelFunc(func() {})
				if q.patience > 0 {
					ctx, cancel = context.WithTimeout(ctx, q.patience)
				}
				defer cancel()
				r, err := q.request(ctx)
				if err != nil {
					return err
				}
				a, err := try(c, r)
				if q.patience > 0 && errors.Is(err, context.DeadlineExceeded) {
					return nil
				}
				if err := q.check(a, err); err != nil {
					return fmt.Errorf("question %d: %s: %w", i, q, err)
				}
				return nil
			})
			for i, err := range errs {
				if i < 10 {
					t.Error(err)
				}
			}
			if len(errs) > 0 {
				t.Errorf("%d of 2000 answers were wrong", len(errs))
			}
		})
	}
}

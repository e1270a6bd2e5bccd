// Command box is what the tests of the packages run on a Debian that has no more than it needs: a service to reach through
// a tunnel, and clients that count what fails.
//
//	box serve ADDRESS
//	box load -url http://127.0.0.1:8000/ -endpoint web -requests 20000 -rate 1500 -until FILE
//
// load sends requests from clients that keep their connections and from clients that open one for each, until there are
// enough and FILE exists. It prints what came of them, and exits with 1 if one failed or took longer than -longest.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

func main() {
	err := errors.New("want serve or load")
	if len(os.Args) > 2 {
		switch os.Args[1] {
		case "serve":
			err = serve(os.Args[2])
		case "load":
			err = load(os.Args[2:])
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "box:", err)
		os.Exit(1)
	}
}

// serve answers at once, or for /slow after the seconds of ?s=, half of the answer before and half behind.
func serve(address string) error {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello\n") })
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		pause, err := time.ParseDuration(r.FormValue("s") + "s")
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		_, _ = io.WriteString(w, "first\n")
		_ = http.NewResponseController(w).Flush()
		select {
		case <-time.After(pause):
			_, _ = io.WriteString(w, "last\n")
		case <-r.Context().Done():
		}
	})
	server := &http.Server{Addr: address, Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	return server.ListenAndServe()
}

type run struct {
	url, endpoint, until string
	requests             int64
	rate                 int
	clients              int
	longest              time.Duration

	begun, failed atomic.Int64
	mu            sync.Mutex // guards the following
	took          []time.Duration
	slow, errs    []string
}

func load(args []string) error {
	var r run
	fs := flag.NewFlagSet("load", flag.ExitOnError)
	fs.StringVar(&r.url, "url", "http://127.0.0.1:8000/", "")
	fs.StringVar(&r.endpoint, "endpoint", "", "")
	fs.StringVar(&r.until, "until", "", "")
	fs.Int64Var(&r.requests, "requests", 20000, "")
	fs.IntVar(&r.rate, "rate", 1500, "requests a second")
	fs.IntVar(&r.clients, "clients", 20, "of each kind")
	fs.DurationVar(&r.longest, "longest", 500*time.Millisecond, "")
	if err := fs.Parse(args); err != nil {
		return err
	}
	deadline := time.After(5 * time.Minute)
	tokens := make(chan struct{}, r.rate/10)
	go r.pace(deadline, tokens)
	var wg sync.WaitGroup
	kept := &http.Transport{MaxIdleConnsPerHost: r.clients, DisableCompression: true}
	fresh := &http.Transport{DisableKeepAlives: true, DisableCompression: true}
	for range r.clients {
		for _, t := range []*http.Transport{kept, fresh} {
			wg.Go(func() {
				for range tokens {
					r.one(&http.Client{Transport: t, Timeout: 20 * time.Second})
				}
			})
		}
	}
	wg.Wait()
	return r.report()
}

// pace hands out as many tokens as are wanted, at their rate, and closes the channel behind them.
func (r *run) pace(deadline <-chan time.Time, tokens chan<- struct{}) {
	defer close(tokens)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	began, given := time.Now(), 0
	for {
		select {
		case <-tick.C:
		case <-deadline:
			return
		}
		for want := int(time.Since(began).Seconds() * float64(r.rate)); given < want; given++ {
			select {
			case tokens <- struct{}{}:
			case <-deadline:
				return
			}
		}
		if _, err := os.Stat(r.until); r.begun.Load() >= r.requests && (r.until == "" || err == nil) {
			return
		}
	}
}

func (r *run) one(c *http.Client) {
	r.begun.Add(1)
	began := time.Now()
	err := r.ask(c)
	took := time.Since(began)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.took = append(r.took, took)
	if took > r.longest {
		r.slow = append(r.slow, fmt.Sprintf("%s at %s", took.Round(time.Millisecond), began.Format("15:04:05.000")))
	}
	if err != nil {
		r.failed.Add(1)
		r.errs = append(r.errs, began.Format("15:04:05.000 ")+err.Error())
	}
}

func (r *run) ask(c *http.Client) error {
	req, err := http.NewRequest(http.MethodGet, r.url, http.NoBody)
	if err != nil {
		return err
	}
	if r.endpoint != "" {
		req.Header.Set("X-Piko-Endpoint", r.endpoint)
	}
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK || string(body) != "hello\n" {
		return fmt.Errorf("%s: %.100q", resp.Status, body)
	}
	return nil
}

func (r *run) report() error {
	slices.Sort(r.took)
	at := func(q float64) time.Duration { return r.took[int(q*float64(len(r.took)-1))].Round(time.Microsecond) }
	fmt.Printf("%d requests, %d failed, median %s, 99.9 %% %s, longest %s\n", len(r.took), r.failed.Load(), at(0.5), at(0.999), at(1))
	for _, list := range [][]string{r.errs, r.slow} {
		for _, text := range list[:min(len(list), 10)] {
			fmt.Println("  " + text)
		}
	}
	if n := r.failed.Load(); n > 0 || len(r.slow) > 0 {
		return fmt.Errorf("%d failed, %d took longer than %s", n, len(r.slow), r.longest)
	}
	return nil
}

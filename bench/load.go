package main

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// client is one connection of the load generator. step makes one exchange, or moves one block of a transfer, and counts it.
type client interface {
	step(m *meter) error
	close()
}

// meter counts what one client does. A client has its own, so that counting shares nothing.
type meter struct {
	phase *atomic.Int32
	times histogram
	bytes int64
}

// Phases of a load. What ends while measuring counts.
const (
	warming = iota
	measuring
	over
)

// exchanged counts an exchange that began at the given time.
func (m *meter) exchanged(began time.Time) {
	if m.phase.Load() == measuring {
		m.times.add(time.Since(began))
	}
}

func (m *meter) moved(n int) {
	if m.phase.Load() == measuring {
		m.bytes += int64(n)
	}
}

// sample is the outcome of one load on one target.
type sample struct {
	exchanges int64
	bytes     int64
	took      time.Duration
	p50, p99  time.Duration
	cpu       map[string]time.Duration // by label of a process; "load" is the generator
	allocs    map[string]float64       // by label, where the process tells it
	errs      int
	err       error // one of them
}

// exchangeLimit is how long one exchange may take at the end of a load before it counts as lost.
const exchangeLimit = 10 * time.Second

// load runs a closed loop: each of n clients makes its next exchange when the last one has ended. All are connected before
// the first exchange, and a warm-up goes before the time that counts.
func load(t *target, n int, warm, length time.Duration, open func(limit time.Time) (client, error)) (sample, error) {
	var phase atomic.Int32
	limit := time.Now().Add(warm + length + exchangeLimit)
	clients := make([]client, 0, n)
	for range n {
		c, err := open(limit)
		if err != nil {
			for _, c := range clients {
				c.close()
			}
			return sample{}, fmt.Errorf("connect to %s: %w", t.name, err)
		}
		clients = append(clients, c)
	}
	meters := make([]meter, n)
	errs := make([]error, n)
	var all sync.WaitGroup
	for i, c := range clients {
		meters[i].phase = &phase
		all.Go(func() {
			for phase.Load() != over && errs[i] == nil {
				errs[i] = c.step(&meters[i])
			}
			c.close()
		})
	}
	time.Sleep(warm)
	allocs, cpu, began := t.allocs(), t.cpu(), time.Now()
	phase.Store(measuring)
	time.Sleep(length)
	phase.Store(over)
	s := sample{took: time.Since(began), cpu: t.cpu(), allocs: t.allocs()}
	all.Wait()

	var times histogram
	for i := range meters {
		times.merge(&meters[i].times)
		s.bytes += meters[i].bytes
		if errs[i] != nil {
			s.errs, s.err = s.errs+1, errs[i]
		}
	}
	s.exchanges = int64(times.total) //nolint:gosec // G115: a count of seconds' work
	s.p50, s.p99 = times.quantile(0.5), times.quantile(0.99)
	for label := range s.cpu {
		s.cpu[label] -= cpu[label]
	}
	for label := range s.allocs {
		s.allocs[label] -= allocs[label]
	}
	return s, nil
}

// dial connects with a limit for everything that will happen on the connection.
func dial(addr string, limit time.Time) (net.Conn, error) {
	c, err := net.DialTimeout("tcp", addr, exchangeLimit)
	if err != nil {
		return nil, err
	}
	if err := c.SetDeadline(limit); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

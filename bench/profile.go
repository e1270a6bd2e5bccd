package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// profile puts the load of one trial on piko and saves where CPU time and allocations of its processes went meanwhile.
func (l *lab) profile(dir string, trial trial, p plan) error {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	l.pprof = true
	t, err := l.target(pikoName)
	if err != nil {
		return err
	}
	length := max(p.length, 10*time.Second)
	pages := map[string]string{
		"cpu":       fmt.Sprintf("profile?seconds=%d", int(length.Seconds())-1),
		"allocs":    fmt.Sprintf("allocs?seconds=%d", int(length.Seconds())-1),
		"goroutine": "goroutine",
	}
	done := make(chan error)
	for label, admin := range t.admins {
		for name, page := range pages {
			go func() {
				body, err := fetch("http://"+admin+"/debug/pprof/"+page, "")
				if err == nil {
					err = os.WriteFile(filepath.Join(dir, label+"-"+name+".pprof"), []byte(body), 0o600)
				}
				done <- err
			}()
		}
	}
	s, err := load(t, trial.clients, 0, length, trial.open(t))
	for range len(t.admins) * len(pages) {
		err = errors.Join(err, <-done)
	}
	if err == nil {
		fmt.Printf("%s: %d exchanges with profiling on; profiles are in %s\n", trial.name, s.exchanges, dir)
	}
	return err
}

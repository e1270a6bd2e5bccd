package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/pikoproxy/piko/internal/tunnel"
)

// alone is what a session carries in one stream when both its ends are in one process, with a TCP socket between them and
// nothing before or behind.
type alone struct{ rate float64 } // bytes a second

// printAlone measures and prints it, and returns the goals about it.
func printAlone(ctx context.Context, w io.Writer, p plan) []goal {
	var a alone
	var err error
	var done sync.WaitGroup
	// In a goroutine of its own: that of main is bound to its thread, which makes every wait of it dear.
	done.Go(func() { a, err = measureAlone(ctx, p.length*time.Duration(p.rounds)) })
	done.Wait()
	if err != nil {
		fmt.Fprintf(w, "\n**The tunnel alone**: left out: %v\n", err)
		return nil
	}
	fmt.Fprintf(w, "\n**The tunnel alone**: %.2f GB/s in one stream, both ends in one process\n", a.rate/1e9)
	return []goal{{"bulk through the tunnel alone: at least 1 GB/s", func(table) (string, bool, bool) {
		return fmt.Sprintf("%.2f GB/s", a.rate/1e9), a.rate >= 1e9, true
	}}}
}

// measureAlone is for the part that is the tunnel's in the bulk cases.
func measureAlone(ctx context.Context, length time.Duration) (a alone, err error) {
	ctx, stop := context.WithTimeout(ctx, length+exchangeLimit)
	defer stop()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return a, err
	}
	sessions := make(chan *tunnel.Session, 1)
	server := &http.Server{ReadHeaderTimeout: exchangeLimit, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s, err := tunnel.AcceptNative(w, r, tunnel.NodeOptions{}); err == nil {
			sessions <- s
		}
	})}
	go func() { _ = server.Serve(l) }() // ends by Close
	defer func() { err = errors.Join(err, server.Close()) }()
	agent, err := tunnel.Dial(ctx, tunnel.DialOptions{URL: "http://" + l.Addr().String()})
	if err != nil {
		return a, err
	}
	var s *tunnel.Session
	defer func() {
		_ = agent.CloseNow(nil) // always nil
		agent.Wait()
		if s != nil {
			s.Wait()
		}
	}()
	select {
	case s = <-sessions:
	case <-ctx.Done():
		return a, context.Cause(ctx)
	}
	go func() { // ends with the session
		in, err := agent.Accept(ctx)
		if err != nil {
			return
		}
		if st, err := in.Accept(); err == nil {
			_ = pour(st)
		}
	}()
	st, err := s.Open(ctx, tunnel.Header{Endpoint: "bulk", Protocol: tunnel.ProtocolTCP})
	if err != nil {
		return a, err
	}
	block := make([]byte, 4*blockSize)
	if _, err := io.ReadFull(st, block); err != nil { // it flows
		return a, err
	}
	began, n := time.Now(), 0
	for time.Since(began) < length {
		k, err := st.Read(block)
		if err != nil {
			return a, err
		}
		n += k
	}
	a.rate = float64(n) / time.Since(began).Seconds()
	return a, nil
}

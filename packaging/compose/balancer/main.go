// Command balancer spreads TCP connections over nodes: what a cloud's balancer does, for the compose file beside it. Each
// argument is a local address and where its connections go; nodes that are not ready get none.
//
//	balancer -ready 8002 :8000=node1:8000,node2:8000 :8001=node1:8001,node2:8001
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

func main() {
	ready := flag.String("ready", "8002", "port of the nodes that answers GET /ready")
	flag.Parse()
	// House rule: this is the main function, so its context comes from nowhere.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, *ready, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "balancer:", err)
		os.Exit(1)
	}
}

// front is a local address with the nodes behind it.
type front struct {
	listener net.Listener
	nodes    []string
	next     atomic.Uint32
	unready  *sync.Map // hosts
}

func run(ctx context.Context, ready string, args []string) error {
	if len(args) == 0 {
		return errors.New("want ADDRESS=NODE,NODE...")
	}
	var unready sync.Map
	hosts := map[string]bool{}
	var fronts []*front
	for _, arg := range args {
		address, nodes, _ := strings.Cut(arg, "=")
		l, err := net.Listen("tcp", address)
		if err != nil {
			return err
		}
		f := &front{listener: l, nodes: strings.Split(nodes, ","), unready: &unready}
		fronts = append(fronts, f)
		for _, n := range f.nodes {
			host, _, err := net.SplitHostPort(n)
			if err != nil {
				return fmt.Errorf("%q: %w", n, err)
			}
			hosts[host] = true
		}
	}
	var wg sync.WaitGroup
	for host := range hosts {
		wg.Go(func() { watch(ctx, &unready, host, ready) })
	}
	for _, f := range fronts {
		wg.Go(func() { f.serve() })
	}
	slog.Info("balancing", "fronts", len(fronts), "nodes", len(hosts))
	<-ctx.Done()
	for _, f := range fronts {
		_ = f.listener.Close() // nothing to write any more
	}
	wg.Wait()
	return nil
}

// watch asks a node twice a second whether it takes traffic.
func watch(ctx context.Context, unready *sync.Map, host, port string) {
	client := &http.Client{Timeout: time.Second}
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(host, port)+"/ready", http.NoBody)
		if err != nil {
			slog.Error("no probe", "err", err)
			return
		}
		resp, err := client.Do(req)
		ok := err == nil && resp.StatusCode == http.StatusOK
		if err == nil {
			_ = resp.Body.Close()
		}
		if _, was := unready.Load(host); was == ok {
			slog.Info("node changes", "node", host, "ready", ok)
		}
		if ok {
			unready.Delete(host)
		} else {
			unready.Store(host, true)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

func (f *front) serve() {
	for {
		c, err := f.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			go f.carry(c)
		}
	}
}

// carry brings a connection to a node: to the next one that is ready, or else to any that answers.
func (f *front) carry(client net.Conn) {
	defer client.Close()
	first := int(f.next.Add(1))
	for _, even := range []bool{false, true} {
		for i := range f.nodes {
			n := f.nodes[(first+i)%len(f.nodes)]
			host, _, _ := net.SplitHostPort(n)
			if _, bad := f.unready.Load(host); bad && !even {
				continue
			}
			node, err := net.DialTimeout("tcp", n, 2*time.Second)
			if err != nil {
				continue
			}
			var wg sync.WaitGroup
			wg.Go(func() { pass(node, client) })
			wg.Go(func() { pass(client, node) })
			wg.Wait()
			_ = node.Close()
			return
		}
	}
}

// pass copies one direction and passes its end on.
func pass(to, from net.Conn) {
	_, err := io.Copy(to, from)
	if t, ok := to.(*net.TCPConn); ok && err == nil {
		_ = t.CloseWrite()
		return
	}
	_ = to.Close()
}

// Command demo shows Piko at work with real processes: a node, two agents, a forwarder and a small service, on free ports
// of this machine. It prints what it sends and what comes back, and stops everything it started. Its exit code is 0 only
// if every answer was right and every process left cleanly.
//
// Run it by `make demo`, or by `make cluster` to see three nodes that find each other through a real Consul. It is a
// program of its own, and imports nothing of ours, so that it sees what a stranger sees.
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

func main() {
	bin := flag.String("bin", "bin", "where the binaries are")
	three := flag.Bool("cluster", false, "show three nodes with Consul instead of one node alone")
	flag.Parse()
	// The processes end with the thread that started them, should the demo itself be killed.
	runtime.LockOSThread()
	dir, err := os.MkdirTemp("", "piko-demo-")
	if err == nil {
		show := run
		if *three {
			show = runCluster
		}
		err = errors.Join(show(*bin, dir), os.RemoveAll(dir))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "\nthe demo went wrong:", err)
		os.Exit(1)
	}
	fmt.Println("\nAll answers came through the tunnel, and everything has stopped cleanly.")
}

const (
	httpEndpoint = "my-endpoint"
	tcpEndpoint  = "my-tcp"

	// answerLimit bounds each question, startLimit each wait for a process, stopLimit each end of one.
	answerLimit = 10 * time.Second
	startLimit  = 20 * time.Second
	stopLimit   = 20 * time.Second
)

// addresses are where everything listens.
type addresses struct{ proxy, upstream, admin, forward, http, tcp string }

func run(bin, dir string) (err error) {
	web, err := serveHTTP()
	if err != nil {
		return err
	}
	defer web.Close()
	echo, err := serveTCP()
	if err != nil {
		return err
	}
	defer echo.Close()
	a := addresses{http: web.Addr().String(), tcp: echo.Addr().String()}
	if err := freePorts(&a.proxy, &a.upstream, &a.admin, &a.forward); err != nil {
		return err
	}
	fmt.Printf("A service of this demo answers HTTP on %s and shouts back over TCP on %s.\n\n", a.http, a.tcp)

	var all processes
	defer func() { err = errors.Join(err, all.stop()) }()
	if err := start(&all, bin, dir, a); err != nil {
		return err
	}
	return errors.Join(askHTTP(a), askTCP(a))
}

// start starts node, agents and forwarder, each when the one before is ready.
func start(all *processes, bin, dir string, a addresses) error {
	file := filepath.Join(dir, "pikod.toml")
	settings := fmt.Sprintf("[proxy]\nlisten = %q\n\n[upstream]\nlisten = %q\n\n[admin]\nlisten = %q\n", a.proxy, a.upstream, a.admin)
	if err := os.WriteFile(file, []byte(settings), 0o600); err != nil {
		return err
	}
	if err := all.start(bin, "pikod", "--config", file); err != nil {
		return err
	}
	if err := all.await("pikod to be ready", func() bool { return get(a.admin, "/ready", "") == nil }); err != nil {
		return err
	}
	url := "http://" + a.upstream
	if err := all.start(bin, "piko-agent", "http", httpEndpoint, a.http, "--url", url); err != nil {
		return err
	}
	if err := all.start(bin, "piko-agent", "tcp", tcpEndpoint, a.tcp, "--url", url); err != nil {
		return err
	}
	for _, endpoint := range []string{httpEndpoint, tcpEndpoint} {
		registered := func() bool { return get(a.admin, "/status/upstream/endpoints", `"`+endpoint+`"`) == nil }
		if err := all.await("endpoint "+endpoint, registered); err != nil {
			return err
		}
	}
	if err := all.start(bin, "piko-forward", a.forward, tcpEndpoint, "--url", "http://"+a.proxy); err != nil {
		return err
	}
	return all.await("piko-forward to listen", func() bool {
		c, err := net.DialTimeout("tcp", a.forward, answerLimit)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
}

// askHTTP reaches the service over HTTP, by header and by host name.
func askHTTP(a addresses) error {
	var errs []error
	for _, q := range []struct{ header, value string }{
		{"x-piko-endpoint", httpEndpoint}, {"Host", httpEndpoint + ".piko.example.com"},
	} {
		fmt.Printf("\n$ curl -H '%s: %s' http://%s/hello\n", q.header, q.value, a.proxy)
		answer, err := fetch(a.proxy, "/hello", q.header, q.value)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		fmt.Print(answer)
		if !strings.Contains(answer, "This is the service. You asked for /hello") {
			errs = append(errs, fmt.Errorf("HTTP by %s: the answer is not the service's: %q", q.header, answer))
		}
	}
	return errors.Join(errs...)
}

// askTCP sends a line through piko-forward and reads it back, and the end of the stream after it.
func askTCP(a addresses) error {
	fmt.Printf("\n$ echo 'hello over tcp' | nc -N %s\n", strings.ReplaceAll(a.forward, ":", " "))
	c, err := net.DialTimeout("tcp", a.forward, answerLimit)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(answerLimit)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, "hello over tcp\n"); err != nil {
		return err
	}
	// Only our direction ends here: the answer must still come.
	if half, ok := c.(*net.TCPConn); ok {
		if err := half.CloseWrite(); err != nil {
			return err
		}
	}
	answer, err := io.ReadAll(io.LimitReader(c, 1<<10))
	if err != nil {
		return fmt.Errorf("TCP: %w", err)
	}
	fmt.Print(string(answer))
	if string(answer) != "HELLO OVER TCP\n" {
		return fmt.Errorf("TCP: want the line back in capitals, have %q", answer)
	}
	return nil
}

// fetch asks for a page with one header, which may be Host.
func fetch(addr, path, header, value string) (string, error) {
	req, err := http.NewRequest(http.MethodGet, "http://"+addr+path, http.NoBody)
	if err != nil {
		return "", err
	}
	if header == "Host" {
		req.Host = value
	} else if header != "" {
		req.Header.Set(header, value)
	}
	client := http.Client{Timeout: answerLimit, Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("HTTP %s: %s", res.Status, body)
	}
	return string(body), err
}

// get reports whether the admin page answers 200 with the text in it.
func get(addr, path, text string) error {
	body, err := fetch(addr, path, "", "")
	if err == nil && !strings.Contains(body, text) {
		err = fmt.Errorf("%s: no %s in %q", path, text, body)
	}
	return err
}

// serveHTTP is the small real service. It is stopped by closing the listener.
func serveHTTP() (net.Listener, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	server := http.Server{
		ReadHeaderTimeout: answerLimit,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			//nolint:gosec // G705: plain text, in which markup means nothing
			fmt.Fprintf(w, "This is the service. You asked for %s as host %q from %s.\n", r.URL.Path, r.Host, r.Header.Get("X-Forwarded-For"))
		}),
	}
	go func() { _ = server.Serve(l) }() // ends with the listener; its only other error would show as a missing answer
	return l, nil
}

// serveTCP shouts back what it hears, line by line.
func serveTCP() (net.Listener, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go shout(c)
		}
	}()
	return l, nil
}

func shout(c net.Conn) {
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(answerLimit)); err != nil {
		return
	}
	lines := bufio.NewScanner(c)
	for lines.Scan() {
		if _, err := fmt.Fprintln(c, strings.ToUpper(lines.Text())); err != nil {
			return
		}
	}
}

// freePorts finds addresses that are free now. Another process may still take one, and then the demo says so and fails.
func freePorts(addrs ...*string) error {
	for _, a := range addrs {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		defer l.Close()
		*a = l.Addr().String()
	}
	return nil
}
